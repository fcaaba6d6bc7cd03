"""LoRAConfig and PEFT's ``adapter_config.json``, both ways.

What PEFT can write and deltaw cannot apply is refused here, by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deltaw.config import LoRAConfig
from deltaw.errors import CheckpointError
from deltaw.variants import variant_of

__all__ = ["FIELDS", "alpha_for", "from_peft", "is_vera", "stated_rank", "to_peft", "unknown_fields"]

_FLAGS = {"dora": "use_dora", "lora_bias": "lora_bias"}
"""Fields by which PEFT names a variant."""
_METHODS = ("LORA", "VERA")
_NOTHING = "dummy-target-modules"
"""PEFT's word for an adapter without any low-rank site."""
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_REFUSED = {
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA",
    "target_parameters": "LoRA on raw parameters",
    "layer_replication": "replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow routing",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
    "megatron_config": "Megatron layers",
    "enable_lora": "the grouped layout of 2023 (enable_lora)",
}
FIELDS = frozenset(
    {
        "alpha_pattern", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out", "inference_mode",
        "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "modules_to_save",
        "peft_type", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
        "d_initial", "init_weights", "lora_bias", "projection_prng_key", "save_projection", "trainable_token_indices",
        "use_dora", "vera_dropout",
    }
)  # fmt: skip
"""Fields that deltaw reads or writes itself."""
_NEUTRAL = frozenset(
    {
        "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "loftq_config", "lora_ga_config",
        "megatron_core", "peft_version", "qalora_group_size", "runtime_config",
    }
)  # fmt: skip
"""Fields that say how an adapter came to be, or act only beside a field that is refused."""


def _bad(where: str, field: str, got: object, expected: str, hint: str) -> CheckpointError:
    return CheckpointError(
        f"adapter_config.json: {field} cannot be used", where=where, got=repr(got), expected=expected, hint=hint
    )


def _refuse(raw: dict[str, Any], where: str) -> None:
    """Refuse what changes the meaning of the tensors in a way that deltaw does not apply."""
    method = str(raw.get("peft_type", "")).upper()
    if method not in _METHODS:
        raise _bad(where, "peft_type", raw.get("peft_type"), "'LORA' or 'VERA'", "this file is of another method.")
    if method == "VERA" and not raw.get("save_projection", True):
        hint = "save it again with save_projection=True."
        raise _bad(where, "save_projection", False, "the shared matrices in the file", hint)
    for field, name in _REFUSED.items():
        if raw.get(field):
            grouped = field == "enable_lora"
            hint = "deltaw convert makes a plain LoRA of it." if grouped else f"{name} is not applied by deltaw yet."
            raise _bad(where, field, raw[field], f"a file without {name}", hint)
    init = raw.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_CHANGED_BASE):
        hint = "convert it to a plain LoRA with the tool that wrote it; its base is not the public one."
        raise _bad(where, "init_lora_weights", init, "an initialization that leaves the base as it was", hint)


def _number(raw: dict[str, Any], key: str, default: float, where: str) -> float:
    value = raw.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise _bad(where, key, value, "a number", "the file is damaged or was edited.")
    return value


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _check_values(raw: dict[str, Any], where: str) -> None:
    """Refuse values of a kind that PEFT never writes."""
    hint = "the file is damaged or was edited."
    for key, kind in (("rank_pattern", int), ("alpha_pattern", int | float)):
        found = raw.get(key) or {}
        if not isinstance(found, dict) or not all(type(v) is not bool and isinstance(v, kind) for v in found.values()):
            raise _bad(where, key, found, "an object of numbers", hint)
        if not all(map(_is_regex, found)):
            raise _bad(where, key, found, "keys that are regular expressions", hint)
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        found = raw.get(key) or []
        text = isinstance(found, str) and key != "modules_to_save"
        if not text and not (isinstance(found, list) and all(isinstance(name, str) for name in found)):
            raise _bad(
                where, key, found, "a list of names" + (" or a string" if key != "modules_to_save" else ""), hint
            )
        if text and not _is_regex(str(found)):
            raise _bad(where, key, found, "a regular expression", hint)
    layers = raw.get("layers_to_transform")
    indices = layers if isinstance(layers, list) else [0 if layers is None else layers]
    if not all(type(index) is int for index in indices):
        raise _bad(where, "layers_to_transform", layers, "whole numbers", hint)
    if type(raw.get("r", 8)) is not int:
        raise _bad(where, "r", raw["r"], "a whole number", hint)
    rows = raw.get("trainable_token_indices") or []
    lists = list(rows.values()) if isinstance(rows, dict) else [rows]
    if not all(isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids) for ids in lists):
        raise _bad(where, "trainable_token_indices", rows, "token ids, or lists of them by module name", hint)


def _patterns(value: Any) -> tuple[str, ...]:
    """PEFT's list is of exact names and suffixes; its string is a regular expression for the whole path."""
    if not value:
        return ()
    if isinstance(value, str):
        return ("all-linear",) if value == "all-linear" else (f"re:{value}",)
    return tuple(sorted(str(name) for name in value))


def _keyed(value: Any) -> dict[str, Any]:
    """PEFT's pattern keys are regular expressions for the end of a path."""
    return {f"re:(.*\\.)?({key})": number for key, number in (value or {}).items()}


def is_vera(raw: Mapping[str, Any]) -> bool:
    """Whether a configuration is VeRA's, which PEFT counts as another method.

    Args:
        raw: the parsed file.

    Returns:
        True for VeRA.
    """
    return str(raw.get("peft_type", "")).upper() == "VERA"


def stated_rank(raw: Mapping[str, Any], path: str | None = None) -> int:
    """Rank as a configuration states it, by PEFT's rules and defaults.

    Args:
        raw: the parsed file.
        path: a module's path, for its own rank.

    Returns:
        The rank.

    Example:
        >>> stated_rank({"r": 4, "rank_pattern": {"k_proj": 2}}, "h.0.k_proj")
        2
    """
    for key, rank in (raw.get("rank_pattern") or {}).items() if path is not None else ():
        if re.match(rf"(.*\.)?({key})$", path or ""):
            return int(rank)
    return int(raw.get("r", 256 if is_vera(raw) else 8))


def _variant(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Variants that a configuration names."""
    if is_vera(raw):
        return ("vera",)
    return ("lora", *(name for name, flag in _FLAGS.items() if raw.get(flag)))


def from_peft(raw: dict[str, Any], where: str) -> LoRAConfig:
    """Read PEFT's configuration.

    Args:
        raw: the parsed file.
        where: its path, for messages.

    Returns:
        The configuration in deltaw's terms.

    Raises:
        CheckpointError: if it is of another method, uses what deltaw cannot apply, or is damaged.

    Example:
        >>> from_peft({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}, "here").rank
        4
    """
    _refuse(raw, where)
    _check_values(raw, where)
    also = _patterns(raw.get("modules_to_save"))
    empty, vera = raw.get("target_modules") == _NOTHING, is_vera(raw)
    try:
        return LoRAConfig(
            targets=("all-linear",) if empty else _patterns(raw.get("target_modules")) or ("all-linear",),
            rank=0 if empty else stated_rank(raw),
            alpha=stated_rank(raw) if vera else _number(raw, "lora_alpha", 8, where),
            dropout=_number(raw, "vera_dropout" if vera else "lora_dropout", 0.0, where),
            rank_stabilized=bool(raw.get("use_rslora", False)),
            init="gaussian" if raw.get("init_lora_weights") == "gaussian" else "kaiming",
            exclude=_patterns(raw.get("exclude_modules")),
            layers=raw.get("layers_to_transform"),
            rank_pattern=_keyed(raw.get("rank_pattern")),
            alpha_pattern=_keyed(raw.get("alpha_pattern")),
            bias="lora_only" if raw.get("bias") == "vera_only" else raw.get("bias", "none"),
            train_also=also,
            train_rows=dict(rows) if isinstance(rows := raw.get("trainable_token_indices") or {}, dict) else {},
            variant=_variant(raw),
            seed=raw.get("projection_prng_key", 0) if vera else None,
            ties="separate",
        )
    except CheckpointError:
        raise
    except ValueError as error:
        hint = "the file is damaged or was edited."
        raise _bad(where, "a field", str(error).splitlines()[0], "valid values", hint) from error


def unknown_fields(raw: dict[str, Any]) -> list[str]:
    """Fields that are set and that deltaw has never heard of; they might change what the tensors mean.

    Args:
        raw: the parsed file.

    Returns:
        Sorted names.

    Example:
        >>> unknown_fields({"r": 8, "use_future": True, "use_past": False})
        ['use_future']
    """
    return sorted(key for key, value in raw.items() if value and key not in FIELDS | _NEUTRAL | set(_REFUSED))


def alpha_for(raw: dict[str, Any], path: str) -> float:
    """Alpha of one module by PEFT's rule: the first pattern that matches the end of its path.

    Args:
        raw: the parsed file.
        path: module path.

    Returns:
        Alpha.

    Example:
        >>> alpha_for({"lora_alpha": 8, "alpha_pattern": {"k_proj": 4}}, "h.0.k_proj")
        4
    """
    for key, alpha in (raw.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return float(alpha) if not isinstance(alpha, int) else alpha
    return raw.get("lora_alpha", 8)  # type: ignore[no-any-return]


def _anchored(path: str) -> str:
    """A pattern key that means this path alone, not every path that ends like it."""
    return "^" + re.escape(path)


def _common(values: list[float]) -> float:
    return max(sorted(set(values)), key=values.count)


def _targets(paths: list[str], present: list[str]) -> list[str] | str:
    """Names for ``target_modules``: suffixes where they mean exactly these modules, a regular expression otherwise."""
    leaves = sorted({path.rpartition(".")[2] for path in paths})
    hit = [path for path in present if any(path == leaf or path.endswith(f".{leaf}") for leaf in leaves)]
    if set(hit) == set(paths):
        return leaves
    return "(" + "|".join(re.escape(path) for path in sorted(paths)) + ")"


def to_peft(
    config: LoRAConfig,
    sites: dict[str, tuple[int, float]],
    *,
    present: list[str],
    copies: list[str],
    transposed: bool,
    foreign: dict[str, Any],
    tokens: Mapping[str, list[int]] | None = None,
) -> dict[str, Any]:
    """Write PEFT's configuration for an adapter as it stands.

    Args:
        config: the adapter's configuration.
        sites: path -> (rank, alpha) as they are in the file.
        present: paths of all modules of the base, to tell whether a suffix is exact.
        copies: paths of modules trained in full.
        transposed: whether adapted weights are stored as (in, out).
        foreign: fields kept from the file the adapter came from.
        tokens: path -> token ids of trained rows.

    Returns:
        A dictionary ready for JSON.
    """
    own = _lora_fields(config, sites) if variant_of(config.variant).scaled else _vera_fields(config)
    return {
        **foreign,
        **own,
        "task_type": foreign.get("task_type"),
        "base_model_name_or_path": foreign.get("base_model_name_or_path"),
        "revision": foreign.get("revision"),
        "inference_mode": True,
        "fan_in_fan_out": transposed,
        "target_modules": _targets(list(sites), present) if sites else _NOTHING,
        "modules_to_save": sorted(copies) or None,
        **({"trainable_token_indices": {p: tokens[p] for p in sorted(tokens)}} if tokens else {}),
    }


def _lora_fields(config: LoRAConfig, sites: dict[str, tuple[int, float]]) -> dict[str, Any]:
    ranks = [rank for rank, _ in sites.values()]
    alphas = [alpha for _, alpha in sites.values()]
    rank, alpha = (int(_common(list(ranks))), _common(alphas)) if sites else (max(config.rank, 1), config.alpha)
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "use_rslora": config.rank_stabilized,
        "lora_dropout": config.dropout,
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
        "bias": config.bias,
        "rank_pattern": {_anchored(p): r for p, (r, _) in sorted(sites.items()) if r != rank},
        "alpha_pattern": {_anchored(p): a for p, (_, a) in sorted(sites.items()) if a != alpha},
        **{flag: True for name, flag in _FLAGS.items() if name in config.variant},
    }


def _vera_fields(config: LoRAConfig) -> dict[str, Any]:
    return {
        "peft_type": "VERA",
        "r": config.rank,
        "vera_dropout": config.dropout,
        "projection_prng_key": 0 if config.seed is None else config.seed,
        "save_projection": True,
        "bias": "vera_only" if config.bias == "lora_only" else config.bias,
    }
