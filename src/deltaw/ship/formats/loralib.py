"""microsoft/LoRA: a state dict with ``X.lora_A`` and ``X.lora_B``, and whatever else was trained beside.

Linear: A (r, I), B (O, r). Embedding: A (r, V), B (D, r). MergedLinear: A (n * r, I), B (O / len * n, r) for the n
enabled of len parts. Conv2d: A (r * k, I * k), B (O / groups * k, r * k), whose product is reshaped to the weight.
Neither alpha, nor the kind of layer, nor the enabled parts are stored, unless deltaw's own face wrote the file.

Source: microsoft/LoRA, loralib/layers.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deltaw.loralib.files import told
from deltaw.ship.formats.contract import Ask, Format, Source, need_alpha
from deltaw.ship.formats.draft import Draft, Update, zero_blocked
from deltaw.ship.formats.litgpt import STEM
from deltaw.ship.formats.peft import enabled_rows
from deltaw.ship.formats.tree import Node

__all__ = ["LORALIB"]

_A, _B = ".lora_A", ".lora_B"


def _detect(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
    stems = [key.removesuffix(_B) for key in tensors if key.endswith(_B)]
    if "lora_r" in config or not stems or any(STEM.fullmatch(stem) for stem in stems):
        return None
    return f"keys end in {_A!r} and {_B!r}, without '.weight'"


def _read(source: Source, ask: Ask, draft: Draft) -> None:
    factors: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in sorted(source.tensors.items()):
        path, dot, leaf = key.rpartition(".")
        if leaf in ("lora_A", "lora_B") and dot:
            factors.setdefault(path, {})[leaf] = tensor
        else:
            rest[key] = tensor
    notes, _ = told(source.metadata, source.stated, source.path)
    alphas = {path: float(note["lora_alpha"]) for path, note in notes.items() if "lora_alpha" in note}
    if not factors.keys() <= alphas.keys():
        alphas = {**dict.fromkeys(factors, need_alpha(ask, draft, "loralib")), **alphas}
    if draft.tree is None or not any(node.kind for node in draft.tree.nodes.values()):
        draft.notes.append(
            "no model says what kind a layer is: every pair was taken as a Linear's, an Embedding's would look the same"
        )
    for path, parts in factors.items():
        pair = draft.pair(path, parts.get("lora_A"), parts.get("lora_B"))
        if pair is not None:
            enable = notes.get(path, {}).get("enable_lora")
            said = ask if enable is None else replace(ask, enable=tuple(enable))
            _add(draft, said, path, pair, alphas[path])
    _beside(draft, ask, rest, set(factors))


def _add(draft: Draft, ask: Ask, path: str, pair: tuple[Tensor, Tensor], alpha: float) -> None:
    lora_A, lora_B = pair
    node = draft.node(path)
    if lora_A.dim() > 2:  # deltaw's own convolutions
        draft.add(path, Update(lora_A=lora_A, lora_B=lora_B, alpha=alpha, origin=path))
        return
    if node is not None and len(node.shape) > 2:
        made = _convolution(lora_A, lora_B, node)
        if made is None:
            draft.problems.append(
                f"'{path}': A {tuple(lora_A.shape)} and B {tuple(lora_B.shape)} are no update of a {node}"
            )
            return
        rank = lora_A.shape[0] // node.kernel[-1]
        draft.notes.append(f"'{path}': loralib reshapes B A to the kernel; as a convolution it has rank {len(made[0])}")
        draft.add(path, Update(lora_A=made[0], lora_B=made[1], alpha=alpha * len(made[0]) / rank, origin=path))
        return
    rank, parts = lora_B.shape[1], _parts(draft, ask, path, pair)
    if parts is None:
        return
    if len(parts) > 1:
        out = lora_B.shape[0] // sum(parts) * len(parts)
        lora_A, lora_B = zero_blocked(lora_A, lora_B, enabled_rows(parts, out), out)
    draft.add(path, Update(lora_A=lora_A, lora_B=lora_B, alpha=alpha * lora_A.shape[0] / rank, origin=path))


def _parts(draft: Draft, ask: Ask, path: str, pair: tuple[Tensor, Tensor]) -> tuple[bool, ...] | None:
    """The enabled parts of a MergedLinear; (True,) for a plain layer; None after noting a problem."""
    (stacked, width), (rows, rank) = pair[0].shape[:2], pair[1].shape[:2]
    number = stacked // rank if rank else 0
    if number == 0 or rows == 0 or stacked % rank or rows % number:
        draft.problems.append(f"'{path}': A ({stacked}, {width}) and B ({rows}, {rank}) do not have one rank")
        return None
    node = draft.node(path)
    # where the input's width or the share of the output is not right, the common check says so
    outputs = [o for o in node.outputs_from(width) if o >= rows and o % (rows // number) == 0] if node else []
    if number == 1 and (not outputs or rows in outputs):
        return (True,)
    if rows in outputs or (node is not None and node.shape and not outputs):
        return (True,) * number
    if ask.enable is None:
        draft.problems.append(
            f"'{path}': {number} part{'s' if number > 1 else ''} of a fused projection"
            + (f" with {outputs[0] * number // rows}" if outputs else "")
            + "; which, the file does not say: --enable"
        )
        return None
    draft.used.add("enable")
    fits = not outputs or rows // number * len(ask.enable) in outputs
    if sum(ask.enable) != number or not fits:
        draft.problems.append(
            f"'{path}': --enable names {sum(ask.enable)} of {len(ask.enable)} parts, the tensors hold {number}"
            + ("" if fits else f" of {' or '.join(str(o * number // rows) for o in outputs)}")
        )
        return None
    return ask.enable


def _convolution(lora_A: Tensor, lora_B: Tensor, node: Node) -> tuple[Tensor, Tensor] | None:
    """The same update as factors of a convolution.

    The rows of B A that make up one output channel are k consecutive ones, so B falls into k matrices, and A is met
    k times at another place of the kernel: rank k * (r * k). Where that is more than the number of channels, or the
    channels come in groups, the update itself is A and B is one.
    """
    out, kernel, groups = node.shape[0], node.shape[2:], node.groups
    size = math.prod(node.shape[1:])
    if lora_A.shape[0] != lora_B.shape[1] or lora_B.shape[0] * lora_A.shape[1] != out * size:
        return None
    ones = (1,) * len(kernel)
    repeat = lora_B.shape[0] // out
    if groups == 1 and repeat * out == lora_B.shape[0] and repeat * len(lora_A) < out:
        wide = torch.kron(torch.eye(repeat, dtype=lora_A.dtype), lora_A)
        blocks = lora_B.reshape(out, repeat * lora_B.shape[1])
        return wide.reshape(len(wide), *node.shape[1:]), blocks.reshape(*blocks.shape, *ones)
    whole = (lora_B.double() @ lora_A.double()).to(lora_A.dtype).reshape(node.shape)
    one = torch.eye(out // groups, dtype=lora_A.dtype).repeat(groups, 1)
    return whole, one.reshape(out, out // groups, *ones)


def _beside(draft: Draft, ask: Ask, rest: dict[str, Tensor], adapted: set[str]) -> None:
    """Heads and biases; the base's own weights are refused, or left aside where that was asked for."""
    if ask.lora_only and rest:
        draft.used.add("lora_only")
        draft.left.extend(sorted(rest))
        return
    frozen = sorted(path for path in adapted if f"{path}.weight" in rest)
    if frozen:
        draft.problems.append(
            f"the base's own weight of {len(frozen)} adapted modules is in the file ('{frozen[0]}.weight', ...): "
            "it is a checkpoint of the whole model"
        )
        return
    whole = {key.rpartition(".")[0] for key in rest if not key.endswith(".bias")}
    for key, tensor in rest.items():
        path, _, leaf = key.rpartition(".")
        node = draft.node(path)
        known = node.parameters.get(leaf) if node is not None else None
        if draft.tree is not None and known != tuple(tensor.shape):
            got = "no such parameter in the model" if known is None else f"{tuple(known)} in the model"
            names = [f"{p}.{name}" for p, n in draft.tree.nodes.items() for name in n.parameters]
            draft.strays([key], names if known is None else [], f"{tuple(tensor.shape)}: {got}")
        elif leaf == "bias" and path not in whole:
            draft.biases[path] = tensor
        else:
            draft.copies[key] = tensor


LORALIB = Format(name="loralib", title="loralib (microsoft/LoRA)", detect=_detect, read=_read)
"""microsoft/LoRA's state dicts."""
