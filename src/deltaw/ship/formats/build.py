"""From a filled draft to an adapter in PEFT's terms."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deltaw.adapter import METADATA, Adapter
from deltaw.config import LoRAConfig
from deltaw.errors import ConfigError
from deltaw.keys import PREFIX
from deltaw.peft_config import to_peft
from deltaw.ship.formats.draft import Draft, Update, raise_problems

if TYPE_CHECKING:
    from deltaw.ship.formats.contract import Ask, Format

__all__ = ["Imported", "Mapped", "build", "unused"]


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """One line of the report: what became of one name of the file.

    Args:
        origin: the name in the file.
        path: the module it belongs to.
        rank: R.
        scaling: alpha / R; 1 for a tensor that is taken whole.
        shape: (I, O) of an update, the tensor's own shape otherwise.
    """

    origin: str
    path: str
    rank: int
    scaling: float
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A file of others, read.

    Args:
        adapter: the adapter, in PEFT's terms.
        format: name of the importer.
        title: who writes this format.
        reason: why it was taken for this format.
        mapped: every update.
        whole: every tensor taken as it is: heads, biases.
        notes: what a reader should know.
        left: names left aside because the user asked for it.
    """

    adapter: Adapter
    format: str
    title: str
    reason: str
    mapped: tuple[Mapped, ...]
    whole: tuple[Mapped, ...]
    notes: tuple[str, ...]
    left: tuple[str, ...]


def build(draft: Draft, ask: Ask, form: Format, reason: str) -> Imported:
    """Make the adapter, or raise everything that stands in its way.

    Args:
        draft: filled by an importer.
        ask: what the user said.
        form: the importer.
        reason: why it was chosen.

    Returns:
        The adapter and what became of every tensor.

    Raises:
        CheckpointError: if any tensor found no place, or nothing was found.
        ConfigError: if the user said something that made no difference.
    """
    if not draft.updates and not draft.problems:
        draft.problems.append("no low-rank update is in the file")
    _finite(draft)
    raise_problems(draft, _hint(draft))
    unused(draft, ask)
    tensors = _tensors(draft)
    copies = _owners(draft)
    raw = _config(draft, ask, copies)
    own = json.dumps({"imported_from": form.name}, sort_keys=True)
    adapter = Adapter(tensors=tensors, raw=raw, metadata={METADATA: own}, where=draft.where)
    whole = [_line(name, tensor) for name, tensor in sorted(draft.copies.items())]
    whole += [_line(f"{path}.bias", tensor) for path, tensor in sorted(draft.biases.items())]
    return Imported(
        adapter=adapter,
        format=form.name,
        title=form.title,
        reason=reason,
        mapped=tuple(_mapped(path, update) for path, update in sorted(draft.updates.items())),
        whole=tuple(whole),
        notes=tuple(draft.notes),
        left=tuple(draft.left),
    )


def _finite(draft: Draft) -> None:
    for path, update in sorted(draft.updates.items()):
        if not (torch.isfinite(update.lora_A).all() and torch.isfinite(update.lora_B).all()):
            meant = "" if update.origin == path else f", for '{path}',"
            draft.problems.append(f"'{update.origin}'{meant} holds NaN or infinity")


def unused(draft: Draft, ask: Ask) -> None:
    """An option that changed nothing was meant for something."""
    said = {
        "alpha": ask.alpha is not None,
        "enable": ask.enable is not None,
        "part": ask.part is not None,
        "lora_only": ask.lora_only,
    }
    idle = sorted(name for name, given in said.items() if given and name not in draft.used)
    if idle:
        flags = ", ".join("--" + name.replace("_", "-") for name in idle)
        raise ConfigError(
            f"{flags} changes nothing for this file",
            where=flags,
            got=f"{draft.where}, read as {draft.title}",
            expected="only what the file does not say itself",
            hint="leave it out; deltaw inspect shows the scaling that the file states.",
        )


def _tensors(draft: Draft) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path, update in draft.updates.items():
        ends = (".lora_embedding_A", ".lora_embedding_B") if update.table else (".lora_A.weight", ".lora_B.weight")
        found[f"{PREFIX}{path}{ends[0]}"] = update.lora_A
        found[f"{PREFIX}{path}{ends[1]}"] = update.lora_B
        if update.magnitude is not None:
            # (O,), or (1, O, 1, ...) for a convolution, however it was stored
            ones = update.lora_B.dim() - 2
            shape = (1, -1, *(1,) * ones) if ones else (-1,)
            found[f"{PREFIX}{path}.lora_magnitude_vector"] = update.magnitude.reshape(shape)
        if update.bias is not None:
            found[f"{PREFIX}{path}.lora_B.bias"] = update.bias
    for name, tensor in draft.copies.items():
        found[f"{PREFIX}{name}"] = tensor
    for path, tensor in draft.biases.items():
        found[f"{PREFIX}{path}{'.base_layer' if path in draft.updates else ''}.bias"] = tensor
    # views of one storage cannot be written to safetensors
    return {key: found[key].detach().contiguous().clone() for key in sorted(found)}


def _owners(draft: Draft) -> list[str]:
    """The outermost modules that the file holds completely: what PEFT calls ``modules_to_save``."""
    owners = {name.rpartition(".")[0] for name in draft.copies}
    if draft.tree is None:
        return sorted(owners)
    known = {f"{path}.{leaf}" for path, node in draft.tree.nodes.items() for leaf in node.parameters}
    chosen: set[str] = set()
    for owner in sorted(owners):
        parts = owner.split(".")
        ancestors = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
        whole = [a for a in ancestors if _complete(a, known, draft)]
        chosen.add(whole[0] if whole else owner)
    return sorted(chosen)


def _complete(path: str, known: set[str], draft: Draft) -> bool:
    inside = {name for name in known if name.startswith(f"{path}.")}
    return bool(inside) and inside <= draft.copies.keys()


def _config(draft: Draft, ask: Ask, copies: list[str]) -> dict[str, object]:
    sites = {path: (update.rank, update.alpha) for path, update in draft.updates.items()}
    first = next(iter(sites.values()))
    mode = "none"
    if draft.biases:
        mode = "lora_only" if draft.biases.keys() <= draft.updates.keys() else "all"
    dropout = draft.keep.get("lora_dropout", 0.0)
    config = LoRAConfig(
        targets=sorted(sites),
        rank=first[0],
        alpha=first[1],
        bias=mode,
        dropout=dropout if isinstance(dropout, int | float) else 0.0,
    )
    kinds = {_kind(draft, path) for path in sites}
    raw = to_peft(
        config,
        sites,
        present=sorted(sites),
        copies=copies,
        transposed=kinds == {"transposed"},
        foreign={**draft.keep, "base_model_name_or_path": ask.base_name or draft.keep.get("base_model_name_or_path")},
    )
    raw["target_modules"] = _targets(draft)
    if any(update.magnitude is not None for update in draft.updates.values()):
        raw["use_dora"] = True
    if any(update.bias is not None for update in draft.updates.values()):
        raw["lora_bias"] = True
    return raw


def _targets(draft: Draft) -> list[str]:
    """Endings for ``target_modules`` where all modules of the base are known and they mean these alone, else paths.

    PEFT matches an ending against every module, containers too: ``0`` would mean each list's first entry.
    """
    paths = sorted(draft.updates)
    if draft.tree is None:
        return paths
    known = {
        ".".join(parts[:i]) for parts in (p.split(".") for p in draft.tree.nodes) for i in range(1, len(parts) + 1)
    }
    ends = sorted({_ending(path) for path in paths})
    hit = {path for path in known if any(path == end or path.endswith(f".{end}") for end in ends)}
    return ends if hit == set(paths) else paths


def _ending(path: str) -> str:
    """The last name of a path, with what stands before it where it is a number."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def _kind(draft: Draft, path: str) -> str:
    node = draft.node(path)
    return node.kind if node is not None else ""


def _mapped(path: str, update: Update) -> Mapped:
    return Mapped(
        origin=update.origin,
        path=path,
        rank=update.rank,
        scaling=update.alpha / update.rank,
        shape=(update.lora_A[0].numel(), update.lora_B.shape[0]),
    )


def _line(name: str, tensor: Tensor) -> Mapped:
    return Mapped(origin=name, path=name, rank=0, scaling=1.0, shape=tuple(tensor.shape))


_HINTS = (
    ("holds NaN", "the training that wrote it diverged, or the file is damaged; take an earlier checkpoint."),
    (
        "base's own weight",
        "add --lora-only (lora_only=True) to take the updates alone; the rest is listed as left aside.",
    ),
    ("--enable", "for example --enable q,v, or one 0 or 1 per part, --enable 1,0,1; the training script says which."),
    ("the tree holds no", "give the tree of the whole pipeline, or take one component with --part."),
    ("may be any of", "give a tree with sizes (--model DIR), or a --tree FILE without the modules that are not meant."),
    ("but not its", "the file is incomplete: save or download it again."),
    ("have one rank", "the file is damaged, or of another format; say which with --from."),
    ("no module", "check that the model is the one the file was trained on, down to its class (the head's included)."),
    ("do not fit", "check that the model is the one the file was trained on, its sizes included."),
    (
        ": no such parameter",
        "check the model's class, its head included, or add --lora-only to take the updates alone.",
    ),
    ("in the model", "load the base with a head of this size, or add --lora-only to take the updates alone."),
)
"""What to do about a kind of problem, the most telling first."""
_ELSE = "the file holds what PEFT's format has no place for; docs/formats.md says what each importer takes."


def _hint(draft: Draft) -> str:
    text = "\n".join(draft.problems)
    return next((hint for mark, hint in _HINTS if mark in text), _ELSE)
