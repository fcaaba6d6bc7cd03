"""Reading a TrainConfig from a TOML file and flags, and writing it back."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltaw.errors import ConfigError, nearest
from deltaw.train.config import SECTIONS, TrainConfig
from deltaw.train.fields import FieldSpec, specs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["ALIASES", "from_values", "read_toml", "to_toml"]

ALIASES = {
    "learning_rate": "lr", "r": "rank", "lora_r": "rank", "lora_rank": "rank", "lora_alpha": "alpha",
    "lora_dropout": "dropout", "target_modules": "targets", "modules_to_save": "train_also",
    "use_rslora": "rank_stabilized",
    "num_epochs": "epochs", "num_train_epochs": "epochs", "max_steps": "steps", "iters": "steps",
    "per_device_train_batch_size": "batch_size", "micro_batch_size": "batch_size", "max_seq_length": "max_length",
    "gradient_accumulation_steps": "accumulate", "grad_accumulation": "accumulate", "output_dir": "output",
    "max_grad_norm": "clip", "lr_scheduler_type": "schedule", "warmup_steps": "warmup", "warmup_ratio": "warmup",
    "save_steps": "save_every", "eval_steps": "eval_every", "save_total_limit": "keep", "model_name_or_path": "path",
}  # fmt: skip
"""What other tools call our keys: a typo's neighbour by spelling is seldom what was meant."""

Values = Mapping[str, Mapping[str, Any]]


def read_toml(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read a TOML file of sections, refusing what no run would read.

    Args:
        path: the file.

    Returns:
        section -> key -> value, types not yet checked.

    Raises:
        ConfigError: if the file is missing, is no TOML, or holds an unknown section or key.
    """
    file = Path(path)
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            "the configuration file cannot be read",
            where=str(file),
            got=error.strerror or str(error),
            expected="a TOML file",
            hint="check the path after --config",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the configuration file is no TOML",
            where=str(file),
            got=str(error),
            expected="sections such as [optim] with lines such as lr = 3e-4",
            hint="fix the line named above; strings need quotes",
        ) from None
    check_names(values, str(file))
    return values


def check_names(values: Mapping[str, Any], where: str) -> None:
    """Refuse unknown sections and keys, all of them in one error.

    Args:
        values: section -> key -> value.
        where: the file or place they come from.

    Raises:
        ConfigError: with the nearest existing names.
    """
    wrong, close = [], []
    for section, table in values.items():
        if section not in SECTIONS:
            wrong.append(f"section [{section}]" if isinstance(table, Mapping) else f"`{section}` outside a section")
            close.append(_nearest_section(section))
            continue
        if not isinstance(table, Mapping):
            wrong.append(f"`{section}` as a value")
            close.append(f"[{section}] as a section")
            continue
        known = [spec.name for spec in specs(SECTIONS[section], section)]
        for name in table:
            if name not in known:
                wrong.append(f"`{name}` under [{section}]")
                close.append(_nearest_key(section, name))
    if wrong:
        raise ConfigError(
            "unknown name in the configuration" if len(wrong) == 1 else "unknown names in the configuration",
            where=where,
            got="; ".join(wrong),
            expected="; ".join(close),
            hint="every key is listed with its section by `deltaw train --help`",
        )


def _nearest_section(name: str) -> str:
    """Suggest for a section, or for a key that stands outside its section."""
    known = alias_of(name)
    if known is not None:
        return f"{known.name} under [{known.section}]"
    return "a section such as " + nearest(name, SECTIONS, 2)


def _nearest_key(section: str, name: str) -> str:
    """Suggest for a key: itself in its right section, or the closest in this one."""
    known = alias_of(name)
    if known is not None:
        return f"{known.name} under [{known.section}]"
    return "closest: " + nearest(name, (spec.name for spec in specs(SECTIONS[section], section)))


def alias_of(name: str) -> FieldSpec | None:
    """Find the key that another tool's name means.

    Args:
        name: as written, with underscores or dashes.

    Returns:
        Our key, or None.
    """
    plain = name.lstrip("-").replace("-", "_")
    known = ALIASES.get(plain, plain)
    found = [spec for section, group in SECTIONS.items() for spec in specs(group, section) if spec.name == known]
    return found[0] if found else None


def from_values(*layers: Values) -> TrainConfig:
    """Build a configuration from layers of values, later layers winning key by key.

    Args:
        *layers: each section -> key -> value, for example a file and then the flags.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: for unknown names, wrong types and wrong values.
    """
    merged: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for layer in layers:
        check_names(layer, "configuration values")
        for section, table in layer.items():
            merged[section].update(table)
    given = frozenset(f"{section}.{name}" for section, table in merged.items() for name in table)
    return TrainConfig(**{section: group(**merged[section]) for section, group in SECTIONS.items()}, given=given)


def _toml(value: Any) -> str:
    """One TOML value; JSON's strings, numbers and lists are TOML's."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def to_toml(config: TrainConfig) -> str:
    """Write a configuration as a TOML file that ``read_toml`` gives back.

    Args:
        config: the configuration.

    Returns:
        TOML text; fields left to be chosen are left out.
    """
    lines = []
    for section, table in config.values().items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {_toml(value)}" for name, value in table.items() if value is not None]
        lines.append("")
    return "\n".join(lines)
