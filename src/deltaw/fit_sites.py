"""The low-rank updates of a file: factors, what variants keep beside them, VeRA's vectors, trained token rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapter import Adapter
from deltaw.errors import nearest
from deltaw.functional import scaling_of
from deltaw.initialize import Request
from deltaw.keys import EXTRAS, SHARED, TWICE, Contents
from deltaw.layers import Kind, kind_of
from deltaw.layers.slices import Ranges
from deltaw.peft_config import alpha_for, is_vera, stated_rank
from deltaw.settle import Choice
from deltaw.sites import Part
from deltaw.stack import Stack, split, unstacked
from deltaw.tree import base_modules
from deltaw.variants import VARIANTS, variant_of

__all__ = ["SiteFitting"]

_ANY = Request(in_features=1, out_features=1, rank=1, seed=0)
"""A request of any size, to ask a variant for the names of its tensors."""


class SiteFitting:
    """One pass over a file's updates; collects problems instead of stopping at the first.

    Args:
        model: the base.
        adapter: the adapter.
    """

    def __init__(self, model: nn.Module, adapter: Adapter) -> None:
        self.model, self.adapter = model, adapter
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
                lora_B = pair[1] * TWICE if path in self.contents.inner else pair[1]
                self._site(path, module, kind, *kind.unpack(module, pair[0], lora_B))
            elif bool(pair[1].any()):
                self.problems.append(f"'{path}' holds an update, where deltaw noted none")
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
        if not (lora_A.is_floating_point() and lora_B.is_floating_point()):
            return  # told already
        if not rank or rank % kind.groups(module) or (tuple(lora_A.shape), tuple(lora_B.shape)) != fits:
            found = f"A {tuple(lora_A.shape)} and B {tuple(lora_B.shape)}"
            self.problems.append(f"'{path}': {found} do not fit a {n_in} -> {n_out} layer")
            return
        # PEFT states one rank and one alpha for both projections of an attention, under the attention's own path
        named = path.rpartition(".")[0] if path in self.contents.inner else path
        stated = stated_rank(self.raw, named)
        if stated != rank:
            self.problems.append(f"'{path}': rank {rank} in the tensors, {stated} in adapter_config.json")
            return
        extras = self._extras(path, n_out)
        if extras is None:
            return
        alpha = alpha_for(self.raw, named)
        # what is folded into B is taken out in at least fp32, in which factors are held
        lora_A, lora_B = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (lora_A, lora_B))
        stack = Stack(lora_A, lora_B, scaling_of(rank, alpha, self.stabilized), extras, alpha)
        try:
            self._parts(path, n_out, stack)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            self.problems.append(f"'{path}': what deltaw noted about it in the metadata is damaged ({error!r})")

    def _extras(self, path: str, width: int) -> dict[str, Tensor] | None:
        """What the file's variant keeps beside the factors: all of it, and nothing else."""
        names = set(EXTRAS) & variant_of(self.variant).shapes(_ANY).keys()
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
            # only where it was folded: a scaling computed again from alpha may differ in its last bit
            folded = abs(factor - 1) > 1e-9
            B = stack.lora_B[:, :rank]
            if bool(stack.lora_A[rank:].any()) or bool(stack.lora_B[:, rank:].any()):
                self.problems.append(f"'{path}' holds more than the rank {rank} that deltaw noted")
            stack = Stack(stack.lora_A[:rank], B * factor if folded else B, padded["scaling"], stack.extras)
            stack.alpha = padded["alpha"] or stack.numerator(self.stabilized)
        if said:
            found, held = [], stack.lora_B.count_nonzero()
            for note, tensors in unstacked(stack, said):
                rows = tuple((int(a), int(b)) for a, b in note["rows"])
                sizes = (int(note["rank"]), note["alpha"], note["scaling"], len(tensors["lora_B"]))
                found.append(self._part(note["name"], *sizes, "start_A" in tensors, rows))
                self.tensors[path, note["name"]] = tensors
                held -= sum(tensors[name].count_nonzero() for name in ("lora_B", "start_B") if name in tensors)
            if held:
                self.problems.append(f"'{path}' holds an update outside the slices that deltaw noted")
            self.chosen[path] = Choice(path, parts=tuple(found))
            return
        rank = stack.rank if started is None else int(started["rank"])
        alpha = stack.numerator(self.stabilized) if started is None else started["alpha"]
        scaling = stack.scaling if started is None else scaling_of(rank, alpha, self.stabilized)
        self.tensors[path, ""] = split(stack.lora_A, stack.lora_B, started is not None) | stack.extras
        part = self._part("", rank, alpha, scaling, width, started is not None)
        self.chosen[path] = Choice(path, parts=(part,), raw=path in self.own.get("raw", ()))

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
            held = {name: tuple(tensor.shape) for name, tensor in self.contents.shared.items()}
            # shared matrices are cut to a layer's size, and never to its rank
            axes = (("vera_A", 0), ("vera_B", 1))
            bad += [name for name, axis in axes if name in held and not _covers(held[name], wide[name], axis)]
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
        named = set(stated) if isinstance(stated, dict) else ({""} if stated else set())
        lacking = [n for n in named if not any(p == n or p.endswith(f".{n}") or not n for p in self.contents.rows)]
        self.problems += [f"no trained rows for '{name}', which the configuration names" for name in sorted(lacking)]


def _covers(held: tuple[int, ...], shape: tuple[int, int], axis: int) -> bool:
    """Whether a shared matrix has a layer's rank on one axis, and at least its size on the other."""
    return len(held) == 2 and held[axis] == shape[axis] and held[1 - axis] >= shape[1 - axis]
