"""Conv1d, Conv2d and Conv3d: A is a convolution of r channels with the base's own kernel, B mixes its channels.

That update has rank r and r (I / groups * kernel + O / groups) values, for any kernel and any groups. The original's
Conv2d has another one, a product (O / groups * k, r k) (r k, I k) that is reshaped to the kernel; ``reshaped=True`` is
that layout, for the checkpoints that were written with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltaw.errors import CheckpointError, ConfigError
from deltaw.functional import add_term
from deltaw.layers import KINDS, Kind
from deltaw.loralib.base import Adapted, Self
from deltaw.loralib.inner import BASES, SAME, build, join, outside, put
from deltaw.loralib.take import refuse_base, take

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvLoRA"]


class ConvLoRA(Adapted):
    """A convolution of the class that is named, with an update; what Conv1d, Conv2d and Conv3d have in common.

    Args:
        conv_module: ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``, a subclass that keeps their forward, or a callable
            that makes an object of one of these. The layer becomes an object of that class too.
        in_channels: channels of an input.
        out_channels: channels of an output.
        kernel_size: one number, or one for each axis.
        r: rank of the update, a multiple of the groups; 0 makes the plain layer.
        lora_alpha: numerator of the scaling.
        lora_dropout: probability in [0, 1) of dropping entries of the update's input while training.
        merge_weights: ``eval()`` adds the update to the kernel, ``train()`` takes it off again.
        reshaped: factors in the layout of the original's, whose product is reshaped to the kernel.
        **kwargs: further arguments of ``conv_module``.

    Raises:
        ConfigError: if the rank does not suit the groups, or the kernel the layout.
        TargetError: if ``conv_module`` makes no convolution, or one with a forward of its own.

    Example:
        >>> layer = ConvLoRA(nn.Conv1d, 4, 8, 3, r=2)
        >>> isinstance(layer, nn.Conv1d), sorted(layer.state_dict())
        (True, ['bias', 'lora_A', 'lora_B', 'weight'])
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    groups: int
    reshaped: bool

    def __init__(
        self, conv_module: Callable[..., nn.Module], in_channels: int, out_channels: int,
        kernel_size: int | tuple[int, ...], r: int = 0, lora_alpha: float = 1, lora_dropout: float = 0.0,
        merge_weights: bool = True, *, reshaped: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        base = build(conv_module, in_channels, out_channels, kernel_size, **kwargs)
        if not isinstance(self, type(base)):
            self.__class__ = join(type(self), type(base))
        # the convolution's state is the layer's; its dictionaries are copied, since the factors join the parameters
        vars(self).update({k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(base).items()})
        self._begin(r, lora_alpha, lora_dropout, merge_weights)
        if type(base) not in BASES:
            # nobody but its own class can make it anew
            self.home = [base]
        self._grow_kernel(r, reshaped)

    @property
    def conv(self) -> nn.Module:
        """The convolution without the update, over the layer's own parameters, as the original holds it.

        What is assigned to it or loaded into it reaches the layer. Setting it takes another one's parameters over.
        """
        return outside(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "conv":
            # torch would register a module of that name before it looked for a property
            put(self, value)
        else:
            super().__setattr__(name, value)

    def _kind(self) -> Kind:
        return KINDS["Conv"]

    def _grow_kernel(self, r: int, reshaped: bool) -> None:
        """Make factors of the one layout or the other, and draw all values."""
        self.reshaped = reshaped and r > 0
        kernel, groups = self.kernel_size, self.groups
        if self.reshaped:
            shape_A = (r * kernel[0], self.in_channels * kernel[0])
            shape_B = (self.out_channels // groups * kernel[0], r * kernel[0])
            if shape_A[1] * shape_B[0] != self.weight.numel() or len(set(kernel)) > 1:
                raise self._refuse(
                    "reshaped=True", f"a kernel of {kernel}", "a square kernel of two axes",
                    "leave reshaped out; the original cannot run this kernel either.",
                )  # fmt: skip
            self._grow(shape_A, shape_B)
        elif r > 0:
            if r % groups:
                raise self._refuse(
                    f"r={r}", f"{groups} groups", f"a rank that the groups share evenly: a multiple of {groups}",
                    f"use r={groups}, or reshaped=True for the original's layout.",
                )  # fmt: skip
            shapes = self._kind().shapes(self, r, self.in_channels, self.out_channels)
            self._grow(*shapes)
        self.reset_parameters()

    def _refuse(self, setting: str, got: str, expected: str, hint: str) -> ConfigError:
        where = f"{type(self).__name__}({setting})"
        return ConfigError(
            "this convolution cannot have such factors", where=where, got=got, expected=expected, hint=hint
        )

    def _whole(self) -> Tensor:
        """The original's reading of its factors: the product, reshaped to the kernel."""
        return (self.lora_B @ self.lora_A).view(self.weight.shape)

    def _factors(self) -> tuple[Tensor, Tensor]:
        if not self.reshaped:
            return self.lora_A, self.lora_B
        # as a convolution that product is an A of its own, which B passes on as it is
        rows = self.out_channels // self.groups
        passing = torch.eye(rows, dtype=self.lora_A.dtype, device=self.lora_A.device).repeat(self.groups, 1)
        return self._whole(), passing.view(self.out_channels, rows, *(1 for _ in self.kernel_size))

    def settings(self) -> dict[str, Any]:
        """What a checkpoint must agree on.

        Returns:
            name -> value.
        """
        return {**super().settings(), "reshaped": self.reshaped}

    def forward(self, x: Tensor) -> Tensor:
        """The convolution, and the update's term unless it is in the weight.

        Args:
            x: shape (batch, in_channels, ...) or (in_channels, ...).

        Returns:
            The output, as the torch layer has it.
        """
        speaks = self._speaks()
        out: Tensor = super().forward(x)
        if not speaks:
            return out
        kind, dropped = self._kind(), self.lora_dropout(x)
        if self.reshaped:
            return add_term(out, kind.down(self, dropped, self._whole(), out.dtype), self.scaling)
        return add_term(out, kind.up(self, kind.down(self, dropped, self.lora_A, out.dtype), self.lora_B), self.scaling)

    def plain(self) -> nn.Module:
        """The torch convolution of these sizes, on the meta device.

        Returns:
            The layer.
        """
        cls: Any = BASES[len(self.kernel_size) - 1]
        same = {name: getattr(self, name) for name in SAME}
        made: nn.Module = cls(**same, bias=self.bias is not None, device="meta")
        return made

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Read the names of every release: ``conv.weight`` (0.1.2), ``weight``, or both."""
        for leaf in (*self._parameters, *self._buffers):
            inner = state_dict.pop(f"{prefix}conv.{leaf}", None)
            if inner is not None:
                state_dict.setdefault(f"{prefix}{leaf}", inner)
        stored = state_dict.get(f"{prefix}lora_A")
        if self.adapted and not self.reshaped and stored is not None and stored.dim() == 2 != self.lora_A.dim():
            raise CheckpointError(
                "these factors are reshaped to the kernel, and this layer's are not",
                where=f"layer '{prefix[:-1]}'",
                got=f"lora_A {tuple(stored.shape)}, as the original's Conv2d stores it",
                expected=f"lora_A {tuple(self.lora_A.shape)}",
                hint="make the layer with reshaped=True.",
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _OfTorch(ConvLoRA):
    """A ConvLoRA of one of torch's own classes, which need not be named."""

    _base: ClassVar[Callable[..., nn.Module]]

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, ...], r: int = 0,
        lora_alpha: float = 1, lora_dropout: float = 0.0, merge_weights: bool = True, *, reshaped: bool = False,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            type(self)._base, in_channels, out_channels, kernel_size, r, lora_alpha, lora_dropout, merge_weights,
            reshaped=reshaped, **kwargs,
        )  # fmt: skip

    @classmethod
    def from_base(
        cls: type[Self], base: nn.Module, *, r: int, lora_alpha: float, lora_dropout: float = 0.0,
        merge_weights: bool = True, reshaped: bool = False,
    ) -> Self:  # fmt: skip
        """Put an update beside the kernel of a convolution that exists; kernel and bias are its very parameters.

        Args:
            base: a convolution of torch of the same number of axes; put the new layer in its place.
            r: rank of the update.
            lora_alpha: numerator of the scaling.
            lora_dropout: probability in [0, 1) of dropping entries of the update's input.
            merge_weights: ``eval()`` adds the update to the kernel, ``train()`` takes it off again.
            reshaped: factors in the layout of the original's Conv2d.

        Returns:
            The layer, in the mode of ``base``.

        Raises:
            TargetError: if it is another kind of layer, or one whose forward or weight is not torch's own.
        """
        if type(base) not in BASES or not issubclass(cls, type(base)):
            raise refuse_base(base, f"a plain nn.{cls.__name__}")
        settings = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "merge_weights": merge_weights}
        same = {name: getattr(base, name) for name in SAME}
        return take(cls, base, {**same, **settings, "reshaped": reshaped})


class Conv1d(_OfTorch, nn.Conv1d):
    """nn.Conv1d with an update of rank r; see ``ConvLoRA`` for its arguments."""

    _base = nn.Conv1d


class Conv2d(_OfTorch, nn.Conv2d):
    """nn.Conv2d with an update of rank r; see ``ConvLoRA`` for its arguments.

    Example:
        >>> layer = Conv2d(4, 8, 3, r=2)
        >>> layer.lora_A.shape, layer.lora_B.shape
        (torch.Size([2, 4, 3, 3]), torch.Size([8, 2, 1, 1]))
    """

    _base = nn.Conv2d


class Conv3d(_OfTorch, nn.Conv3d):
    """nn.Conv3d with an update of rank r; see ``ConvLoRA`` for its arguments."""

    _base = nn.Conv3d
