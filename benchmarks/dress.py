"""The same model in every dress: frozen, with deltaw, with PEFT, with loralib, and trained in full.

All adapters hold the same factors, B included, and `verify` compares outputs and every gradient before anything is
measured. Sizes: GPT-2 (124 million parameters), a Llama-like model of 162 million (hidden 1024, 8 layers, 16 heads in 4
groups, gated MLP of 3072, vocabulary 32,000), RoBERTa-base; random weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import harness  # sets the environment before transformers is imported
import tomllib
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deltaw as dw

STEP: dict[str, Any] = tomllib.loads((Path(harness.HERE) / "competitors.toml").read_text(encoding="utf-8"))["step"]
WIDTH, INNER = 1024, 3072
MODELS = ("llama", "gpt2", "roberta")
LONGEST = 1024
ADAPTERS = ("deltaw", "PEFT", "loralib")


class Layer(nn.Module):
    """One layer of the Llama-like model: grouped attention of 16 heads and 4 groups, and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.q_proj, self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj, self.v_proj = nn.Linear(WIDTH, WIDTH // 4, bias=False), nn.Linear(WIDTH, WIDTH // 4, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (-1, 64)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(a.transpose(1, 2).flatten(-2))
        h = self.norm2(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


def build(name: str, *, layers: int | None = None) -> nn.Module:
    """A model of random weights with a loss; dropout of its own off, as in all comparisons."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        RobertaConfig,
        RobertaForSequenceClassification,
    )  # fmt: skip

    torch.manual_seed(0)
    if name == "layer":
        return Layer()
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=32_000, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=layers or 8,
            num_attention_heads=16, num_key_value_heads=4, use_cache=False,
        ))  # fmt: skip
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(
            n_layer=layers or 12, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False
        ))  # fmt: skip
    return RobertaForSequenceClassification(RobertaConfig(
        vocab_size=50_265, num_hidden_layers=layers or 12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        # two positions are reserved; the published model ends at 512 tokens
        max_position_embeddings=LONGEST + 2, type_vocab_size=1, num_labels=2,
    ))  # fmt: skip


def batch(name: str, rows: int, tokens: int) -> dict[str, Tensor]:
    """Random inputs; every token, or every row, has a label."""
    generator = torch.Generator().manual_seed(1)
    if name == "layer":
        return {"x": torch.randn(rows, tokens, WIDTH, generator=generator)}
    ids = torch.randint(3, 32_000, (rows, tokens), generator=generator)
    return {"input_ids": ids, "labels": ids if name != "roberta" else torch.arange(rows) % 2}


def loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The model's own loss; for a layer, whose input is another layer's output and wants a gradient, a mean."""
    if "x" not in inputs:
        return model(**inputs).loss  # type: ignore[no-any-return]
    dtype = next(model.parameters()).dtype
    return model(inputs["x"].to(dtype).requires_grad_()).float().square().mean()


def targets_of(name: str, adapted: str) -> tuple[list[str], int]:
    """Target modules and rank."""
    spec = STEP["adapted"][adapted]
    return spec["llama" if name == "layer" else name], spec["rank"]


def floor(model: nn.Module, targets: list[str]) -> nn.Module:
    """Frozen; what a first adapted module puts out wants a gradient, as no LoRA can avoid."""
    model.requires_grad_(False)

    def mark(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if not output.requires_grad and torch.is_grad_enabled():
            output.requires_grad_()

    for path, module in model.named_modules():
        if any(f".{path}".endswith(f".{target}") for target in targets):
            module.register_forward_hook(mark)
    return model


def with_peft(model: nn.Module, targets: list[str], rank: int, dropout: float, **options: Any) -> nn.Module:
    import peft

    conv = any(type(module).__name__ == "Conv1D" for module in model.modules())
    config = peft.LoraConfig(
        r=rank, lora_alpha=STEP["alpha"], target_modules=targets, lora_dropout=dropout, fan_in_fan_out=conv
    )
    return peft.get_peft_model(model, config, **options)


def with_loralib(model: nn.Module, targets: list[str], rank: int, dropout: float) -> nn.Module:
    """Its layers in the places of the model's, as its users write them."""
    import loralib

    model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        if not any(f".{path}".endswith(f".{target}") for target in targets):
            continue
        weight, bias = module.weight, module.bias
        conv = not isinstance(module, nn.Linear)
        sizes = tuple(weight.shape if conv else reversed(weight.shape))
        made = loralib.Linear(
            *sizes, r=rank, lora_alpha=STEP["alpha"], lora_dropout=dropout, fan_in_fan_out=conv, merge_weights=False,
            bias=bias is not None, device="meta",
        )  # fmt: skip
        made.weight, made.bias = weight, bias
        made.lora_A = nn.Parameter(torch.zeros(rank, sizes[0], dtype=weight.dtype))
        made.lora_B = nn.Parameter(torch.zeros(sizes[1], rank, dtype=weight.dtype))
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, made)
    return model


def factors(dress: str, model: nn.Module, path: str) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B of a site."""
    if dress == "deltaw":
        mine: Any = model.get_submodule(f"{path}.lora.default")
        return mine.lora_A, mine.lora_B
    if dress == "loralib":
        other: Any = model.get_submodule(path)
        return other.lora_A, other.lora_B
    his: Any = model.get_submodule(f"base_model.model.{path}")
    return his.lora_A["default"].weight, his.lora_B["default"].weight


def sites(model: nn.Module, targets: list[str]) -> list[str]:
    return [path for path, _ in model.named_modules() if any(f".{path}".endswith(f".{target}") for target in targets)]


def put_on(dress: str, model: nn.Module, targets: list[str], rank: int, dropout: float, **options: Any) -> nn.Module:
    """One dress; adapters get the same factors whatever the library."""
    if dress == "floor":
        return floor(model, targets)
    if dress == "full":
        return model.requires_grad_(True)
    paths = sites(model, targets)
    if dress == "deltaw":
        config = dw.LoRAConfig(targets=targets, rank=rank, alpha=STEP["alpha"], dropout=dropout, seed=0)
        dw.attach(model, config)
    else:
        make: Callable[..., nn.Module] = with_loralib if dress == "loralib" else with_peft
        model = make(model, targets, rank, dropout, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for path in paths:
            lora_A, lora_B = factors(dress, model, path)
            lora_A.copy_(torch.randn(lora_A.shape, generator=generator) / lora_A.shape[1] ** 0.5)
            lora_B.copy_(torch.randn(lora_B.shape, generator=generator) * 0.01)
    return model


def wardrobe(
    name: str, adapted: str, dropout: float, dresses: Mapping[str, tuple[str, dict[str, Any]]], dtype: Any = None
) -> dict[str, nn.Module]:
    """One model in several dresses; what is frozen is shared, so that a large model is made and held once.

    Args:
        name: of the model.
        adapted: as in competitors.toml.
        dropout: of the adapters.
        dresses: label -> dress and its options.
        dtype: of the base; float32 by default.
    """
    targets, rank = targets_of(name, adapted)
    base = build(name).to(dtype or torch.float32)
    made = {}
    for label, (dress, options) in dresses.items():
        # deepcopy hands on what its memo already holds
        frozen = {} if dress == "full" else {id(tensor): tensor for tensor in base.parameters()}
        made[label] = put_on(dress, copy.deepcopy(base, dict(frozen)), targets, rank, dropout, **options)
    return made


def verify(made: dict[str, nn.Module], name: str, adapted: str, inputs: dict[str, Tensor]) -> None:
    """Without dropout, losses and all gradients of the adapters agree, and so do those of floor and full."""
    targets, _ = targets_of(name, adapted)
    present = [dress for dress in ADAPTERS if dress in made]
    losses, gradients = {}, {}
    for dress, model in made.items():
        value = loss(model.eval(), inputs)
        losses[dress] = value.detach()
        if dress in present:
            value.backward()
            base = made["floor"] if "floor" in made else build(name)
            gradients[dress] = [f.grad for path in sites(base, targets) for f in factors(dress, model, path)]
        model.zero_grad(set_to_none=True)
    for dress in present[1:]:
        torch.testing.assert_close(losses[dress], losses[present[0]], rtol=1e-5, atol=1e-5)
        for mine, his in zip(gradients[present[0]], gradients[dress], strict=True):
            error = float((mine - his).norm() / his.norm())
            assert error < 1e-3, f"{dress}: gradients differ by {error:.1e} of their norm"
    if "full" in made and "floor" in made:
        torch.testing.assert_close(losses["full"], losses["floor"], rtol=1e-6, atol=1e-6)


def step(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Forward and backward; gradients are those of one step."""
    model.zero_grad(set_to_none=True)
    loss(model, inputs).backward()
