"""What the paper's baselines refuse, one case per kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import deltaw as dw
from baseline_models import ids, make
from deltaw import baselines as bl
from deltaw.cli import _run

Case = Callable[[Path], Any]


def worn(method: bl.Method, family: str = "gpt2") -> Any:
    model = make(family)
    bl.attach(model, method)
    return model


def no_bias(tmp: Path) -> None:
    model = make("llama")
    for name, module in list(model.named_modules()):
        if name.endswith("_proj"):
            module.bias = None
    bl.attach(model, bl.BiasOnly())


def second(tmp: Path) -> None:
    bl.attach(worn(bl.AdapterH(bottleneck=2)), bl.AdapterP())


def cache(tmp: Path) -> None:
    model = worn(bl.PrefixEmbedding(prefix_length=3))
    with bl.disabled(model):
        out = model(ids(), use_cache=True)
    name = "cache" if hasattr(out, "cache") else "past_key_values"
    model(ids()[:, :1], **{name: getattr(out, name)})


def stored(change: Callable[[Path], None], **load: Any) -> Case:
    """A saved adapter whose directory was changed, on its base."""

    def case(tmp: Path) -> None:
        bl.save(worn(bl.AdapterP(bottleneck=2)), tmp / "out")
        change(tmp / "out")
        bl.load(make("gpt2", **load), tmp / "out")

    return case


def nothing(place: Path) -> None:
    pass


def without_a_tensor(place: Path) -> None:
    file = place / "baseline_model.safetensors"
    tensors = load_file(str(file))
    tensors.pop("transformer.h.0.mlp.baseline.up")
    save_file(tensors | {"stray": torch.zeros(1)}, str(file))


def of_another_method(place: Path) -> None:
    file = place / "baseline_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "method": "adapter-hh"}))


def not_finite(tmp: Path) -> None:
    model = worn(bl.AdapterP(bottleneck=2))
    with torch.no_grad():
        bl.trainable(model)[0][1].fill_(float("nan"))
    bl.save(model, tmp / "out")


def as_lora(tmp: Path) -> None:
    bl.save(worn(bl.AdapterP(bottleneck=2)), tmp / "out")
    dw.load(make("gpt2"), tmp / "out")


def checkpointed(tmp: Path) -> None:
    model = worn(bl.PrefixLayer(), "llama").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(input_ids=ids(), labels=ids())


def merged(tmp: Path) -> None:
    model = worn(bl.BiasOnly())
    bl.merge(model)
    bl.detach(model)


def line(*words: str) -> Case:
    return lambda tmp: _run(["train", "--model", "base", "--data", "rows.jsonl", *words])


CASES: dict[str, Case] = {
    "baseline_no_blocks": lambda tmp: bl.attach(torch.nn.Sequential(torch.nn.Linear(2, 2)), bl.AdapterH()),
    "baseline_no_bias": no_bias,
    "baseline_setting": lambda tmp: bl.AdapterH(bottleneck=0),
    "baseline_activation": lambda tmp: bl.AdapterP(activation="tanh"),
    "baseline_drops_all": lambda tmp: worn(bl.AdapterD(drop_layers=3)),
    "baseline_blocks": lambda tmp: worn(bl.TopBlocks(blocks=9)),
    "baseline_prefix_empty": lambda tmp: bl.PrefixEmbedding(prefix_length=0),
    "baseline_prefix_fills": lambda tmp: worn(bl.PrefixLayer(prefix_length=48)),
    "baseline_head_unknown": lambda tmp: worn(bl.AdapterP(train_also=("scorer",)), "bert"),
    "baseline_second": second,
    "baseline_plain": lambda tmp: bl.detach(make("gpt2")),
    "baseline_merge_adapter": lambda tmp: bl.merge(worn(bl.AdapterL(bottleneck=2))),
    "baseline_merge_prefix": lambda tmp: bl.merge(worn(bl.PrefixLayer())),
    "baseline_detach_merged": merged,
    "baseline_unmerge": lambda tmp: bl.unmerge(worn(bl.BiasOnly())),
    "baseline_input_long": lambda tmp: worn(bl.PrefixEmbedding(prefix_length=40))(ids(1, 9)),
    "baseline_mask": lambda tmp: worn(bl.PrefixEmbedding())(ids(), attention_mask=torch.ones(2, 1, 9, 9)),
    "baseline_cache": cache,
    "baseline_checkpointed": checkpointed,
    "baseline_save_pretrained": lambda tmp: worn(bl.AdapterH(bottleneck=2)).save_pretrained(tmp),
    "baseline_not_finite": not_finite,
    "baseline_file_missing": lambda tmp: bl.load(make("gpt2"), tmp / "nowhere"),
    "baseline_file_tensors": stored(without_a_tensor),
    "baseline_file_method": stored(of_another_method),
    "baseline_file_other_base": stored(nothing, spread=3.0),
    "baseline_file_as_lora": as_lora,
    "baseline_option_unread": line("--method", "adapter-h", "--blocks", "3"),
    "baseline_option_of_lora": line("--method", "adapter-h", "--rank", "8"),
    "baseline_packing": line("--method", "prefix-embedding", "--packing"),
}
