"""PEFT's own directories: today's as they are, and those of the ``enable_lora`` era with a grouped B.

In PEFT 0.2 a target with ``enable_lora`` became a MergedLinear: A of shape (n * r, I), B of shape (O / len * n, r, 1)
is the kernel of a grouped convolution over the n enabled parts, which lie one after the other in the output. It is
the plain LoRA of the stacked A and a B that is zero outside its blocks. Later versions of PEFT cannot read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from deltaw.errors import CheckpointError
from deltaw.keys import PREFIX
from deltaw.peft_config import alpha_for
from deltaw.ship.formats.contract import Ask, Format, Source, need_alpha
from deltaw.ship.formats.draft import Draft, Update, index_of, zero_blocked

__all__ = ["GROUPED", "PLAIN", "enabled_rows"]

_A, _B = ".lora_A.weight", ".lora_B.weight"
_TABLE = (".lora_embedding_A", ".lora_embedding_B")
_MAGNITUDE, _BIAS = ".lora_magnitude_vector", ".lora_B.bias"
_METHOD = frozenset({"enable_lora", "lora_alpha", "r", "target_modules", "merge_weights", "modules_to_save", "bias"})
"""Fields that the conversion writes itself, or that mean nothing without MergedLinear."""


def enabled_rows(enable: tuple[bool, ...], out: int) -> list[Tensor]:
    """Rows of the enabled parts, where equal parts lie one after the other.

    Args:
        enable: one bool per part.
        out: O, rows of the whole weight.

    Returns:
        One index per enabled part.

    Example:
        >>> [rows.tolist() for rows in enabled_rows((True, False, True), 6)]
        [[0, 1], [4, 5]]
    """
    width = out // len(enable)
    return [index_of(i * width, (i + 1) * width) for i, on in enumerate(enable) if on]


def _is_grouped(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    return bool(config.get("enable_lora")) or any(
        key.endswith(_B) and tensor.dim() == 3 and tensors.get(key.removesuffix(_B) + _A, tensor).dim() == 2
        for key, tensor in tensors.items()
    )


def _speaks_peft(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> bool:
    ends = (_A, _B, *_TABLE)
    named = any(key.startswith(PREFIX) and key.endswith(ends) for key in tensors)
    return named or ("peft_type" in config and any(key.endswith(ends) for key in tensors))


def _detect_plain(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    if not _speaks_peft(tensors, config) or _is_grouped(tensors, config):
        return None
    return f"keys begin with {PREFIX!r} and end in {_A!r}"


def _detect_grouped(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    if not _speaks_peft(tensors, config) or not _is_grouped(tensors, config):
        return None
    stated = config.get("enable_lora")
    return f"enable_lora is {stated} in adapter_config.json" if stated else "lora_B is the kernel of a convolution"


def _read_plain(source: Source, ask: Ask, draft: Draft) -> None:
    """Tensors without a configuration: PEFT's keys alone."""
    found = _sorted(source, draft)
    for path, parts in sorted(found.items()):
        ends = (_A, _B) if _A in parts or _B in parts else _TABLE
        pair = draft.pair(path, parts.get(ends[0]), parts.get(ends[1]))
        if pair is None or not draft.same_rank(path, pair):
            continue
        draft.add(
            path,
            Update(
                lora_A=pair[0],
                lora_B=pair[1],
                alpha=_alpha(source, ask, draft, path),
                origin=path,
                table=ends is _TABLE,
                magnitude=parts.get(_MAGNITUDE),
                bias=parts.get(_BIAS),
            ),
        )


def _read_grouped(source: Source, ask: Ask, draft: Draft) -> None:
    enable = _enabled(source, ask, draft)
    draft.keep.update({key: value for key, value in source.config.items() if key not in _METHOD})
    draft.notes.append(
        f"enable_lora {[*map(bool, enable)]}: equal thirds of the output, one after the other, as PEFT 0.2 applied it"
        if len(enable) == 3
        else f"enable_lora {[*map(bool, enable)]}: {len(enable)} equal parts of the output, as PEFT 0.2 applied it"
    )
    for path, parts in sorted(_sorted(source, draft).items()):
        pair = draft.pair(path, parts.get(_A), parts.get(_B))
        if pair is None:
            continue
        draft.strays(
            [f"{path}{end}" for end in sorted(set(parts) - {_A, _B})], [], "is unknown to PEFT's grouped layout"
        )
        alpha = _alpha(source, ask, draft, path)
        _add_grouped(draft, path, pair, alpha, enable)


def _add_grouped(draft: Draft, path: str, pair: tuple[Tensor, Tensor], alpha: float, enable: tuple[bool, ...]) -> None:
    """One module: a grouped B becomes a zero-blocked one, a plain B stays."""
    lora_A, lora_B = pair[0], pair[1].squeeze(-1) if pair[1].dim() == 3 else pair[1]
    number, rank = sum(enable), lora_B.shape[1]
    if pair[1].dim() == 3 or lora_A.shape[0] != rank:
        if lora_A.shape[0] != number * rank or lora_B.shape[0] % number:
            draft.problems.append(
                f"'{path}': A {tuple(lora_A.shape)} and B {tuple(pair[1].shape)} are not of {number} enabled parts"
            )
            return
        out = lora_B.shape[0] // number * len(enable)
        lora_A, lora_B = zero_blocked(lora_A, lora_B, enabled_rows(enable, out), out)
        alpha = alpha * lora_A.shape[0] / rank
    draft.add(path, Update(lora_A=lora_A, lora_B=lora_B, alpha=alpha, origin=path))


def _enabled(source: Source, ask: Ask, draft: Draft) -> tuple[bool, ...]:
    stated = source.config.get("enable_lora")
    if isinstance(stated, list) and stated and all(isinstance(on, bool) for on in stated) and any(stated):
        return tuple(stated)
    if ask.enable is not None:
        draft.used.add("enable")
        return ask.enable
    raise CheckpointError(
        "which parts of the fused projection were trained is not known",
        where=draft.where,
        got=f"a grouped lora_B, enable_lora {stated!r}",
        expected="one true or false per part",
        hint="give it: --enable q,v, or one 0 or 1 per part, --enable 1,0,1.",
    )


def _alpha(source: Source, ask: Ask, draft: Draft, path: str) -> float:
    stated = source.config.get("lora_alpha")
    if isinstance(stated, int | float) and not isinstance(stated, bool):
        return alpha_for(dict(source.config), path)
    return need_alpha(ask, draft, "PEFT without its adapter_config.json")


def _sorted(source: Source, draft: Draft) -> dict[str, dict[str, Tensor]]:
    """Factors by path; biases and full copies go to the draft at once."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(source.tensors.items()):
        name = key.removeprefix(PREFIX)
        for end in (_A, _B, *_TABLE, _MAGNITUDE, _BIAS):
            if name.endswith(end):
                found.setdefault(name.removesuffix(end), {})[end] = tensor
                break
        else:
            name = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            if name.endswith(".bias") and source.config.get("bias", "none") != "none":
                draft.biases[name.removesuffix(".bias")] = tensor
            else:
                draft.copies[name] = tensor
    return found


PLAIN = Format(name="peft", title="PEFT", detect=_detect_plain, read=_read_plain)
"""Today's PEFT; a complete directory is taken as it is."""
GROUPED = Format(name="peft-grouped", title="PEFT of 2023 (enable_lora)", detect=_detect_grouped, read=_read_grouped)
"""PEFT 0.2 with ``enable_lora``."""
