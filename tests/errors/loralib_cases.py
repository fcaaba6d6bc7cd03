"""Bad use of the original package's face: settings, layers, checkpoints that lack or contradict something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import deltaw as dw
import deltaw.loralib as lora


def net(alpha: float = 16, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = {name: lora.Linear(4, 4, r=2, lora_alpha=alpha) for name in ("query", "value")}
        return nn.ModuleDict({**layers, "classifier": nn.Linear(4, 3)})


def plain(tmp: Path, **changes: torch.Tensor | None) -> Path:
    """A file as the original writes it, with some tensors changed or left out."""
    state = {**lora.lora_state_dict(net()), **{key.replace("__", "."): value for key, value in changes.items()}}
    torch.save({key: value for key, value in state.items() if value is not None}, tmp / "lora.pt")
    return tmp / "lora.pt"


def misfits(tmp: Path) -> None:
    path = plain(tmp, query__lora_A=torch.ones(4, 4), value__lora_B=None, valu__lora_B=torch.ones(4, 2))
    lora.load(net(), path, alpha=16)


def head(tmp: Path) -> None:
    lora.load(net(), plain(tmp, classifier__weight=torch.ones(2, 4)), alpha=16)


def saved(tmp: Path, model: nn.Module) -> None:
    lora.save(net(), tmp / "lora.safetensors")
    lora.load(model, tmp / "lora.safetensors")


def by_state_dict(tmp: Path) -> None:
    net(alpha=8).load_state_dict(lora.lora_state_dict(net()), strict=False)


def reshaped(tmp: Path) -> None:
    state = lora.Conv2d(4, 4, 3, r=2, reshaped=True).state_dict()
    nn.ModuleDict({"conv": lora.Conv2d(4, 4, 3, r=2)}).load_state_dict({f"conv.{k}": v for k, v in state.items()})


def edited(tmp: Path) -> None:
    model = net().eval()
    with torch.no_grad():
        model.get_parameter("query.weight").zero_()
    model.train()


def tied(tmp: Path) -> None:
    model = nn.ModuleDict({"wte": lora.Embedding(6, 4, r=2), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["wte"].weight  # type: ignore[assignment]
    lora.mark_only_lora_as_trainable(model)


CASES: dict[str, Callable[[Path], Any]] = {
    "loralib_rank": lambda tmp: lora.Linear(4, 4, r=-1),
    "loralib_projections": lambda tmp: lora.MergedLinear(4, 7, r=2, enable_lora=[True, False]),
    "loralib_conv_groups": lambda tmp: lora.Conv2d(4, 4, 3, r=3, groups=2),
    "loralib_conv_reshaped": lambda tmp: lora.Conv2d(4, 4, (3, 1), r=2, reshaped=True),
    "loralib_conv_transposed": lambda tmp: lora.ConvLoRA(nn.ConvTranspose2d, 4, 4, 3, r=2),
    "loralib_conv_own_forward": lambda tmp: lora.ConvLoRA(Strange, 4, 4, 3, r=2),
    "loralib_conv_no_class": lambda tmp: lora.ConvLoRA(nn.Conv2d(4, 4, 3), 4, 4, 3, r=2),
    "loralib_conv_replaced": lambda tmp: setattr(lora.Conv2d(4, 4, 3, r=2), "conv", nn.Conv2d(4, 8, 3)),
    "loralib_conv_hooked": lambda tmp: lora.Conv2d(4, 4, 3, r=2).conv.register_forward_hook(print),
    "loralib_mask_other": lambda tmp: setattr(fused(), "lora_ind", torch.ones(6, dtype=torch.bool)),
    "loralib_pad_rows": lambda tmp: fused().zero_pad(torch.ones(6, 4)),
    "loralib_bias_unknown": lambda tmp: lora.lora_state_dict(net(), bias="some"),
    "loralib_no_layer": lambda tmp: lora.mark_only_lora_as_trainable(nn.Linear(4, 4)),
    "loralib_tied": tied,
    "loralib_merged_edited": edited,
    "loralib_alpha_missing": lambda tmp: lora.load(net(), plain(tmp)),
    "loralib_alpha_of_layers": lambda tmp: lora.load(net(alpha=8), plain(tmp), alpha=16),
    "loralib_alpha_in_file": lambda tmp: saved(tmp, net(alpha=8)),
    "loralib_alpha_by_state_dict": by_state_dict,
    "loralib_other_base": lambda tmp: saved(tmp, net(seed=1)),
    "loralib_misfits": misfits,
    "loralib_head_of_other_size": head,
    "loralib_whole_checkpoint": lambda tmp: lora.load(net(), plain(tmp, query__weight=torch.ones(4, 4)), alpha=16),
    "loralib_file_missing": lambda tmp: lora.load(net(), plain(tmp).with_name("lora.bin"), alpha=16),
    "loralib_conv_factors": reshaped,
    "loralib_save_wrapped": lambda tmp: lora.save(net(), tmp / "lora.safetensors", wrapped=True),
    "loralib_attach_attention": lambda tmp: lora.attach(
        nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2)}), ["attn"], r=2, lora_alpha=4
    ),
    "loralib_attach_hooks": lambda tmp: lora.attach(hooked(), ["0"], r=2, lora_alpha=4),
    "loralib_attach_core": lambda tmp: dw.attach(net(), dw.LoRAConfig(targets=["query"])),
}


class Strange(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 2


def fused() -> lora.MergedLinear:
    return lora.MergedLinear(4, 6, r=2, enable_lora=[True, False])


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda module, args, out: out + 1)
    return model
