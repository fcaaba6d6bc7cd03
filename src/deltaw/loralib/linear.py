"""Linear and MergedLinear: the original's two linear layers over the core's LoRA step."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.errors import ConfigError
from deltaw.functional import add_term
from deltaw.layers import KINDS, Kind
from deltaw.loralib.base import Adapted, AdapterDropout, Self, identity
from deltaw.loralib.take import refuse_base, take
from deltaw.step import Frozen, Mask, can_fuse, lora_step

__all__ = ["Linear", "MergedLinear"]

_PLAIN = KINDS["Linear"]
_FAN_IN = replace(_PLAIN, name="FanInLinear", transposed=True)
"""A weight stored as (in, out), as transformers' Conv1D has it, on a layer that knows its sizes as a Linear does."""


class _AnyLinear(Adapted, nn.Linear):
    """What both layers do; they differ in their factors."""

    fan_in_fan_out: bool

    def _kind(self) -> Kind:
        return _FAN_IN if self.fan_in_fan_out else _PLAIN

    @property
    def deltaw_refusal(self) -> str | None:
        """Why ``deltaw.attach`` must leave this layer alone; None where it need not."""
        stored = "a weight stored as (in, out), unlike the Linear that it is" if self.fan_in_fan_out else None
        return super().deltaw_refusal or stored

    def _settle(self) -> None:
        """Draw the values, then store the weight the other way round where that was asked for."""
        self.reset_parameters()
        if self.fan_in_fan_out:
            self.weight.data = self.weight.data.t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """W x + b, and the update's term unless it is in the weight.

        Args:
            x: shape (..., in_features).

        Returns:
            Tensor of shape (..., out_features).
        """
        speaks = self._speaks()
        weight = self.weight.t() if self.fan_in_fan_out else self.weight
        if not speaks:
            return F.linear(x, weight, self.bias)
        lora_A, lora_B = self._factors()
        trained = weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        # autocast knows no meta device, and cannot be asked about it
        real = type(x) in (Tensor, nn.Parameter) and not x.is_meta and self._masks()
        if real and not trained and not torch.is_autocast_enabled(x.device.type) and can_fuse(weight, x):
            return lora_step(x, lora_A, lora_B, self.scaling, self._mask(), Frozen(weight, self.bias))
        out = F.linear(x, weight, self.bias)
        if real and can_fuse(out, x):
            return lora_step(x, lora_A, lora_B, self.scaling, self._mask(), out, fresh=True)
        kind = self._kind()
        term = kind.up(self, kind.down(self, self.lora_dropout(x), lora_A, out.dtype), lora_B)
        return add_term(out, term, self.scaling)

    def plain(self) -> nn.Module:
        """The nn.Linear of these sizes, on the meta device.

        Returns:
            The layer.
        """
        return nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")

    def _masks(self) -> bool:
        """Whether the step can draw the dropout's mask itself; a module that was put in its place has to be called."""
        return self.lora_dropout is identity or isinstance(self.lora_dropout, AdapterDropout)

    def _mask(self) -> Mask | None:
        return self.lora_dropout.mask() if isinstance(self.lora_dropout, AdapterDropout) else None

    @staticmethod
    def _sizes(base: nn.Module) -> dict[str, Any]:
        """Sizes of a layer that can be taken over: torch's Linear or transformers' Conv1D, not a subclass."""
        utils = sys.modules.get("transformers.pytorch_utils")
        if type(base) is nn.Linear:
            return {"in_features": base.in_features, "out_features": base.out_features}
        if utils is not None and type(base) is utils.Conv1D:
            stored: Any = base.weight
            return {"in_features": stored.shape[0], "out_features": stored.shape[1], "fan_in_fan_out": True}
        raise refuse_base(base, "a plain nn.Linear, or transformers' Conv1D")


class Linear(_AnyLinear):
    """nn.Linear with an update: y = W x + b + lora_alpha / r * B (A x).

    Args:
        in_features: size of an input.
        out_features: size of an output.
        r: rank of the update; 0 makes the plain layer.
        lora_alpha: numerator of the scaling.
        lora_dropout: probability in [0, 1) of dropping entries of the update's input while training.
        fan_in_fan_out: the weight is stored as (in_features, out_features).
        merge_weights: ``eval()`` adds the update to the weight, ``train()`` takes it off again.
        **kwargs: further arguments of ``nn.Linear``.

    Source:
        Hu et al. 2021, arXiv:2106.09685, eq. 3.

    Example:
        >>> layer = Linear(4, 3, r=2, lora_alpha=4)
        >>> sorted(layer.state_dict()), layer.scaling
        (['bias', 'lora_A', 'lora_B', 'weight'], 2.0)
    """

    def __init__(
        self, in_features: int, out_features: int, r: int = 0, lora_alpha: float = 1, lora_dropout: float = 0.0,
        fan_in_fan_out: bool = False, merge_weights: bool = True, **kwargs: Any,
    ) -> None:  # fmt: skip
        nn.Linear.__init__(self, in_features, out_features, **kwargs)
        self._begin(r, lora_alpha, lora_dropout, merge_weights)
        self.fan_in_fan_out = fan_in_fan_out
        if r > 0:
            self._grow((r, in_features), (out_features, r))
        self._settle()

    @classmethod
    def from_base(
        cls: type[Self], base: nn.Module, *, r: int, lora_alpha: float, lora_dropout: float = 0.0,
        merge_weights: bool = True,
    ) -> Self:  # fmt: skip
        """Put an update beside the weight of a layer that exists; weight and bias are its very parameters.

        Args:
            base: an ``nn.Linear`` or transformers' ``Conv1D``; put the new layer in its place.
            r: rank of the update.
            lora_alpha: numerator of the scaling.
            lora_dropout: probability in [0, 1) of dropping entries of the update's input.
            merge_weights: ``eval()`` adds the update to the weight, ``train()`` takes it off again.

        Returns:
            The layer, in the mode of ``base``.

        Raises:
            TargetError: if it is another kind of layer, or one whose forward or weight is not torch's own.

        Example:
            >>> base = nn.Linear(4, 3)
            >>> Linear.from_base(base, r=2, lora_alpha=4).weight is base.weight
            True
        """
        settings = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "merge_weights": merge_weights}
        return take(cls, base, {**_AnyLinear._sizes(base), **settings})


class MergedLinear(_AnyLinear):
    """A Linear that is several projections in one, with an update on those that are enabled, each of its own rank r.

    The factors are stacked: A (n r, in), B (n w, r) for n enabled projections of w outputs each. The step works on A
    and on a B that is zero outside the blocks on its diagonal, so that no (out, in) product is formed.

    Args:
        in_features: size of an input.
        out_features: size of an output, that of all projections together.
        r: rank of each update; 0 makes the plain layer.
        lora_alpha: numerator of the scaling.
        lora_dropout: probability in [0, 1) of dropping entries of the updates' input while training.
        enable_lora: one bool per projection; with none enabled it is the plain layer.
        fan_in_fan_out: the weight is stored as (in_features, out_features).
        merge_weights: ``eval()`` adds the update to the weight, ``train()`` takes it off again.
        **kwargs: further arguments of ``nn.Linear``.

    Raises:
        ConfigError: if the projections do not share the outputs evenly.

    Example:
        >>> layer = MergedLinear(4, 12, r=2, enable_lora=[True, False, True])
        >>> layer.lora_A.shape, layer.lora_B.shape
        (torch.Size([4, 4]), torch.Size([8, 2]))
    """

    def __init__(
        self, in_features: int, out_features: int, r: int = 0, lora_alpha: float = 1, lora_dropout: float = 0.0,
        enable_lora: Sequence[bool] = (False,), fan_in_fan_out: bool = False, merge_weights: bool = True,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        nn.Linear.__init__(self, in_features, out_features, **kwargs)
        self._begin(r, lora_alpha, lora_dropout, merge_weights)
        self.enable_lora = [bool(flag) for flag in enable_lora]
        self.fan_in_fan_out = fan_in_fan_out
        number, count = len(self.enable_lora), sum(self.enable_lora)
        if number == 0 or out_features % number:
            raise ConfigError(
                "the outputs cannot be shared out among the projections",
                where="MergedLinear(enable_lora=...)",
                got=f"{number} projections for {out_features} outputs",
                expected="one bool per projection, all of one size",
                hint="write [True, False, True] for the query and value of a fused qkv projection.",
            )
        if r > 0 and count:
            self._grow((r * count, in_features), (out_features // number * count, r))
        self._settle()

    @property
    def lora_ind(self) -> Tensor:
        """Which outputs have an update: bool, shape (out_features), where the weight is."""
        flags = torch.tensor(self.enable_lora, device=self.weight.device)
        return flags.repeat_interleave(self.out_features // len(self.enable_lora))

    @lora_ind.setter
    def lora_ind(self, value: Tensor) -> None:
        # code for the original moves its mask along with the layer by hand; here that changes nothing
        own = self.lora_ind.cpu()
        if not torch.equal(value.cpu(), own):
            raise ConfigError(
                "the mask of a layer does not say which projections have an update",
                where="MergedLinear.lora_ind",
                got=f"a mask of {int(value.sum())} among {value.numel()} outputs",
                expected=f"the layer's own, of {int(own.sum())} among {own.numel()}; its device does not matter",
                hint=f"make the layer with other projections than enable_lora={self.enable_lora}.",
            )

    def zero_pad(self, x: Tensor) -> Tensor:
        """Rows of the enabled projections among rows of zeros for the others.

        Args:
            x: shape (number of enabled outputs, ...).

        Returns:
            Tensor of shape (out_features, ...).

        Raises:
            ConfigError: if there are not as many rows as enabled outputs.
        """
        where = self.lora_ind.to(x.device)
        if len(x) != int(where.sum()):
            raise ConfigError(
                "there is not one row for each enabled output",
                where="MergedLinear.zero_pad",
                got=f"{len(x)} rows",
                expected=f"{int(where.sum())}, with enable_lora={self.enable_lora}",
                hint="give the rows of the enabled projections alone.",
            )
        result = x.new_zeros((self.out_features, *x.shape[1:]))
        result[where] = x
        return result

    def merge_AB(self) -> Tensor:
        """The update as a dense matrix, without its scaling; ``eval()`` and the step never form it.

        Returns:
            B A, in the shape of the weight as it is stored; zero without an update.
        """
        if not self._has_term():
            return torch.zeros_like(self.weight)
        lora_A, lora_B = self._factors()
        update = lora_B @ lora_A
        return update.t() if self.fan_in_fan_out else update

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree on.

        Returns:
            name -> value.
        """
        return {**super().settings(), "enable_lora": list(self.enable_lora)}

    def _factors(self) -> tuple[Tensor, Tensor]:
        width, count = self.out_features // len(self.enable_lora), sum(self.enable_lora)
        blocks = iter(enumerate(torch.split(self.lora_B, width)))
        rows = []
        for flag in self.enable_lora:
            if flag:
                place, block = next(blocks)
                rows.append(F.pad(block, (place * self.r, (count - 1 - place) * self.r)))
            else:
                rows.append(self.lora_B.new_zeros(width, count * self.r))
        return self.lora_A, torch.cat(rows)

    @classmethod
    def from_base(
        cls: type[Self], base: nn.Module, *, r: int, lora_alpha: float, enable_lora: Sequence[bool],
        lora_dropout: float = 0.0, merge_weights: bool = True,
    ) -> Self:  # fmt: skip
        """Put updates beside the weight of a fused projection that exists; weight and bias are its very parameters.

        Args:
            base: an ``nn.Linear`` or transformers' ``Conv1D``; put the new layer in its place.
            r: rank of each update.
            lora_alpha: numerator of the scaling.
            enable_lora: one bool per projection.
            lora_dropout: probability in [0, 1) of dropping entries of the updates' input.
            merge_weights: ``eval()`` adds the update to the weight, ``train()`` takes it off again.

        Returns:
            The layer, in the mode of ``base``.

        Raises:
            TargetError: if it is another kind of layer, or one whose forward or weight is not torch's own.
        """
        settings = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "merge_weights": merge_weights}
        return take(cls, base, {**_AnyLinear._sizes(base), **settings, "enable_lora": enable_lora})
