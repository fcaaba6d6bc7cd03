"""PEFT as a judge of adapter files: the same adapter, worn by both libraries, compared site by site and as a whole.

The bound is relative to the judge itself: at every site, our output may differ from PEFT's by at most four times
PEFT's own error against a float64 reference, which is written here in numpy and shares no code with either side.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

import deltaw as dw

FACTOR = 4.0
ALLOWED = {
    r"Model has `tie_word_embeddings=True`": "generic; says that a merge would touch both, merging is not done here",
    r"Setting `save_embedding_layers` to `True`": "PEFT announces the copy of the frozen table it writes along",
    r"Could not identify embedding layer": "as above, for a model that is none of transformers",
    r"fan_in_fan_out is set to": "one flag cannot describe a model with both layouts; PEFT corrects it per layer",
}
"""Warnings of PEFT that a correct file can cause, each with the reason why it is harmless."""


@contextlib.contextmanager
def quiet(allowed: Mapping[str, str] = ALLOWED) -> Iterator[None]:
    """Turn every warning that is not on the list into a failure."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    unexpected = [
        str(one.message)
        for one in caught
        if not issubclass(one.category, DeprecationWarning | FutureWarning)
        and not any(re.search(pattern, str(one.message)) for pattern in allowed)
    ]
    assert not unexpected, unexpected


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One feature of the file format, as both libraries say it.

    Args:
        name: id of the test.
        model: makes the base, the same values on every call.
        ours: fields of LoRAConfig.
        theirs: fields of PEFT's LoraConfig, or None where PEFT cannot make such an adapter.
        scaling: regular expression for the end of a path -> scaling there; 7/3 everywhere else.
        tokens: whether the input is token ids.
        extra_keys: key endings that only PEFT writes, with the reason in the test's name.
        folded: slices of several scalings, which are folded into B and come back within one rounding.
        allowed: further warnings.
    """

    name: str
    model: Callable[[], nn.Module]
    ours: dict[str, Any]
    theirs: dict[str, Any] | None
    scaling: dict[str, float] = field(default_factory=dict)
    tokens: bool = True
    extra_keys: tuple[str, ...] = ()
    folded: bool = False
    allowed: dict[str, str] = field(default_factory=dict)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A base in eval mode whose values depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def inputs(model: nn.Module, tokens: bool) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    if tokens:
        return torch.randint(1, model.config.vocab_size, (2, 6), generator=generator)  # type: ignore[union-attr]
    return torch.randn(3, 8, generator=generator)


def output(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out = model(x)
    return out if isinstance(out, Tensor) else out.logits if "logits" in out else out.last_hidden_state


@torch.no_grad()
def fill(named: list[tuple[str, nn.Parameter]], seed: int = 5) -> None:
    """Values of trained size for everything trainable: no factor is zero, every bias and head has moved."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in named:
        noise = torch.randn(parameter.shape, generator=generator)
        if "lora_" in name:
            # the embedding's A is looked up and not multiplied, so it is not scaled down by its width
            width = 1 if "embedding_A" in name else parameter.shape[-1]
            parameter.copy_(noise * 0.6 / width**0.5)
        else:
            parameter.add_((noise * 0.1).to(parameter.dtype))


def peft_model(base: nn.Module, fields: dict[str, Any], name: str = "default") -> Any:
    import peft

    made = peft.get_peft_model(base, peft.LoraConfig(**fields), adapter_name=name)
    return made.eval()


def peft_load(
    base: nn.Module,
    directory: Path,
    name: str = "default",
    allowed: Mapping[str, str] = ALLOWED,
    aliases: tuple[str, ...] = (),
) -> Any:
    """Load as PEFT's users do; a missing key, an unexpected key or a warning fails."""
    import peft

    with quiet(allowed):
        made = peft.PeftModel.from_pretrained(base, str(directory), adapter_name=name)
        result = peft.set_peft_model_state_dict(made, tensors(directory), adapter_name=name)
    missing = [key for key in result.missing_keys if f".{name}" in key and not key.endswith(aliases or ("\0",))]
    assert not missing, missing
    assert not result.unexpected_keys, result.unexpected_keys
    return made.eval()


def tensors(directory: Path) -> dict[str, Tensor]:
    with safe_open(str(directory / "adapter_model.safetensors"), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def _site_reference(module: Any, x: Tensor, lora_A: Tensor, lora_B: Tensor, bias: Any, scaling: float) -> Any:
    """float64 numpy: base output plus scaling * B A x."""
    wide = lambda t: t.detach().double().numpy()  # noqa: E731
    a, b = wide(lora_A), wide(lora_B)
    if isinstance(module, nn.Embedding):
        ids = x.numpy()
        return wide(module.weight)[ids] + scaling * (a.T[ids] @ b.T)
    weight = wide(module.weight) if isinstance(module, nn.Linear) else wide(module.weight).T
    out = wide(x) @ weight.T + scaling * ((wide(x) @ a.T) @ b.T)
    bias = module.bias if bias is None else bias
    return out if bias is None else out + wide(bias)


def _seen(model: nn.Module, paths: list[str], x: Tensor) -> dict[str, Tensor]:
    """What arrives at every adapted site in a forward of our model."""
    found: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: found.setdefault(path, args[0].detach())
        )
        for path in paths
    ]
    output(model, x)
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def compare_sites(
    ours: nn.Module, theirs: Any, file: Mapping[str, Tensor], scalings: dict[str, float], x: Tensor
) -> int:
    """Compare every adapted site on the inputs it really gets; raises AssertionError. Returns the number of sites."""
    seen = _seen(ours, list(scalings), x)
    judge = theirs.get_base_model()
    for path, scaling in scalings.items():
        mine, his = ours.get_submodule(path), judge.get_submodule(path)
        stem = f"base_model.model.{path}."
        kind = "lora_embedding_{}" if isinstance(mine, nn.Embedding) else "lora_{}.weight"
        pair = file[stem + kind.format("A")], file[stem + kind.format("B")]
        reference = _site_reference(mine, seen[path], *pair, file.get(stem + "base_layer.bias"), scaling)
        base = _site_reference(mine, seen[path], *pair, file.get(stem + "base_layer.bias"), 0.0)
        got, judged = mine(seen[path]).double().numpy(), his(seen[path]).double().numpy()
        size = np.abs(reference).max()
        assert np.abs(reference - base).max() > 1e-2 * size, f"{path}: the update is too small to judge"
        # an exact judge still rounds its output once
        own = max(np.abs(judged - reference).max(), size * 2.0**-25)
        assert own < 1e-5 * size, f"{path}: PEFT itself is off by {own / size:.1e}; expected another scaling"
        off = np.abs(got - judged).max()
        assert off <= FACTOR * own, f"{path}: off by {off / size:.2e}, PEFT itself by {own / size:.2e}"
    return len(scalings)


@torch.no_grad()
def compare_models(ours: nn.Module, theirs: Any, x: Tensor) -> None:
    """Compare outputs relative to the largest one; the bound is PEFT's own error in fp32, four times."""
    got, judged = output(ours, x).double(), output(theirs, x).double()
    exact = output(copy.deepcopy(theirs).double(), x if x.dtype == torch.long else x.double())
    size = exact.abs().max().item()
    own = max((judged - exact).abs().max().item() / size, 2.0**-22)
    off = (got - judged).abs().max().item() / size
    assert off <= FACTOR * own, f"outputs off by {off:.2e} of the largest, PEFT itself by {own:.2e}"


def expected_scalings(feature: Feature, paths: list[str]) -> dict[str, float]:
    """What the feature says every site's scaling is; never read from either library."""
    return {
        path: next((value for end, value in feature.scaling.items() if re.search(end, path)), 7 / 3) for path in paths
    }


def site_paths(file: Mapping[str, Tensor]) -> list[str]:
    """Adapted modules of a file, by its keys."""
    stems = [
        re.sub(r"\.lora_(embedding_A|A\.weight)$", "", key) for key in file if ".lora_A." in key or "_A" in key[-2:]
    ]
    return [stem.removeprefix("base_model.model.") for stem in stems]


def wear(feature: Feature, directory: Path, name: str = "default") -> nn.Module:
    """Our side: attach, fill, save."""
    model = seeded(feature.model)
    dw.attach(model, dw.LoRAConfig(**feature.ours), name)
    fill(dw.trainable(model))
    dw.save(model, directory, name)
    return model.eval()
