"""Fitting an adapter's file to a model: every tensor a place, every place a tensor, or one error that says it all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapter import Adapter
from deltaw.errors import CheckpointError, DeltawError, nearest
from deltaw.fingerprint import differences, fingerprint
from deltaw.functional import scaling_of
from deltaw.keys import SHARED, Contents
from deltaw.layers import Kind, kind_of
from deltaw.layers.slices import Ranges
from deltaw.patterns import Matcher, block_indices
from deltaw.peft_config import alpha_for, is_vera, stated_rank
from deltaw.settle import Choice, Chosen, finish
from deltaw.sites import Part, Plan
from deltaw.stack import Stack, split, unstacked
from deltaw.ties import storage_key
from deltaw.tree import base_modules, base_state
from deltaw.variants import VARIANTS, variant_of
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


class _Fitting:
    """One pass over a file; collects problems instead of stopping at the first."""

    def __init__(self, model: nn.Module, adapter: Adapter, allow_other_base: bool) -> None:
        self.model, self.adapter, self.allow = model, adapter, allow_other_base
        self.raw, self.own = dict(adapter.raw), adapter.own
        self.contents: Contents = adapter.contents
        self.modules = dict(base_modules(model))
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.chosen: dict[str, Choice] = {}
        self.tensors: dict[tuple[str, str], dict[str, Tensor]] = {}
        self.tokens: dict[str, tuple[int, ...]] = {}
        self.token_rows: dict[str, Tensor] = {}
        self.stabilized = bool(self.raw.get("use_rslora", False))
        own = self.own.get("variant", ())
        extra = tuple(name for name in own if name in VARIANTS) if isinstance(own, list) else ()
        self.variant = variant_of((*adapter.config.variant, *extra)).names
        self.copies: dict[str, dict[str, Tensor]] = {}
        self.biases: dict[str, Tensor] = {}

    def tied(self, path: str, other: str) -> bool:
        """Whether two modules share their weight in this model."""
        weights: list[Any] = [self.modules[p]._parameters.get("weight") for p in (path, other) if p in self.modules]
        if len(weights) < 2 or any(weight is None for weight in weights):
            return False
        return storage_key(weights[0]) == storage_key(weights[1])

    def finite(self) -> None:
        """Refuse NaN and infinity."""
        for key, tensor in sorted(self.adapter.tensors.items()):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                self.problems.append(f"'{key}' holds NaN or infinity")

    def sites(self) -> None:
        """Every pair of factors needs a module of its kind and size."""
        for path, pair in self.contents.factors.items():
            module = self.modules.get(path)
            kind = kind_of(module) if module is not None else None
            if module is None:
                names = [p for p, m in self.modules.items() if kind_of(m) is not None]
                self.problems.append(f"no module '{path}' in the model; nearest: {nearest(path, names, 2)}")
            elif kind is None or kind.suffixes != self.contents.suffixes[path]:
                self.problems.append(f"'{path}' is a {type(module).__name__}, which these tensors do not fit")
            elif set(pair) != {0, 1}:
                self.problems.append(
                    f"'{path}' has lora_{'A' if 0 in pair else 'B'} but no lora_{'B' if 0 in pair else 'A'}"
                )
            elif path not in self.own.get("unworn", ()):
                self._site(path, module, kind, *kind.unpack(module, pair[0], pair[1]))
        for path in sorted(set(self.contents.extras) - set(self.contents.factors)):
            self.problems.append(f"'{path}' has {', '.join(self.contents.extras[path])} but no factors")
        self._vectors()

    def _site(self, path: str, module: nn.Module, kind: Kind, lora_A: Tensor, lora_B: Tensor) -> None:
        rank = lora_A.shape[0] if lora_A.dim() > 1 else 0
        n_in, n_out = kind.sizes(module)
        fits = kind.shapes(module, rank, n_in, n_out)
        if lora_A.numel() == 0 and self.contents.factors[path][0].numel():
            self.problems.append(f"'{path}': A mixes the groups of a grouped convolution, so it has no update here")
            return
        if not rank or rank % kind.groups(module) or (tuple(lora_A.shape), tuple(lora_B.shape)) != fits:
            found = f"A {tuple(lora_A.shape)} and B {tuple(lora_B.shape)}"
            self.problems.append(f"'{path}': {found} do not fit a {n_in} -> {n_out} layer")
            return
        stated = stated_rank(self.raw, path)
        if stated != rank:
            self.problems.append(f"'{path}': rank {rank} in the tensors, {stated} in adapter_config.json")
            return
        extras = self._extras(path, n_out)
        if extras is None:
            return
        alpha = alpha_for(self.raw, path)
        stack = Stack(lora_A, lora_B, scaling_of(rank, alpha, self.stabilized), extras, alpha)
        try:
            self._parts(path, n_out, stack)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            self.problems.append(f"'{path}': what deltaw noted about it in the metadata is damaged ({error!r})")

    def _extras(self, path: str, width: int) -> dict[str, Tensor] | None:
        """What the file's variant keeps beside the factors: all of it, and nothing else."""
        wanted = set(self.variant) & {"dora", "lora_bias"}
        names = {{"dora": "magnitude", "lora_bias": "bias_B"}[name] for name in wanted}
        found = self.contents.extras.get(path, {})
        for name in sorted(names ^ set(found)):
            self.problems.append(
                f"'{path}' has no {name}, which the configuration asks for"
                if name in names
                else f"'{path}' has a {name}, which the configuration does not speak of"
            )
        wrong = [name for name in sorted(names & set(found)) if found[name].numel() != width]
        self.problems += [f"'{path}': {name} has {found[name].numel()} values, not {width}" for name in wrong]
        if wrong or names ^ set(found):
            return None
        return {name: tensor.reshape(-1) for name, tensor in found.items()}

    def _parts(self, path: str, width: int, stack: Stack) -> None:
        """Parts of one site: one, or the slices that our metadata describes."""
        said = self.own.get("slices", {}).get(path)
        padded = self.own.get("padded", {}).get(path)
        started = self.own.get("starts", {}).get(path)
        if padded is not None:
            rank, factor = int(padded["rank"]), stack.scaling / padded["scaling"]
            B = stack.lora_B[:, :rank]
            stack = Stack(stack.lora_A[:rank], B if factor == 1 else B * factor, padded["scaling"], stack.extras)
            stack.alpha = padded["alpha"] or stack.numerator(self.stabilized)
        if said:
            found = []
            for note, tensors in unstacked(stack, said):
                rows = tuple((int(a), int(b)) for a, b in note["rows"])
                sizes = (int(note["rank"]), note["alpha"], note["scaling"], len(tensors["lora_B"]))
                found.append(self._part(note["name"], *sizes, "start_A" in tensors, rows))
                self.tensors[path, note["name"]] = tensors
            self.chosen[path] = Choice(path, parts=tuple(found))
            return
        rank = stack.rank if started is None else int(started["rank"])
        alpha = stack.numerator(self.stabilized) if started is None else started["alpha"]
        scaling = stack.scaling if started is None else scaling_of(rank, alpha, self.stabilized)
        self.tensors[path, ""] = split(stack.lora_A, stack.lora_B, started is not None) | stack.extras
        self.chosen[path] = Choice(path, parts=(self._part("", rank, alpha, scaling, width, started is not None),))

    def _part(
        self, name: str, rank: int, alpha: float, scaling: float, width: int, subtract: bool, rows: Ranges = ()
    ) -> Part:
        return Part(
            name=name,
            rank=rank,
            alpha=alpha,
            scaling=scaling,
            out_features=width,
            rows=rows,
            variant=self.variant,
            subtract=subtract,
        )

    def _vectors(self) -> None:
        """A VeRA file: two vectors for each module, two matrices for all of them."""
        if not is_vera(self.raw):
            odd = [*self.contents.vectors, *self.contents.shared]
            self.problems += [f"'{name}' holds tensors of VeRA, the configuration does not" for name in sorted(odd)]
            return
        missing = sorted(set(SHARED) - set(self.contents.shared))
        self.problems += [f"no tensor '{SHARED[name]}', which all modules share" for name in missing]
        rank = stated_rank(self.raw)
        for path, vectors in self.contents.vectors.items():
            module = self.modules.get(path)
            kind = kind_of(module) if module is not None else None
            if module is None or kind is None or kind.name not in ("Linear", "Conv1D"):
                names = [p for p, m in self.modules.items() if kind_of(m) is not None]
                self.problems.append(f"no linear module '{path}' in the model; nearest: {nearest(path, names, 2)}")
                continue
            n_in, n_out = kind.sizes(module)
            sizes = {"vera_b": (n_out,), "vera_d": (rank,)}
            wide = {"vera_A": (rank, n_in), "vera_B": (n_out, rank)}
            bad = [name for name, shape in sizes.items() if tuple(vectors.get(name, torch.empty(0, 0)).shape) != shape]
            bad += [
                name
                for name, shape in wide.items()
                if name in self.contents.shared
                and (
                    self.contents.shared[name].dim() != 2
                    or any(have < need for have, need in zip(self.contents.shared[name].shape, shape, strict=True))
                )
            ]
            if bad:
                self.problems.append(f"'{path}': {', '.join(bad)} do not fit a {n_in} -> {n_out} layer at rank {rank}")
                continue
            self.chosen[path] = Choice(path, parts=(self._part("", rank, rank, 1.0, n_out, False),))
            self.tensors[path, ""] = vectors

    def rows(self) -> None:
        """Trained rows of token tables."""
        stated = self.raw.get("trainable_token_indices") or {}
        for path, tensor in self.contents.rows.items():
            module: Any = self.modules.get(path)
            by_name = stated if isinstance(stated, dict) else {path: stated}
            ids = next((i for name, i in by_name.items() if path == name or path.endswith(f".{name}")), None)
            if module is None or not isinstance(module, nn.Embedding):
                self.problems.append(f"trained rows '{path}' belong to no embedding of the model")
            elif ids is None or tuple(tensor.shape) != (len(ids), module.embedding_dim) or len(set(ids)) != len(ids):
                self.problems.append(f"'{path}': {tuple(tensor.shape)} trained rows do not fit the token ids stated")
            elif max(ids) >= module.num_embeddings:
                self.problems.append(
                    f"'{path}' has {module.num_embeddings} rows, the file trains row {max(ids)}: resize it first"
                )
            else:
                order = sorted(range(len(ids)), key=ids.__getitem__)
                self.tokens[path] = tuple(ids[i] for i in order)
                self.token_rows[path] = tensor[torch.tensor(order)]
        named = {name for name in stated} if isinstance(stated, dict) else ({""} if stated else set())
        lacking = [n for n in named if not any(p == n or p.endswith(f".{n}") or not n for p in self.contents.rows)]
        self.problems += [f"no trained rows for '{name}', which the configuration names" for name in sorted(lacking)]

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
            alone = set(state) == {"bias"} and mode == "all" and path not in self._saved_names()
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
        return {path for path in self.modules if path and names and path.endswith(names)}

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
    work.sites()
    work.rows()
    work.expected()
    work.rest()
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
    chosen = Chosen({path: work.chosen[path] for path in order}, copies, biases, work.tokens, {}, [])
    made = finish(View(model), config, chosen)
    total = len(work.contents.factors) + len(work.contents.vectors) + len(copies) + len(work.tokens)
    return Fit(
        plan=made,
        tensors=work.tensors,
        shared=work.contents.shared,
        rows=work.token_rows,
        copies=work.copies,
        biases=work.biases,
        total=total - len(work.own.get("unworn", ())),
        notes=work.notes + list(made.notes),
    )


def _hint(work: _Fitting) -> str:
    base = work.raw.get("base_model_name_or_path")
    named = f" (the adapter names {base})" if base else ""
    if any("another base" in problem for problem in work.problems):
        return f"load the base it was trained on{named}, or pass allow_other_base=True (--allow-other-base)."
    if any("holds NaN" in problem for problem in work.problems):
        return "the training that wrote it diverged, or the file is damaged; take an earlier checkpoint."
    if any("no module 'base_model." in problem for problem in work.problems):
        return "the file's keys carry a prefix twice; save it again from the unwrapped model."
    return f"check that base and adapter belong together{named}, or copy the adapter again."
