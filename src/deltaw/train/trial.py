"""Finding out by trial whether a model keeps packed examples apart.

A model may take positions and masks and heed neither (state spaces, convolutions, ALiBi), so what it says it supports
is not asked: the examples are run alone and together, and the hidden states are compared.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltaw.train.isolation import Isolation
from deltaw.train.packed import pack

if TYPE_CHECKING:
    from deltaw.train.batches import Batch, TokenExample

__all__ = ["find_isolation", "trial_rows"]

# Under these names configurations keep a window that a mask made here would lift.
OTHER_WINDOWS = ("attention_chunk_size", "local_attention", "attention_window")
FULL, SLIDING = "full_attention", "sliding_attention"
# What the reference differs by because its matrices have other shapes; a lost window or position differs by more.
LEAST_ERROR = 5e-5
# What a model may raise when it is given a mask of a form it does not know.
REFUSALS = (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError)


def trial_rows(lengths: Sequence[int]) -> list[int]:
    """Choose the examples to try: the longest, on which windows show, between two of usual length.

    Args:
        lengths: tokens of each example.

    Returns:
        Up to three indices.

    Example:
        >>> trial_rows([7, 90, 30, 31, 2])
        [2, 1, 0]
    """
    *others, longest = sorted(range(len(lengths)), key=lambda index: lengths[index])
    middle = len(others) // 2
    first, second = others[middle : middle + 1], others[middle - 1 : middle] if middle else []
    return [*first, longest, *second]


def find_isolation(
    model: nn.Module, examples: Sequence[TokenExample], *, causal: bool = True
) -> tuple[Isolation | None, str]:
    """Find a way to pack rows that leaves a model's results as they are.

    The examples are run alone and in one row, in eval mode and without a gradient. A way is taken where every token's
    hidden state is the same within rounding, and where another text in the first and the last example changes nothing
    in between: bit for bit, but for 2e-6 in float32, which a mixture of experts needs.

    Args:
        model: a transformers model, with or without adapters.
        examples: two or three, the longest in the middle; see ``trial_rows``.
        causal: False for encoders.

    Returns:
        The way, or None, and one line that says which or why not.
    """
    if len(examples) < 2:
        return None, "one example needs no packing"
    taken = inspect.signature(model.forward).parameters
    if "position_ids" not in taken and not any(item.kind is item.VAR_KEYWORD for item in taken.values()):
        return None, f"{type(model).__name__} takes no position_ids"
    was_training, faults = model.training, list[str]()
    model.eval()
    try:
        with torch.no_grad():
            trial = _Trial(model, examples, causal)
            for way in trial.ways():
                fault = trial.fault(way)
                if not fault:
                    way = trial.leaner(way)
                    return way, str(way)
                faults.append(fault)
    finally:
        model.train(was_training)
    return None, "; ".join(dict.fromkeys(faults))


class _Trial:
    """One model and a few examples, alone and together."""

    def __init__(self, model: nn.Module, examples: Sequence[TokenExample], causal: bool) -> None:
        self.model, self.causal = model, causal
        self.device = next(model.parameters()).device
        self.longest = max(len(example.ids) for example in examples)
        self.packed = pack(examples).to(self.device)
        alone = [self.hidden(pack([example]).to(self.device)) for example in examples]
        self.alone = torch.cat(alone, dim=1)
        before = len(examples[0].ids)
        self.middle = slice(before, before + len(examples[1].ids))
        self.other = self._other_text()

    def _other_text(self) -> Batch:
        """The packed batch with other tokens everywhere but in its middle."""
        table: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        ids = (self.packed.input_ids + 1) % table.num_embeddings
        ids[:, self.middle] = self.packed.input_ids[:, self.middle]
        return dataclasses.replace(self.packed, input_ids=ids)

    def hidden(self, batch: Batch) -> Tensor:
        """What the model's body makes of a batch: hidden states, or logits where it has no body."""
        body = getattr(self.model, "base_model", self.model)
        inputs = batch.inputs() | {"return_dict": True} | ({"use_cache": False} if self.causal else {})
        out = body(**inputs)
        found: Tensor = out.logits if getattr(out, "last_hidden_state", None) is None else out.last_hidden_state
        return found

    def fault(self, way: Isolation) -> str:
        """Why a way is wrong, or ""."""
        try:
            together = self.hidden(dataclasses.replace(self.packed, isolation=way))
            changed = self.hidden(dataclasses.replace(self.other, isolation=way))
        except REFUSALS as error:
            return f"{way.short} are refused ({type(error).__name__}: {_first_line(error)})"
        eps = torch.finfo(together.dtype).eps
        leak = _distance(changed[:, self.middle], together[:, self.middle])
        if not leak <= (16 * eps if together.dtype == torch.float32 else 0.0):
            return f"with {way.short}, examples see each other (another text beside one moves it by {leak:.1e})"
        apart = _distance(together, self.alone)
        if not apart <= max(LEAST_ERROR, 16 * eps):
            return f"with {way.short}, hidden states differ from those of the examples alone by {apart:.1e}"
        return ""

    def leaner(self, way: Isolation) -> Isolation:
        """The same with masks made once, where transformers' would be kept by every layer and the bits are equal."""
        if way.windows is not None or _attention(self.model) != "sdpa":
            return way
        expected = self.hidden(dataclasses.replace(self.packed, isolation=way))
        for other in self.ways():
            made_here = other.windows is not None and not self.fault(other)
            if made_here and torch.equal(self.hidden(dataclasses.replace(self.packed, isolation=other)), expected):
                return other
        return way

    def ways(self) -> Iterator[Isolation]:
        """What can be tried: positions first, because then the model's own windows are in the mask."""
        config: Any = self.model.config.get_text_config()  # type: ignore[operator,union-attr]
        plain = Isolation(causal=self.causal, offset=_offset(self.model), dtype=self.alone.dtype)
        yield plain
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None) or 0
        others = [getattr(config, name, None) for name in OTHER_WINDOWS]
        narrow = any(isinstance(size, int) and size < self.longest for size in others)
        if narrow or not kinds <= {FULL, SLIDING} or (not self.causal and 0 < window < self.longest):
            return
        if SLIDING in kinds:
            yield dataclasses.replace(plain, windows={kind: window if kind == SLIDING else 0 for kind in sorted(kinds)})
        if len(kinds) < 2:
            slides = SLIDING in kinds or not kinds
            yield dataclasses.replace(plain, windows={"": window if slides else 0})


def _offset(model: nn.Module) -> int:
    """Position of a first token: RoBERTa and its kin count from the padding index + 1."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_inputs_embeds"):
            return int(module.padding_idx) + 1  # type: ignore[arg-type]
    return 0


def _attention(model: nn.Module) -> str:
    return str(getattr(model.config, "_attn_implementation", ""))


def _distance(found: Tensor, expected: Tensor) -> float:
    """The largest relative difference of a token's vector."""
    found, expected = found.float(), expected.float()
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-12)).max())


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:120]
