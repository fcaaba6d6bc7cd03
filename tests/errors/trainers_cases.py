"""What stock trainers are refused, one case per kind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import builders


def attached(name: str = "default", **config: Any) -> Any:
    model = builders.llama()
    builders.attach(model, name, **{"rank": 2, "targets": ["q_proj"], **config})
    return model


def saving(**options: Any) -> Callable[[Path], None]:
    return lambda tmp: attached().save_pretrained(tmp / "out", **options)


def over_a_base(tmp: Path) -> None:
    builders.llama().save_pretrained(tmp / "base")
    attached().save_pretrained(tmp / "base")


def trained_by_hand(tmp: Path) -> None:
    model = attached()
    model.model.norm.weight.requires_grad_(True)
    model.save_pretrained(tmp)


def other_adapters(tmp: Path) -> None:
    state = {key: value for key, value in attached().state_dict().items() if ".lora." in key}
    attached("sql").load_state_dict(state, strict=False)


def wrapped(tmp: Path) -> None:
    with tempfile.NamedTemporaryFile() as store:
        dist.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
        try:
            builders.attach(DistributedDataParallel(builders.mlp()), targets=["fc1"])
        finally:
            dist.destroy_process_group()


CASES: dict[str, Callable[[Path], Any]] = {
    "trainers_save_over_a_base": over_a_base,
    "trainers_save_option": saving(variant="fp16"),
    "trainers_save_foreign_state": lambda tmp: saving(state_dict=builders.llama().state_dict())(tmp),
    "trainers_save_trained_base": trained_by_hand,
    "trainers_load_other_adapters": other_adapters,
    "trainers_attach_after_wrapping": wrapped,
}
