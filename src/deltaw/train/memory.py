"""What a training step holds in memory, by part, from shapes alone: LoRA beside full fine-tuning.

Legend: N tokens in a batch (rows x length), d width, f inner width of the MLP, h heads, k key-value heads, D head
size, V vocabulary, r rank, e bytes of one number of the base's dtype. What one block keeps for its backward pass, as
transformers writes it:

- norms: N d, in e bytes for LayerNorm and in 4 for RMSNorm, which computes in float32; N D (h + k) for head norms;
- attention with a fused kernel: queries, keys, values and output, e N D (2 h + 2 k), and 4 N h for the sums; without
  one, the (length, length) matrices besides; DeBERTa's has more (``deltaw.train.distances``);
- MLP: the operands of its pointwise part, e N f times 3 (gated), 4 (GPT-2's gelu, written out) or 1 (a fused one);
- attention masks of packed rows, where there are some, once for all blocks (``Isolation.mask_bytes``);
- dropout of the base, where it is on: a mask of e N d at each of two places, as the CPU has it (a GPU's is N d bytes);
- an adapted linear layer: the product with A, e N r;
- a linear layer trained in full, or adapted by more than a plain product (slices, most variants, starts that are taken
  off again): its input, once for all that share it, and none behind a fused kernel, which keeps it; an RMSNorm that is
  trained what it scales, e N d;
- a linear layer with a plain adapter: no input, which is made again from what the parts above keep (``deltaw.recall``);
  but e N d once for the first adapted block, whose input has no graph, e N h D behind an attention without a fused
  kernel, and all inputs of the one block that checkpointing has in memory;
- a variant besides: LoRA-FA e N r and no input; DoRA the output and the term, 2 e N o; VeRA, and an initialization that
  is taken off again, float32 copies of A and B as they are multiplied.

A frozen layer keeps no input: this is what LoRA saves beyond gradients and optimizer state. The loss of K trained
tokens goes through the head C at a time (``deltaw.linear_cross_entropy``): 4 C V for the logits, as much again for a
soft cap, e C V more where a head has an adapter or e is below 4, and 2 e K d for what enters the head and its gradient;
a trained head holds its gradient in float32 besides, 4 V d, and a trained copy twice. Where a model's loss needs all
logits it holds them in e bytes and three float32 arrays of their shape (log-probabilities and two gradients). The
formula is checked against measured peaks in ``tests/train/test_memory.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import nn

from deltaw.chunked import chunk_tokens
from deltaw.errors import ConfigError
from deltaw.train.distances import Distances, distances_of
from deltaw.train.kept import Kept
from deltaw.train.readout import readouts

__all__ = ["BlockBytes", "MemoryPlan", "MemoryReport", "Workload", "activation_bytes", "block_bytes", "memory_plan"]

# Adam keeps two float32 moments for each trained number (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1).
ADAM_BYTES = 8
# Layers that read what attention has put together, by their usual names.
_AFTER = re.compile(r"(?:^|\.)(?:o_proj|out_proj|c_proj|wo|output\.dense|attention\.dense)$")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The step to account for.

    Args:
        batch: rows in one micro-batch.
        length: tokens in a row, padding included.
        dtype: dtype of the base weights and activations.
        checkpointing: whether each block's activations are recomputed in the backward pass.
        fused_attention: whether attention runs in a kernel that never stores the (length, length) matrix. Eager
            attention does not, nor does a CPU where the base has attention dropout.
        loss_tokens: positions whose logits are computed; None means all of them.
        chunked: whether the loss takes a chunk of them at a time; else it holds all logits.
        mask_bytes: what attention masks of packed rows hold.
    """

    batch: int = 1
    length: int = 1024
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    fused_attention: bool = True
    loss_tokens: int | None = None
    chunked: bool = True
    mask_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "length"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be at least 1",
                    where=name,
                    got=str(getattr(self, name)),
                    expected="a whole number from 1 up",
                    hint=f"set --{name} to what training will use",
                )

    @property
    def tokens(self) -> int:
        """Tokens in the micro-batch."""
        return self.batch * self.length


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes by part.

    Args:
        weights: base weights.
        adapter: numbers that are not base weights (float32), or the float32 master copy in full fine-tuning.
        gradients: one for each trained number.
        optimizer: Adam's two moments.
        activations: what the blocks keep for the backward pass.
        logits: logits, as many as there are at once, and what the loss holds beside them.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Sum of the parts, bytes: an upper bound of the peak, for they do not all peak at one moment."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """LoRA and full fine-tuning side by side; ``str`` is a table.

    Args:
        lora: parts of a step that trains the adapter.
        full: parts of a step that trains every weight.
        workload: the step.
    """

    lora: MemoryPlan
    full: MemoryPlan
    workload: Workload

    def __str__(self) -> str:
        """The table, in GiB or MiB."""
        unit, size = ("GiB", 2**30) if self.full.total >= 2**30 else ("MiB", 2**20)
        load = self.workload
        dtype = str(load.dtype).removeprefix("torch.")
        title = f"memory of one step, {load.batch} x {load.length} tokens, {dtype}, AdamW ({unit})"
        parts = [*(field.name for field in fields(MemoryPlan)), "total"]
        first = max(len(title), *map(len, parts))
        rows = [f"{title:<{first}}  {'LoRA':>10}  {'full':>10}"]
        for part in parts:
            lora, full = (getattr(plan, part) / size for plan in (self.lora, self.full))
            rows.append(f"{'  ' + part:<{first}}  {lora:>10.2f}  {full:>10.2f}")
        return "\n".join(rows)


@dataclass(frozen=True, kw_only=True)
class BlockBytes:
    """What one block keeps for the backward pass where nothing is trained in it, bytes.

    Args:
        norms: of its two norms.
        attention: queries, keys, values, output and sums; norms of heads.
        mlp: operands of its pointwise part.
        dropout: of two places, behind attention and behind the MLP.
    """

    norms: int
    attention: int
    mlp: int
    dropout: int

    @property
    def total(self) -> int:
        """Their sum, bytes."""
        return self.norms + self.attention + self.mlp + self.dropout


Sites: TypeAlias = "Mapping[str, int | Kept]"


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """The sizes the formula speaks of, and by path: linear layers' (in features, out features), RMSNorms' sizes."""

    width: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int
    pointwise: int
    dropout: bool
    wide_norms: int
    narrow_norms: int
    head_norms: int
    linears: Mapping[str, tuple[int, int]]
    scaled: Mapping[str, int]
    distances: Distances | None

    def fused(self, load: Workload) -> bool:
        """Whether attention runs in a fused kernel."""
        return load.fused_attention and self.distances is None


def memory_plan(
    model: nn.Module, *, sites: Sites, trained: int, frozen: int = 0, extra: Sequence[str] = (), workload: Workload
) -> MemoryReport:
    """Account for one training step of ``model``.

    Args:
        model: a transformers model; the meta device is enough.
        sites: path of each adapted module -> what it keeps, or its rank (the sum over its slices).
        trained: number of trained values (adapter, and full copies of modules trained beside it).
        frozen: number of values the adapter holds beside them.
        extra: paths of linear layers trained in full beside the adapter.
        workload: the step.

    Returns:
        LoRA and full fine-tuning side by side.
    """
    shape = _shape(model)
    # An adapter that the model already wears is not part of the base.
    numbers = sum(parameter.numel() for name, parameter in model.named_parameters() if ".lora." not in name)
    e = workload.dtype.itemsize
    lora = MemoryPlan(
        weights=e * numbers,
        adapter=4 * (trained + frozen),
        gradients=4 * trained,
        optimizer=ADAM_BYTES * trained,
        activations=_activations(shape, sites, extra, workload),
        logits=_logit_bytes(model, shape, workload, sites, extra),
    )
    everything: dict[str, int | Kept] = {path: 0 for path, _ in model.named_modules() if ".lora" not in path}
    full = MemoryPlan(
        weights=e * numbers,
        adapter=4 * numbers if e < 4 else 0,
        gradients=e * numbers,
        optimizer=ADAM_BYTES * numbers,
        activations=_activations(shape, everything, (), workload),
        logits=_logit_bytes(model, shape, workload, None, ()),
    )
    return MemoryReport(lora=lora, full=full, workload=workload)


def activation_bytes(model: nn.Module, sites: Sites, workload: Workload, extra: Sequence[str] = ()) -> int:
    """Bytes the blocks keep for the backward pass, by the formula at the top of this page.

    Args:
        model: a transformers model; the meta device is enough.
        sites: path of each adapted module -> what it keeps, or its rank; 0 for a layer trained in full.
        workload: the step.
        extra: paths of linear layers trained in full beside the adapter.

    Returns:
        Bytes.
    """
    return _activations(_shape(model), sites, extra, workload)


def _activations(shape: _Shape, sites: Sites, extra: Sequence[str], load: Workload) -> int:
    blocks: dict[int, dict[str, Kept]] = {}
    outside: dict[str, Kept] = {}
    for path, site in [*sites.items(), *((path, 0) for path in extra)]:
        index = _block(path)
        into = outside if index is None else blocks.setdefault(index, {})
        into[path] = site if isinstance(site, Kept) else Kept(rank=site, recalled=site > 0)
    if not blocks:
        return _inputs(shape, outside, load)
    # Blocks below the first trained one get no backward and keep nothing.
    first = min(blocks)
    kept = [_fixed(shape, load) + _inputs(shape, blocks.get(index, {}), load) for index in range(first, shape.layers)]
    total = _inputs(shape, outside, load) + load.mask_bytes
    if shape.distances is not None:
        trained = {path: site for sites in blocks.values() for path, site in sites.items()}
        total += shape.distances.shared(trained, outside, len(kept), load.dtype.itemsize)
    if any(site.recalled for site in blocks[first].values()):
        total += load.dtype.itemsize * load.tokens * shape.width
    if load.checkpointing:
        return total + len(kept) * load.dtype.itemsize * load.tokens * shape.width + max(kept)
    return total + sum(kept)


def block_bytes(model: nn.Module, workload: Workload) -> BlockBytes:
    """Bytes one block keeps for the backward pass where nothing is trained in it, by part.

    Args:
        model: a transformers model; the meta device is enough.
        workload: the step.

    Returns:
        Bytes by part.
    """
    return _parts(_shape(model), workload)


def _parts(shape: _Shape, load: Workload) -> BlockBytes:
    n, e, head = load.tokens, load.dtype.itemsize, shape.head_dim
    attention = e * n * head * 2 * (shape.heads + shape.kv_heads) + 4 * n * (shape.heads + head * shape.head_norms)
    if shape.distances is not None:
        attention = shape.distances.attention(load.batch, load.length, e)
    elif not load.fused_attention:
        attention += 3 * e * load.batch * shape.heads * load.length**2
    return BlockBytes(
        norms=n * shape.width * (4 * shape.wide_norms + e * shape.narrow_norms),
        attention=attention,
        mlp=e * n * shape.inner * shape.pointwise,
        dropout=2 * e * n * shape.width if shape.dropout else 0,
    )


def _fixed(shape: _Shape, load: Workload) -> int:
    """What one block keeps whatever is trained in it."""
    return _parts(shape, load).total


def _inputs(shape: _Shape, sites: Mapping[str, Kept], load: Workload) -> int:
    """Inputs of trained linear layers, each counted once for those that share it, and what an adapter keeps."""
    width, besides = shape.heads * shape.head_dim, 4 * sum(site.copies for site in sites.values())
    if shape.distances is not None:
        besides += shape.distances.trained(sites, load.tokens, load.dtype.itemsize)
        sites = {path: site for path, site in sites.items() if not shape.distances.apart(path)}
    recalled = [path for path, site in sites.items() if site.recalled and not load.checkpointing]
    kept = [path for path, site in sites.items() if site.input and path in shape.linears and path not in recalled]
    after = {path for path in sites if shape.linears.get(path, (0,))[0] == width and _AFTER.search(path)}
    if shape.fused(load):
        kept = [path for path in kept if path not in after]  # the kernel keeps its output, which is their input
    shared = {(path.rpartition(".")[0], shape.linears[path][0]) for path in kept}
    own = sum(site.rank + site.outputs for site in sites.values()) + sum(shape.scaled.get(path, 0) for path in sites)
    if not shape.fused(load):
        own += width * len(after & {*recalled})
    return load.dtype.itemsize * load.tokens * (sum(size for _, size in shared) + own) + besides


def _logit_bytes(model: nn.Module, shape: _Shape, load: Workload, sites: Sites | None, extra: Sequence[str]) -> int:
    """Bytes of the loss; ``sites`` is None where every weight is trained."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        return 0
    tokens = load.tokens if load.loss_tokens is None else load.loss_tokens
    e, vocab = load.dtype.itemsize, shape.vocab
    if not load.chunked:
        return tokens * vocab * (e + 12)
    paths = {path for path, module in model.named_modules() if module is head}
    adapted = sites is not None and bool(paths & {*sites, *extra})
    each = 4 + (e if adapted or e < 4 else 0) + (4 if readouts(model)[0].soft_cap else 0)
    copies = 1 if sites is None else 2 * bool(paths & {*extra})
    rows = min(tokens, chunk_tokens(vocab))
    return rows * vocab * each + 2 * e * tokens * shape.width + 4 * copies * vocab * shape.width


def _shape(model: nn.Module) -> _Shape:
    config: Any = model.config
    modules = {path: m for path, m in model.named_modules() if ".lora" not in path}
    block = [m for path, m in modules.items() if _block(path) == 0]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    norms = [m for m in block if "Norm" in type(m).__name__ and getattr(m, "weight", None) is not None]
    wide = [m for m in norms if m.weight.shape[-1] == config.hidden_size]
    rms = sum("RMS" in type(m).__name__ for m in wide)
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_norms = (config.num_attention_heads + kv_heads) if len(norms) > len(wide) else 0
    dropouts = [m.p for m in block if isinstance(m, nn.Dropout)]
    return _Shape(
        width=config.hidden_size,
        inner=_inner(config),
        heads=config.num_attention_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        layers=len({index for index in map(_block, modules) if index is not None}),
        vocab=config.vocab_size,
        pointwise=_pointwise(config, modules),
        dropout=model.training and any(dropouts),
        wide_norms=rms,
        narrow_norms=len(wide) - rms,
        head_norms=head_norms,
        linears={path: size for path, m in modules.items() if (size := _linear(m)) is not None},
        scaled={
            path: config.hidden_size
            if m.weight.shape[-1] == config.hidden_size
            else head_dim * (config.num_attention_heads if path.rpartition(".")[2].startswith("q") else kv_heads)
            for path, m in modules.items()
            if "RMS" in type(m).__name__ and _block(path) is not None
        },
        distances=distances_of(config, model.training),
    )


def _inner(config: Any) -> int:
    size = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return int(size or 4 * config.hidden_size)


def _pointwise(config: Any, modules: Mapping[str, nn.Module]) -> int:
    if any(path.endswith(("gate_proj", "gate_up_proj")) for path in modules):
        return 3
    act = getattr(config, "hidden_act", None) or getattr(config, "activation_function", "gelu")
    return 4 if act in {"gelu_new", "gelu_fast", "quick_gelu"} else 1


def _linear(module: nn.Module) -> tuple[int, int] | None:
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    # transformers' Conv1D stores the transposed weight.
    if type(module).__name__.endswith("Conv1D") and isinstance(weight, torch.Tensor) and weight.dim() == 2:
        return weight.shape[0], weight.shape[1]
    return None


def _block(path: str) -> int | None:
    found = re.search(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)(?:\.|$)", path)
    return None if found is None else int(found.group(1))
