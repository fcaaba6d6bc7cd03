"""What a library must be able to do to be judged: about a dozen verbs, spelled once for deltaw and once for PEFT.

A driver holds one model. Its verbs raise the library's own errors; what the library tells besides (warnings, reports,
results) is collected in ``told``. A verb that a library does not have yet raises ``Later``.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from bases import Spec, output, replicate
from safetensors import SafetensorError
from torch import Tensor, nn

import deltaw as dw
from deltaw.errors import DeltawError


class Later(Exception):
    """The library has no such verb yet."""


class Driver(Protocol):
    """The verbs. A driver is made from a base model and keeps it as ``base``."""

    title: ClassVar[str]
    errors: ClassVar[tuple[type[BaseException], ...]]
    """What counts as a refusal, as against a crash."""
    sums: ClassVar[tuple[str, ...]]
    """Kinds of ``combine`` that promise the sum."""
    kinds: ClassVar[tuple[str, ...]]
    """Kinds of ``combine`` that must leave one adapter as it is."""
    base: nn.Module
    told: list[str]

    def __init__(self, base: nn.Module) -> None: ...
    def attach(self, spec: Spec, name: str = "default") -> None: ...
    def detach(self, name: str | None = None) -> None: ...
    def run(self, x: Tensor) -> Tensor: ...
    def callable(self) -> nn.Module: ...
    def save(self, directory: Path, name: str = "default", pickled: bool = False) -> None: ...
    def load(self, directory: Path, name: str = "default", trainable: bool = False) -> None: ...
    def activate(self, names: str | list[str]) -> None: ...
    def active(self, name: str) -> contextlib.AbstractContextManager[None]: ...
    def disabled(self) -> contextlib.AbstractContextManager[None]: ...
    def rescale(self, name: str, weight: float) -> None: ...
    def merge(self, names: list[str] | None = None, careful: bool = False) -> None: ...
    def unmerge(self) -> None: ...
    def export_merged(self) -> nn.Module: ...
    def forward_mixed(self, x: Tensor, names: Sequence[str | None]) -> Tensor: ...
    def delta(self, path: str, name: str = "default") -> Tensor: ...
    def trainable(self) -> dict[str, nn.Parameter]: ...
    def parameters(self, name: str = "default") -> dict[str, nn.Parameter]: ...
    def freeze(self, name: str) -> None: ...
    def combine(self, names: list[str], weights: list[float], into: str, kind: str = "") -> None: ...
    def base_state(self) -> dict[str, Tensor]: ...


class Deltaw:
    """deltaw, through its public names alone."""

    title: ClassVar[str] = "deltaw"
    errors: ClassVar[tuple[type[BaseException], ...]] = (DeltawError,)
    sums: ClassVar[tuple[str, ...]] = ("exact",)
    kinds: ClassVar[tuple[str, ...]] = ("exact",)
    _VARIANT: ClassVar[dict[str, str]] = {"bias": "lora_bias"}
    _INIT: ClassVar[dict[str, str]] = {"default": "kaiming"}

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        self.told: list[str] = []

    def config(self, spec: Spec) -> dw.LoRAConfig:
        return dw.LoRAConfig(
            targets=spec.targets, rank=spec.rank, alpha=spec.alpha, rank_stabilized=spec.stabilized,
            dropout=spec.dropout, variant=self._VARIANT.get(spec.variant, spec.variant),
            init=self._INIT.get(spec.init, spec.init), bias=spec.bias, exclude=spec.exclude, train_also=spec.whole,
            train_rows=spec.rows, rank_pattern=spec.rank_pattern, alpha_pattern=spec.alpha_pattern,
            ties=spec.ties or "refuse",
        )  # fmt: skip

    def attach(self, spec: Spec, name: str = "default") -> None:
        if spec.replication:  # not an option of deltaw's: the user stacks the layers
            replicate(self.base, spec.replication)
            spec = spec.but(ties="separate")
        self.told += dw.attach(self.base, self.config(spec), name).plan.notes

    def detach(self, name: str | None = None) -> None:
        dw.detach(self.base, name)

    def run(self, x: Tensor) -> Tensor:
        return output(self.base(x))

    def callable(self) -> nn.Module:
        return self.base

    def save(self, directory: Path, name: str = "default", pickled: bool = False) -> None:
        if pickled:
            raise Later("pickles are read and never written")
        self.told += dw.save(self.base, directory, name).notes

    def load(self, directory: Path, name: str = "default", trainable: bool = False) -> None:
        self.told += dw.load(self.base, directory, name, trainable=trainable).notes

    def activate(self, names: str | list[str]) -> None:
        dw.activate(self.base, names if isinstance(names, str) else dict.fromkeys(names, 1.0))

    def active(self, name: str) -> contextlib.AbstractContextManager[None]:
        return dw.active(self.base, name)

    def disabled(self) -> contextlib.AbstractContextManager[None]:
        return dw.disabled(self.base)

    def rescale(self, name: str, weight: float) -> None:
        dw.activate(self.base, {name: weight})

    def merge(self, names: list[str] | None = None, careful: bool = False) -> None:
        dw.merge(self.base, None if names is None else dict.fromkeys(names, 1.0))

    def unmerge(self) -> None:
        dw.unmerge(self.base)

    def export_merged(self) -> nn.Module:
        dw.merge(self.base)
        return self.base

    def forward_mixed(self, x: Tensor, names: Sequence[str | None]) -> Tensor:
        with dw.route(self.base, names):
            return self.run(x)

    def value(self, name: str) -> dw.Adapter:
        with tempfile.TemporaryDirectory() as directory:
            dw.save(self.base, directory, name)
            return dw.Adapter.open(directory)

    def delta(self, path: str, name: str = "default") -> Tensor:
        return self.value(name).delta(path)

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(dw.trainable(self.base))

    def parameters(self, name: str = "default") -> dict[str, nn.Parameter]:
        return {key: p for key, p in self.base.named_parameters() if f".lora.{name}." in f".{key}"}

    def freeze(self, name: str) -> None:
        dw.freeze(self.base, name)

    def combine(self, names: list[str], weights: list[float], into: str, kind: str = "") -> None:
        dw.load(self.base, dw.combine([self.value(name) for name in names], weights).adapter, into)

    def base_state(self) -> dict[str, Tensor]:
        return {key: t for key, t in self.base.state_dict().items() if ".lora." not in f".{key}"}


class Peft:
    """PEFT, used as its documentation does: ``get_peft_model`` or ``from_pretrained`` first, methods after that."""

    title: ClassVar[str] = "PEFT 0.21.2"
    errors: ClassVar[tuple[type[BaseException], ...]] = (
        ValueError, TypeError, KeyError, RuntimeError, AttributeError, NotImplementedError, OSError, SafetensorError,
    )  # fmt: skip
    sums: ClassVar[tuple[str, ...]] = ("cat", "svd")
    kinds: ClassVar[tuple[str, ...]] = ("cat", "svd", "linear")
    _INIT: ClassVar[dict[str, Any]] = {"default": True}

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        self.wrapped: Any = None
        self.told: list[str] = []

    @contextlib.contextmanager
    def _heard(self) -> Iterator[None]:
        """Collect the warnings of a verb."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            finally:
                self.told += [
                    str(one.message)
                    for one in caught
                    if not issubclass(one.category, DeprecationWarning | FutureWarning)
                ]

    def config(self, spec: Spec) -> Any:
        import peft

        return peft.LoraConfig(
            target_modules=list(spec.targets), r=spec.rank, lora_alpha=spec.alpha, use_rslora=spec.stabilized,
            lora_dropout=spec.dropout, use_dora=spec.variant == "dora", lora_bias=spec.variant == "bias",
            init_lora_weights=self._INIT.get(spec.init, spec.init), bias=spec.bias,
            exclude_modules=list(spec.exclude) or None, modules_to_save=list(spec.whole) or None,
            trainable_token_indices=spec.rows or None, rank_pattern=dict(spec.rank_pattern),
            alpha_pattern=dict(spec.alpha_pattern), layer_replication=list(map(list, spec.replication)) or None,
            ensure_weight_tying=spec.ties == "share",
            fan_in_fan_out="Conv1D" in {type(m).__name__ for m in self.base.modules()},
        )  # fmt: skip

    def attach(self, spec: Spec, name: str = "default") -> None:
        import peft

        with self._heard():
            if self.wrapped is None:
                self.wrapped = peft.get_peft_model(self.base, self.config(spec), adapter_name=name)
            else:
                self.wrapped.add_adapter(name, self.config(spec))

    def detach(self, name: str | None = None) -> None:
        with self._heard():
            if name is not None:
                self.wrapped.delete_adapter(name)
            else:
                self.base, self.wrapped = self.wrapped.unload(), None

    def run(self, x: Tensor) -> Tensor:
        with self._heard():
            return output(self.callable()(x))

    def callable(self) -> nn.Module:
        return self.base if self.wrapped is None else self.wrapped

    def save(self, directory: Path, name: str = "default", pickled: bool = False) -> None:
        with self._heard():
            self.wrapped.save_pretrained(str(directory), selected_adapters=[name], safe_serialization=not pickled)
        if name != "default":
            for file in (directory / name).iterdir():
                file.replace(directory / file.name)

    def load(self, directory: Path, name: str = "default", trainable: bool = False) -> None:
        import peft

        with self._heard():
            if self.wrapped is None:
                self.wrapped = peft.PeftModel.from_pretrained(
                    self.base, str(directory), adapter_name=name, is_trainable=trainable
                )
            else:
                result = self.wrapped.load_adapter(str(directory), adapter_name=name, is_trainable=trainable)
                self.told += [*result.missing_keys, *result.unexpected_keys]

    def activate(self, names: str | list[str]) -> None:
        with self._heard():
            self.wrapped.set_adapter(names) if isinstance(names, str) else self.wrapped.base_model.set_adapter(names)

    @contextlib.contextmanager
    def active(self, name: str) -> Iterator[None]:
        # PEFT has no such block: the choice is the model's
        self.activate(name)
        yield

    def disabled(self) -> contextlib.AbstractContextManager[None]:
        return self.wrapped.disable_adapter()  # type: ignore[no-any-return]

    def _layers(self) -> dict[str, Any]:
        from peft.tuners.lora import LoraLayer

        found = self.callable().named_modules()
        return {path.removeprefix("base_model.model."): m for path, m in found if isinstance(m, LoraLayer)}

    def rescale(self, name: str, weight: float) -> None:
        self.activate(name)
        for layer in self._layers().values():
            layer.set_scale(name, weight)

    def merge(self, names: list[str] | None = None, careful: bool = False) -> None:
        with self._heard():
            self.wrapped.merge_adapter(adapter_names=names, safe_merge=careful)

    def unmerge(self) -> None:
        with self._heard():
            self.wrapped.unmerge_adapter()

    def export_merged(self) -> nn.Module:
        with self._heard():
            self.base, self.wrapped = self.wrapped.merge_and_unload(), None
        return self.base

    def forward_mixed(self, x: Tensor, names: Sequence[str | None]) -> Tensor:
        with self._heard():
            return output(self.wrapped(x, adapter_names=[name or "__base__" for name in names]))

    def delta(self, path: str, name: str = "default") -> Tensor:
        layer = self._layers()[path]
        dense: Tensor = layer.get_delta_weight(name).detach()
        flipped = getattr(layer, "fan_in_fan_out", False) or type(layer).__name__ == "Embedding"
        return dense.t() if flipped else dense.flatten(1)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {key: p for key, p in self.callable().named_parameters() if p.requires_grad}

    def parameters(self, name: str = "default") -> dict[str, nn.Parameter]:
        own = re.compile(rf"\.(lora_\w+|trainable_tokens_delta|modules_to_save)\.{name}(\.|$)")
        return {key: p for key, p in self.callable().named_parameters() if own.search(key)}

    def freeze(self, name: str) -> None:
        with self._heard():
            self.wrapped.set_requires_grad(name, requires_grad=False)

    def combine(self, names: list[str], weights: list[float], into: str, kind: str = "") -> None:
        # the rank that a sum can need; PEFT's own default is the largest of the ranks
        rank = sum(config.r for name, config in self.wrapped.peft_config.items() if name in names)
        with self._heard():
            self.wrapped.add_weighted_adapter(names, weights, into, combination_type=kind or "svd", svd_rank=rank)

    def base_state(self) -> dict[str, Tensor]:
        own = re.compile(r"\.(lora_\w+|trainable_tokens_\w+|modules_to_save)(\.|$)")
        noise = re.compile(r"base_model\.model\.|base_layer\.|original_module\.")
        state = self.callable().state_dict()
        return {noise.sub("", key): t for key, t in state.items() if not own.search(key)}


@torch.no_grad()
def fill(driver: Driver, name: str = "default", seed: int = 5, size: float = 0.5) -> None:
    """Values as of a trained adapter for everything of it: no factor is zero, every copy and bias has moved."""
    generator = torch.Generator().manual_seed(seed)
    named = driver.parameters(name)
    # the biases that PEFT trains are the base's own parameters, under no adapter's name
    named |= {key: p for key, p in driver.trainable().items() if key.endswith(".bias") and "lora" not in key}
    for key, parameter in sorted(named.items()):
        noise = torch.randn(parameter.shape, generator=generator)
        if re.search(r"lora_(embedding_)?[AB]\b", key) and not key.endswith("bias"):
            width = 1 if "embedding" in key else parameter[0].numel()
            parameter.copy_(noise * size / width**0.5)
        else:
            parameter.add_((noise * 0.1).to(parameter.dtype))
