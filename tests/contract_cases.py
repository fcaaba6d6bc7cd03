"""The registry of the contract: every kind of site, in every form it comes in, with the reference's view of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

import builders
import reference
from builders import Holder


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the registry.

    ``rows`` tells, for each slice, which output rows the reference gives it: an independent statement of the layout.
    """

    name: str
    make: Callable[[], Holder]
    config: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    alpha: float = 6.0
    stabilized: bool = False
    lookup: bool = False
    limit: float | None = None
    padding: int | None = None
    by_frequency: bool = False
    mergeable: bool = True

    def build(self, dtype: torch.dtype) -> Holder:
        torch.manual_seed(11)
        return self.make().to(dtype)

    def inputs(self, dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        if self.lookup:
            return torch.tensor([[1, 2, 2], [9, 0, 3]])
        return torch.randn(2, 3, 6, generator=generator).to(dtype)


def _linear(n_in: int = 6, n_out: int = 5, bias: bool = True, name: str = "proj", **config: Any) -> Holder:
    return Holder(name, nn.Linear(n_in, n_out, bias=bias), **config)


def _embedding(**kwargs: Any) -> Holder:
    return Holder("embed", nn.Embedding(10, 6, **kwargs))


def _quantized() -> Holder:
    return Holder("proj", builders.Int8Linear(nn.Linear(6, 5)))


_GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16, "model_type": "phi3"}
_BLOOM = {"num_attention_heads": 4, "hidden_size": 8, "model_type": "bloom"}

CASES = [
    Case(name="linear", make=_linear, config={"targets": "proj", "rank": 3}),
    Case(name="linear-no-bias", make=lambda: _linear(bias=False), config={"targets": "proj", "rank": 1}),
    Case(name="linear-rank-above-full", make=_linear, config={"targets": "proj", "rank": 9}),
    Case(
        name="linear-rank-stabilized", make=_linear, stabilized=True,
        config={"targets": "proj", "rank": 3, "rank_stabilized": True},
    ),
    Case(name="linear-gaussian", make=_linear, config={"targets": "proj", "rank": 2, "init": "gaussian"}),
    Case(name="quantized", make=_quantized, config={"targets": "proj", "rank": 3}, mergeable=False),
    Case(
        name="conv1d", make=lambda: Holder("proj", builders.conv1d(6, 5)), config={"targets": "proj", "rank": 3},
    ),
    Case(
        name="conv1d-qv", make=lambda: Holder("c_attn", builders.conv1d(6, 12)),
        config={"targets": ["c_attn[q,v]"], "rank": 2},
        rows={"q": reference.blocked("q", 4, 4), "v": reference.blocked("v", 4, 4)},
    ),
    Case(
        name="grouped-qkv", make=lambda: _linear(n_out=32, name="qkv_proj", **_GROUPED),
        config={"targets": ["qkv_proj[q,k,v]"], "rank": 2, "rank_pattern": {"qkv_proj[k]": 3}},
        rows={part: reference.blocked(part, 16, 8) for part in "qkv"}, ranks={"k": 3},
    ),
    Case(
        name="per-head-qkv", make=lambda: _linear(n_out=24, name="query_key_value", **_BLOOM),
        config={"targets": ["query_key_value[q]", "query_key_value[v]"], "rank": 2},
        rows={part: reference.per_head(part, 4, 2) for part in "qv"},
    ),
    Case(
        name="gate-up", make=lambda: _linear(n_out=8, bias=False, name="gate_up_proj"),
        config={"targets": ["gate_up_proj[up]"], "rank": 2}, rows={"up": reference.halves("up", 8)},
    ),
    Case(
        name="explicit-rows", make=_linear, config={"targets": ["proj[1:3]", "proj[4:5]"], "rank": 2},
        rows={"1:3": [1, 2], "4:5": [4]},
    ),
    Case(name="embedding", make=_embedding, config={"targets": "embed", "rank": 3}, lookup=True),
    Case(
        name="embedding-padded", make=lambda: _embedding(padding_idx=2), config={"targets": "embed", "rank": 3},
        lookup=True, padding=2,
    ),
    Case(
        name="embedding-by-frequency", make=lambda: _embedding(scale_grad_by_freq=True),
        config={"targets": "embed", "rank": 3}, lookup=True, by_frequency=True,
    ),
    Case(
        name="embedding-bounded", make=lambda: _embedding(max_norm=1.5), config={"targets": "embed", "rank": 3},
        lookup=True, limit=1.5,
    ),
]  # fmt: skip

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def base_of(case: Case, model: Holder) -> tuple[np.ndarray, np.ndarray | None]:
    """W as (out, in) and the bias, in float64."""
    site: Any = model.site
    weight = site.dense() if isinstance(site, builders.Int8Linear) else site.weight
    W = numpy(weight)
    bias = getattr(site, "bias", None)
    if case.lookup or type(site).__mro__[1].__name__ == "Conv1D" or type(site).__name__ == "Conv1D":
        W = W.T
    return W, None if bias is None else numpy(bias)


def terms_of(case: Case, model: Holder, adapter: str = "default", weight: float = 1.0) -> list[reference.Term]:
    """The reference's terms, with the layout that the case states and the values that the model holds."""
    entry = model.get_submodule(f"{case.make().name}.lora.{adapter}")
    if not case.rows:
        return [reference.Term(numpy(entry.lora_A), numpy(entry.lora_B), case.alpha, None, case.stabilized, weight)]
    terms = []
    for child, (_, rows) in zip(entry.children(), case.rows.items(), strict=True):
        terms.append(
            reference.Term(numpy(child.lora_A), numpy(child.lora_B), case.alpha, rows, case.stabilized, weight)
        )
    return terms


def flat_inputs(case: Case, x: torch.Tensor) -> np.ndarray:
    return reference.onehot(x.numpy(), 10) if case.lookup else numpy(x).reshape(-1, x.shape[-1])
