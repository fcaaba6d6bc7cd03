"""Fitting an adapter's file to a model: every tensor a place, every place a tensor, or one error that says it all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapter import Adapter
from deltaw.errors import CheckpointError, DeltawError, nearest
from deltaw.fingerprint import differences, fingerprint
from deltaw.fit_sites import SiteFitting
from deltaw.functional import all_finite
from deltaw.layers import kind_of
from deltaw.patterns import Matcher, block_indices
from deltaw.settle import Chosen, finish
from deltaw.sites import Plan
from deltaw.ties import storage_key
from deltaw.tree import base_state, called_parts
from deltaw.view import View

__all__ = ["Fit", "fit"]

_SHOWN = 12
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""Heads that PEFT adds to ``modules_to_save`` by task, in some versions without writing them there."""


@dataclass
class Fit:
    """How a file's tensors land in a model.

    Args:
        plan: what to attach.
        tensors: (path, part name) -> the update's tensors by name.
        shared: name -> tensors that all sites read.
        rows: path -> trained rows of a token table, in the order of the plan's ids.
        copies: path -> state dict of a module trained in full.
        biases: path -> trained bias.
        total: number of modules the file speaks of.
        notes: what a reader should know.
    """

    plan: Plan
    tensors: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    copies: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    total: int = 0
    notes: list[str] = field(default_factory=list)


class _Fitting(SiteFitting):
    """One pass over a file; collects problems instead of stopping at the first."""

    def __init__(self, model: nn.Module, adapter: Adapter, allow_other_base: bool) -> None:
        super().__init__(model, adapter)
        self.allow = allow_other_base

    def tied(self, path: str, other: str) -> bool:
        """Whether two modules share their weight in this model."""
        weights: list[Any] = [self.modules[p]._parameters.get("weight") for p in (path, other) if p in self.modules]
        if len(weights) < 2 or any(weight is None for weight in weights):
            return False
        return storage_key(weights[0]) == storage_key(weights[1])

    def finite(self) -> None:
        """Refuse NaN and infinity, and updates that are no floating-point numbers."""
        whole = {id(tensor) for tensor in (*self.contents.rest.values(), *self.contents.base.values())}
        for key, tensor in sorted(self.adapter.tensors.items()):
            if not tensor.is_floating_point():
                if id(tensor) not in whole:
                    self.problems.append(f"'{key}' holds {tensor.dtype}, which no update is made of")
            elif not all_finite(tensor.float()):
                self.problems.append(f"'{key}' holds NaN or infinity")

    def expected(self) -> None:
        """Modules the configuration targets must be in the file; patterns that match nothing are worth a line."""
        config = self.adapter.config
        if config.targets == ("all-linear",):
            return
        prefixes: tuple[str, ...] = ("",)
        if config.layers is not None:
            try:
                prefixes = tuple(block_indices(self.model, config.layers))
            except DeltawError:
                return
        for pattern in config.targets:  # type: ignore[union-attr]
            matcher = Matcher(pattern)
            found = [p for p, m in self.modules.items() if matcher.matches(p, m) and kind_of(m) is not None]
            if not found:
                self.notes.append(f"target {pattern!r} of the file matches nothing in this model")
            # PEFT adapts both projections of an attention
            found += [f"{p}.out_proj" for p in found if isinstance(self.modules[p], nn.MultiheadAttention)]
            for path in found:
                excluded = any(Matcher(p).matches(path, self.modules[path]) for p in config.exclude)  # type: ignore[union-attr]
                if (
                    path not in self.contents.factors
                    and path not in self.contents.vectors
                    and path.startswith(prefixes)
                    and not excluded
                    and not self._saved_whole(path)
                ):
                    self.problems.append(f"'{path}' is a target but has no tensor in the file")

    def _saved_whole(self, path: str) -> bool:
        return any(key.startswith(f"{path}.") for key in self.contents.rest)

    def rest(self) -> None:
        """Full copies and biases: everything that is no factor."""
        mode = self.raw.get("bias", "none")
        for name, tensor in self.contents.base.items():
            path, _, leaf = name.rpartition(".")
            if leaf == "bias" and mode != "none" and (path in self.contents.factors or path in self.contents.vectors):
                self._bias(path, tensor)
            else:
                self._frozen(path, leaf, tensor)
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.contents.rest.items():
            owner = self._owner(name)
            if owner is None:
                self.problems.append(
                    f"tensor '{name}' lands nowhere; nearest: {nearest(name, self._parameter_names(), 2)}"
                )
            else:
                groups.setdefault(owner, {})[name[len(owner) + 1 :]] = tensor
        for path, state in groups.items():
            alone = set(state) == {"bias"} and mode != "none" and path not in self._saved_names()
            if alone:
                self._bias(path, state["bias"])
            elif path in self.own.get("along", ()) and self._is_base(path, state):
                self.notes.append(f"'{path}' is the frozen base's own, written along for PEFT")
            else:
                self._copy(path, state)

    def _parameter_names(self) -> list[str]:
        return [f"{path}.{key}" for path, module in self.modules.items() for key in module._parameters]

    def _saved_names(self) -> set[str]:
        """Paths that ``modules_to_save`` reaches by PEFT's rule: a bare ending."""
        names = (*(self.raw.get("modules_to_save") or ()), *_HEADS.get(str(self.raw.get("task_type")), ()))
        return self._whole(names)

    def _whole(self, names: tuple[str, ...]) -> set[str]:
        found = [path for path in self.modules if path and names and path.endswith(names)]
        return {part for path in found for part in called_parts(path, self.modules[path])}

    def complete(self) -> None:
        """What the configuration says is trained beside the updates must be in the file."""
        named = self._whole(tuple(self.raw.get("modules_to_save") or ()))
        outer = [path for path in named if not any(path.startswith(f"{other}.") for other in named)]
        lacking = [path for path in outer if base_state(self.modules[path]) and not self._saved_whole(path)]
        self.problems += [f"'{path}' is saved in full, but has no tensor in the file" for path in sorted(lacking)]
        if self.raw.get("bias", "none") == "none":
            return
        for path in self.chosen:
            own = self.modules[path]._parameters.get("bias")
            if own is not None and path not in self.biases and path not in self.copies:
                self.problems.append(f"'{path}' trains its bias, but has none in the file")

    def _owner(self, name: str) -> str | None:
        """The outermost module saved in full that holds a tensor, or the module whose own parameter it is."""
        saved = self._saved_names()
        parts = name.split(".")
        prefixes = [".".join(parts[:i]) for i in range(1, len(parts))]
        outer = next((prefix for prefix in prefixes if prefix in saved), None)
        path, leaf = name.rpartition(".")[0], parts[-1]
        module = self.modules.get(outer or path)
        if module is None:
            return None
        known = base_state(module).keys() if outer is not None else module._parameters.keys()
        return (outer or path) if (name[len(outer) + 1 :] if outer is not None else leaf) in known else None

    def _bias(self, path: str, tensor: Tensor) -> None:
        own = self.modules[path]._parameters.get("bias") if path in self.modules else None
        if own is None or own.shape != tensor.shape:
            self.problems.append(f"'{path}.bias' {tuple(tensor.shape)} fits no bias of the model")
        else:
            self.biases[path] = tensor

    def _frozen(self, path: str, leaf: str, tensor: Tensor) -> None:
        """A frozen base tensor that PEFT wrote along: it must be the base's own."""
        own = self.modules[path]._parameters.get(leaf) if path in self.modules else None
        if own is None or own.shape != tensor.shape:
            self.problems.append(f"base tensor '{path}.{leaf}' {tuple(tensor.shape)} fits nothing in the model")
        elif (
            not own.is_meta
            and not torch.allclose(own.detach().float().cpu(), tensor.float(), rtol=1e-2, atol=1e-6)
            and not self.allow
        ):
            self.problems.append(f"base tensor '{path}.{leaf}' in the file is not this base's")
        else:
            self.notes.append(f"'{path}.{leaf}' is a copy of the frozen base that PEFT wrote along")

    def _is_base(self, path: str, state: dict[str, Tensor]) -> bool:
        """Whether tensors are what the base holds, up to the dtype it was loaded in."""
        own = base_state(self.modules[path])
        return state.keys() == own.keys() and all(
            value.shape == own[key].shape
            and (own[key].is_meta or torch.allclose(own[key].float().cpu(), value.float(), rtol=1e-2, atol=1e-6))
            for key, value in state.items()
        )

    def _copy(self, path: str, state: dict[str, Tensor]) -> None:
        own = base_state(self.modules[path])
        missing = sorted(set(own) - set(state))
        wrong = [
            f"{key} {tuple(v.shape)} for {tuple(own[key].shape)}"
            for key, v in state.items()
            if key in own and v.shape != own[key].shape
        ]
        if missing or wrong:
            self.problems.append(
                f"'{path}', saved in full: " + ", ".join([f"no tensor for {key}" for key in missing] + wrong)
            )
        else:
            self.copies[path] = state

    def base(self) -> None:
        """The base's fingerprint."""
        saved = self.own.get("fingerprint")
        if saved is None:
            self.notes.append("the file records no base fingerprint, so the base was not checked")
            return
        lines = differences(saved, fingerprint((path, self.modules[path]) for path in self.chosen))
        if not lines:
            return
        if self.allow:
            self.notes.append(f"another base than recorded: {len(lines)} weights differ, as allowed")
        else:
            self.problems += [f"another base: {line}" for line in lines]


def _twins_of(work: _Fitting) -> str:
    """Tie policy of a file: one update on all users where our metadata says so and the tensors agree."""
    twins: dict[str, str] = work.own.get("twins", {})
    for path, primary in twins.items():
        pair, other = work.contents.factors.get(path), work.contents.factors.get(primary)
        if pair is None or other is None or set(pair) != {0, 1} or set(other) != {0, 1}:
            continue
        if any(tensor.dim() != 2 for tensor in (*pair.values(), *other.values())):
            continue
        kinds = [kind_of(work.modules[p]) for p in (path, primary) if p in work.modules]
        flipped = (
            len(kinds) == 2
            and kinds[0] is not None
            and kinds[1] is not None
            and kinds[0].transposed != kinds[1].transposed
        )
        expected = (other[1].t(), other[0].t()) if flipped else (other[0], other[1])
        if not (torch.equal(pair[0], expected[0]) and torch.equal(pair[1], expected[1])):
            work.problems.append(f"'{path}' and '{primary}' share one update but hold different tensors")
    return "share" if twins else "separate"


def fit(model: nn.Module, adapter: Adapter, *, allow_other_base: bool = False) -> Fit:
    """Find the place of every tensor of an adapter in a model.

    Args:
        model: the base.
        adapter: the adapter.
        allow_other_base: accept a base that differs from the one recorded.

    Returns:
        How the tensors land.

    Raises:
        CheckpointError: with every problem, if anything does not fit.
    """
    work = _Fitting(model, adapter, allow_other_base)
    work.finite()
    work.problems += [f"'{key}' and another key of the file name one place" for key in work.contents.twice]
    work.sites()
    work.rows()
    work.expected()
    work.rest()
    work.complete()
    work.base()
    ties = _twins_of(work)
    if not work.chosen and not work.copies and not work.biases and not work.tokens and not work.problems:
        work.problems.append("the file holds no tensor of an adapter")
    if work.problems:
        shown = work.problems[:_SHOWN] + (
            [f"and {len(work.problems) - _SHOWN} more"] if len(work.problems) > _SHOWN else []
        )
        raise CheckpointError(
            f"the adapter does not fit the model: {len(work.problems)} problem{'s' if len(work.problems) > 1 else ''}",
            where=f"{adapter.where} on {type(model).__name__}",
            got="\n    - ".join(["", *shown]),
            expected="one place for every tensor and one tensor for every place",
            hint=_hint(work),
        )
    for path, primary in work.own.get("twins", {}).items():
        if work.tied(path, primary):
            work.chosen.pop(path, None)
        elif path in work.chosen:
            work.notes.append(f"'{path}' and '{primary}' shared a weight where this was saved, here they do not")
    order = [path for path in work.modules if path in work.chosen]
    biases = [(path, work.modules[path]) for path in work.modules if path in work.biases]
    copies = [path for path in work.modules if path in work.copies]
    config = adapter.config.replace(ties=ties, train_rows=work.tokens, variant=work.variant)
    chosen = Chosen({path: work.chosen[path] for path in order}, copies, biases, work.tokens, rows_ties="share")
    made = finish(View(model), config, chosen)
    total = len(work.contents.factors) + len(work.contents.vectors) + len(copies) + len(work.tokens)
    return Fit(
        plan=made,
        tensors=work.tensors,
        shared=work.contents.shared,
        rows=work.token_rows,
        copies=work.copies,
        biases=work.biases,
        total=total - len(work.contents.factors.keys() & set(work.own.get("unworn", ()))),
        notes=work.notes + list(made.notes),
    )


def _hint(work: _Fitting) -> str:
    base = work.raw.get("base_model_name_or_path")
    named = f" (the adapter names {base})" if base else ""
    if any("another base" in problem for problem in work.problems):
        return f"load the base it was trained on{named}, or pass allow_other_base=True (--allow-other-base)."
    if any("holds NaN" in problem for problem in work.problems):
        return "the training that wrote it diverged, or the file is damaged; take an earlier checkpoint."
    if any("deltaw noted" in problem for problem in work.problems):
        return "its tensors were changed; without the entry 'deltaw' in its metadata it reads as any PEFT file."
    if any("no module 'base_model." in problem for problem in work.problems):
        return "the file's keys carry a prefix twice; save it again from the unwrapped model."
    return f"check that base and adapter belong together{named}, or copy the adapter again."
