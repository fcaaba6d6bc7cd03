"""What all layers of the original package's face share: settings, merging by mode, and state dicts.

A layer is its torch class with ``lora_A`` and ``lora_B`` beside the weight, under the original's names. What is done
with them is the core's: its products (``step``, ``layers``), its dropout, its sums rounded once (``merge``), and the
base's exact bits kept meanwhile (``keep``).

While a layer is merged, ``weight`` is the sum and the base's bits are kept. Whatever would touch either, a cast, a
move, a load or a save, sees the base: it is put back first, and the sum is formed anew afterwards.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from deltaw.changes import Change, weight_steps
from deltaw.config import LoRAConfig
from deltaw.dropout import Dropping
from deltaw.errors import CheckpointError, ConfigError, StateError
from deltaw.factors import Pair
from deltaw.functional import scaling_of
from deltaw.initialize import seed_for
from deltaw.keep import Original, restore
from deltaw.layers import Kind
from deltaw.merge import check_writable
from deltaw.pages import Room
from deltaw.sites import Part

__all__ = ["NOTE", "Adapted", "AdapterDropout", "LoRALayer", "check_settings"]

NOTE = "lora"
"""Where a layer's settings stand among a state dict's metadata, beside torch's own ``version``."""

Self = TypeVar("Self", bound="Adapted")


def identity(x: Tensor) -> Tensor:
    """What a layer without dropout does to its input; a function with a name can be pickled.

    Args:
        x: anything.

    Returns:
        The same.
    """
    return x


class AdapterDropout(Dropping, nn.Dropout):
    """Dropout on the update's input, with masks from a counter of its own: the global random state is left alone.

    It is an ``nn.Dropout``, as the original's is, to code that walks a model and sets ``p`` wherever it finds one.

    Args:
        p: probability in [0, 1) of dropping an entry.
        layer: the layer that it belongs to.
    """

    def __init__(self, p: float, layer: nn.Module) -> None:
        super().__init__()
        # a number of the global generator's present state, which is not advanced: layers made one after the other get
        # masks of their own, and a seed set before a model is made fixes them too
        generator = torch.Generator()
        generator.set_state(torch.get_rng_state())
        seed = int(torch.randint(2**62, (), generator=generator, device="cpu"))
        self.start(LoRAConfig(dropout=p), True, seed_for(seed), "loralib")
        # a list hides the layer from the module tree, where it is the parent
        self.layer = [layer]

    @property
    def p(self) -> float:
        """Probability of dropping an entry."""
        return self.dropout

    @p.setter
    def p(self, value: float) -> None:
        self.dropout = LoRAConfig(dropout=value).dropout

    def _anchor(self) -> nn.Parameter | None:
        factors = (p for name, p in self.layer[0]._parameters.items() if name.startswith("lora_"))
        return next((p for p in factors if p is not None and p.requires_grad), None)

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries while training.

        Args:
            x: input of the update.

        Returns:
            Tensor like ``x``.
        """
        return self.dropped(x)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class LoRALayer:
    """The mark of a layer with a low-rank update, and its settings; ``isinstance`` tells such layers from others.

    Args:
        r: rank of the update; 0 makes the plain layer.
        lora_alpha: numerator of the scaling lora_alpha / r.
        lora_dropout: probability in [0, 1) of dropping entries of the update's input while training.
        merge_weights: ``eval()`` adds the update to the weight, ``train()`` takes it off again.

    Raises:
        ConfigError: if a value is out of range.
    """

    def __init__(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool) -> None:
        check_settings(type(self).__name__, r, lora_alpha, lora_dropout)
        # plain numbers: a checkpoint's settings are read without unpickling classes
        self.r = int(r)
        self.lora_alpha = lora_alpha if isinstance(lora_alpha, int) else float(lora_alpha)
        self.lora_dropout: Any = identity
        if lora_dropout > 0:
            p = float(lora_dropout)
            self.lora_dropout = AdapterDropout(p, self) if isinstance(self, nn.Module) else nn.Dropout(p)
        self.merged = False
        self.merge_weights = merge_weights


def check_settings(name: str, r: object, alpha: object, dropout: object) -> None:
    """Refuse settings out of range, in the words of this face.

    Args:
        name: who was called.
        r: rank.
        alpha: lora_alpha.
        dropout: lora_dropout.

    Raises:
        ConfigError: naming the first that cannot be.
    """

    def real(value: object) -> bool:
        return isinstance(value, Real) and not isinstance(value, bool)

    wrong: tuple[str, object, str] | None = None
    if not isinstance(r, Integral) or isinstance(r, bool) or r < 0:
        wrong = ("r", r, "a whole number from 0 on; 0 makes the plain layer")
    elif not real(alpha) or not 1e-30 < abs(alpha) < 1e30:  # type: ignore[arg-type]
        wrong = ("lora_alpha", alpha, "a finite number other than zero")
    elif not real(dropout) or not 0 <= dropout < 1:  # type: ignore[operator]
        wrong = ("lora_dropout", dropout, "a probability in [0, 1)")
    if wrong is not None:
        field, got, expected = wrong
        hint = "the update is scaled by lora_alpha / r; common are r=8, lora_alpha=16, lora_dropout=0 to 0.1."
        where = f"{name}({field}=...)"
        raise ConfigError(
            "this cannot be a setting of the layer", where=where, got=repr(got), expected=expected, hint=hint
        )


class _Update(NamedTuple):
    """A layer's update as a merge reads it."""

    pair: Pair
    tokens: None = None

    def parts(self) -> Iterator[Pair]:
        yield self.pair


class Adapted(LoRALayer, nn.Module):
    """A torch layer with factors of its own; the base of every layer here."""

    weight: Tensor
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_dropout: Any

    def _begin(self, r: int, lora_alpha: float, lora_dropout: float, merge_weights: bool) -> None:
        """Set what every layer has, after torch's own constructor and before the factors."""
        LoRALayer.__init__(self, r, lora_alpha, lora_dropout, merge_weights)
        self._original: Original | None = None
        self._room = Room()
        self._stamp: tuple[object, ...] = ()
        self._folded: tuple[Tensor, ...] = ()
        # the module this one stands for and its weight's flag, for detach; a list hides it from the module tree
        self.home: list[nn.Module] = []
        self.was_trained = True

    def _grow(self, shape_A: tuple[int, ...], shape_B: tuple[int, ...]) -> None:
        """Make the factors, and freeze the weight they stand beside."""
        self.lora_A = nn.Parameter(self.weight.new_zeros(shape_A))
        self.lora_B = nn.Parameter(self.weight.new_zeros(shape_B))
        self.weight.requires_grad = False

    def _kind(self) -> Kind:
        """How the weight is stored and how an input meets the factors."""
        raise AssertionError("every layer says its kind")

    def _factors(self) -> tuple[Tensor, Tensor]:
        """A and B in the shapes that the kind knows."""
        return self.lora_A, self.lora_B

    @property
    def adapted(self) -> bool:
        """Whether the layer has factors; without them it is the plain layer."""
        return "lora_A" in self._parameters

    @property
    def deltaw_refusal(self) -> str | None:
        """Why ``deltaw.attach`` must leave this layer alone; None where it need not."""
        return "factors of its own, beside which a second update would be merged twice" if self.adapted else None

    @property
    def scaling(self) -> float:
        """Factor on the update, lora_alpha / r; setting it sets lora_alpha."""
        if self.r < 1:
            raise AttributeError(f"{type(self).__name__} with r=0 has no scaling")
        return scaling_of(self.r, self.lora_alpha)

    @scaling.setter
    def scaling(self, value: float) -> None:
        self.lora_alpha = value * self.r

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree on: plain values that survive any file format.

        Returns:
            name -> value.
        """
        return {"r": self.r, "lora_alpha": float(self.lora_alpha)}

    def reset_parameters(self) -> None:
        """Draw all values anew, weight and factors, as the original does: A uniform, B zero."""
        with self.unmerged() if "merged" in self.__dict__ else _nothing():
            super().reset_parameters()  # type: ignore[misc]
            self.reset_factors()

    def reset_factors(self) -> None:
        """Draw the factors anew and leave the weight alone: A uniform in +-1 / sqrt(fan in), B zero.

        Source:
            arXiv:2106.09685, section 4.1; the distribution is microsoft/LoRA's.
        """
        if self.adapted:
            nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)
            nn.init.zeros_(self.lora_B)

    def extra_repr(self) -> str:
        """The torch layer's own line, with rank and alpha."""
        own = super().extra_repr()
        return f"{own}, r={self.r}, lora_alpha={self.lora_alpha:g}" if self.adapted else own

    def plain(self) -> nn.Module:
        """A torch layer of this layer's sizes, without values of its own, on the meta device.

        Returns:
            The layer.
        """
        raise AssertionError("every layer says what it is without factors")

    # merging

    def train(self: Self, mode: bool = True) -> Self:
        """Set the mode: training takes the update off the weight, evaluation adds it where ``merge_weights`` says so.

        Args:
            mode: training or not.

        Returns:
            The layer itself.

        Raises:
            StateError: if a merged weight was changed by others, or the sum would not be finite; nothing is written.
        """
        if mode:
            self.take_off()
        elif self.merge_weights:
            if self.merged and self._is_stale(closely=True):
                self.take_off()
            if not self.merged:
                self.fold_in()
        super().train(mode)
        return self

    @torch.no_grad()
    def fold_in(self) -> None:
        """Add the update to the weight, keeping the weight's bits.

        Raises:
            StateError: if the weight is no plain stored tensor, or the sum would not be finite.
        """
        parameter = self._parameters.get("weight")
        if self.adapted and not (parameter is not None and parameter.is_meta):
            self._original = self._write_sum(parameter) if self._has_term() else None
            self._stamp, self._folded = self._versions(), (self.lora_A.clone(), self.lora_B.clone())
        self.merged = True

    def _write_sum(self, parameter: nn.Parameter | None) -> Original:
        """Form the sum in the weight's place, and give what restores the weight."""
        where = f"{type(self).__name__}.weight"
        steps = functools.partial(weight_steps, self, self._kind(), [(self._update(), 1.0)])
        change = Change(where=where, parameter=parameter, steps=steps, readers=frozenset())
        check_writable(change)
        original = Original(self.weight, where, self.weight.dtype)
        try:
            change.write(self.weight.data, original.keep, self._room)
        except StateError:
            restore(original)
            raise
        return original

    def take_off(self) -> None:
        """Put the weight's own bits back.

        Raises:
            StateError: if the weight was changed since it was merged; nothing is written then.
        """
        if self._original is not None:
            now = self._parameters.get("weight")
            self._original.parameter = self._original.parameter if now is None else now
            restore(self._original)
            self._original.give_back(self._room)
        self._forget()

    def _forget(self) -> None:
        self._original, self._stamp, self._folded, self.merged = None, (), (), False

    def _update(self) -> _Update:
        lora_A, lora_B = self._factors()
        rank, out = lora_A.shape[0], self._kind().sizes(self)[1]
        part = Part(name="", rank=rank, alpha=self.scaling * rank, scaling=self.scaling, out_features=out)
        return _Update(Pair(part, {"lora_A": lora_A, "lora_B": lora_B}, None))

    def _versions(self) -> tuple[object, ...]:
        """What changes when a factor is written to or replaced, or the scaling is set."""
        factors = (self.lora_A, self.lora_B)
        return (self.r, self.lora_alpha), *(
            (id(p), p.data_ptr(), 0 if p.is_inference() else p._version) for p in factors
        )

    def _is_stale(self, closely: bool = False) -> bool:
        """Whether the sum in the weight is no longer that of the factors."""
        if not self._stamp or torch.compiler.is_compiling():
            return False
        if closely and self._stamp[0] == (self.r, self.lora_alpha):
            return not all(map(torch.equal, self._folded, (self.lora_A, self.lora_B)))
        return self._stamp != self._versions()

    def _speaks(self) -> bool:
        """Whether the forward has a term to add; a sum that is out of date is formed anew first."""
        if self.merged:
            if self._is_stale():
                self.take_off()
                self.fold_in()
            return False
        return self._has_term()

    def _has_term(self) -> bool:
        """Whether there is an update; ``layer.r = 0`` switches a layer's off, as in the original."""
        return self.adapted and self.r > 0

    @contextmanager
    def unmerged(self) -> Iterator[None]:
        """Have the base's weight in its place while something is done to it; what was merged is merged anew.

        Yields:
            Nothing.
        """
        merged = self.merged
        self.take_off()
        try:
            yield
        finally:
            if merged:
                self.fold_in()

    def base_weight(self) -> Tensor:
        """The weight without the update, bit for bit, whether merged or not.

        Returns:
            The weight itself, detached; a tensor of its own while merged.
        """
        if self._original is None:
            return self.weight.detach()
        twin = nn.Parameter(self.weight.detach().clone(), requires_grad=False)
        kept, self._original.parameter = self._original.parameter, twin
        try:
            restore(self._original)
        finally:
            self._original.parameter = kept
        return twin.detach()

    def _apply(self: Self, fn: Any, recurse: bool = True) -> Self:
        with self.unmerged():
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    # state dicts

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Write the base's weight, never the sum: read again, a sum would get its update a second time."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._original is not None:
            destination[f"{prefix}weight"] = self.base_weight()
        notes = getattr(destination, "_metadata", None)
        if self.adapted and notes is not None:
            notes.setdefault(prefix[:-1], {})[NOTE] = self.settings()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any], *rest: Any
    ) -> None:
        self._check_note(local_metadata.get(NOTE), prefix[:-1])
        weight, merged = state_dict.get(f"{prefix}weight"), self.merged
        try:
            self.take_off()
        except StateError:
            # an edited sum cannot be undone, but a whole base that is loaded over it takes its place
            if weight is None or weight.shape != self.weight.shape:
                raise
            self._forget()
        try:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        finally:
            if merged:
                self.fold_in()

    def _check_note(self, note: Mapping[str, Any] | None, path: str) -> None:
        """Refuse a state dict that was made with other settings."""
        own = self.settings()
        differs = {} if note is None or not self.adapted else {k: v for k, v in note.items() if own.get(k, v) != v}
        if differs:
            raise CheckpointError(
                "the checkpoint was made with other settings than this layer",
                where=f"layer '{path}'",
                got=", ".join(f"{key}={own[key]!r}" for key in differs),
                expected=", ".join(f"{key}={value!r}" for key, value in differs.items()) + ", as the checkpoint says",
                hint="make the layer with the checkpoint's settings; dict(state_dict) drops what it says of them.",
            )


@contextmanager
def _nothing() -> Iterator[None]:
    yield
