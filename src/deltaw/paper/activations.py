"""What each method of the paper keeps of a step for its backward pass, in closed form from shapes alone.

The parts of a block are those of ``deltaw.train.memory``, which accounts for LoRA and full fine-tuning itself. Legend
as there: N positions in a batch, d width, r size of a bottleneck, e bytes of one number of the base's dtype. A gradient
on its way to a trained tensor passes everything that stands behind it, and that keeps its parts; what stands before the
first trained tensor keeps nothing. Beside the parts,

- FT-Top2 keeps the inputs of the linear layers of its blocks, as full fine-tuning does; an RMSNorm before the first of
  them nothing but what it scales;
- BitFit keeps nothing, but for the keys once more where queries' biases make DeBERTa's distances: the gradient of a
  bias is a sum over the gradient of the output;
- PreEmbed and PreLayer keep nothing: their first trained vectors stand before the first block, and N counts them;
- an adapter keeps what it reads, e N d, its inner numbers, e N r, with a LayerNorm e N d of that norm's output, and in
  half precision its two factors as they are multiplied, 2 e d r;
- LoRA beside special tokens keeps what it keeps alone, but for the input of the first adapted block, which now has a
  graph; where PreLayer replaces what a block with its norms behind the sums reads, nothing but q, k and v keeps it,
  e N d.

Left out, here as there: what stands outside of the blocks, means and factors of norms, places of special tokens. The
formulas are checked against a count of what autograd saves in ``tests/paper/test_paper_activations.py``.

Source:
    Where adapters and special tokens stand: Hu et al. 2021, arXiv:2106.09685, section 5.1, and ``deltaw.baselines``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltaw.baselines.anatomy import Anatomy
from deltaw.train.kept import Kept
from deltaw.train.memory import BlockBytes, Workload, activation_bytes, block_bytes

__all__ = ["Bottlenecks", "bias_bytes", "bottleneck_bytes", "combined_bytes", "frozen_bytes", "top_bytes"]

_NORMS_FIRST = {"gpt2": True, "llama": True, "mistral": True, "qwen2": True, "qwen3": True, "bert": False,
                "roberta": False, "deberta-v2": False}  # fmt: skip
"""Model type -> whether a block's norms stand before attention and MLP, or behind the sums; of all that have roles."""

_RMS = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, kw_only=True)
class Bottlenecks:
    """Where a method's adapters stand.

    Args:
        first: index of the first block that has one; all behind it have.
        both: whether one stands behind attention too, or behind the MLP alone.
        size: r.
        norm: whether each normalizes what it reads.
    """

    size: int
    first: int = 0
    both: bool = False
    norm: bool = False


def frozen_bytes(model: Any, load: Workload) -> int:
    """Bytes kept where a gradient passes all blocks and nothing of theirs has one: PreEmbed, PreLayer.

    Args:
        model: a transformers model; the meta device is enough.
        load: the step; its rows count special tokens.

    Returns:
        Bytes.
    """
    return _stack([block_bytes(model, load).total] * model.config.num_hidden_layers, model, load)


def bias_bytes(model: Any, load: Workload) -> int:
    """Bytes kept where every bias is trained: BitFit.

    Args:
        model: a transformers model; the meta device is enough.
        load: the step.

    Returns:
        Bytes.
    """
    biased = (path for path, module in model.named_modules() if getattr(module, "bias", None) is not None)
    return activation_bytes(model, dict.fromkeys(biased, Kept(rank=0, input=False)), load)


def top_bytes(model: Any, last: int, load: Workload) -> int:
    """Bytes kept where the last blocks are trained in full: FT-Top2.

    Args:
        model: a transformers model; the meta device is enough.
        last: how many blocks.
        load: the step.

    Returns:
        Bytes.
    """
    chosen = tuple(f"{path}." for path in list(Anatomy(model).blocks)[-last:])
    total = activation_bytes(model, {path: 0 for path, _ in model.named_modules() if path.startswith(chosen)}, load)
    if model.config.model_type in _RMS and not load.checkpointing:
        total -= block_bytes(model, load).norms // 2
    return total


def bottleneck_bytes(model: Any, adapters: Bottlenecks, load: Workload) -> int:
    """Bytes kept where adapters stand behind sub-layers: Adapter H, L, P and D.

    Args:
        model: a transformers model; the meta device is enough.
        adapters: where they stand.
        load: the step.

    Returns:
        Bytes.
    """
    e, width = load.dtype.itemsize, model.config.hidden_size
    each = e * load.tokens * (width * (1 + adapters.norm) + adapters.size)
    each += 2 * e * width * adapters.size if e < 4 else 0
    each *= 1 + adapters.both
    parts = block_bytes(model, load)
    first = _behind(parts, adapters.both, _NORMS_FIRST[model.config.model_type])
    blocks = [first] + [parts.total] * (model.config.num_hidden_layers - adapters.first - 1)
    return _stack([block + each for block in blocks], model, load)


def combined_bytes(model: Any, sites: Mapping[str, Kept], load: Workload, *, replaced: bool) -> int:
    """Bytes kept where LoRA stands beside special tokens: LoRA+PE and LoRA+PL.

    Args:
        model: a transformers model; the meta device is enough.
        sites: path of each adapted module -> what it keeps.
        load: the step; its rows count special tokens.
        replaced: whether every block's input is replaced at the special tokens, or that of the first alone.

    Returns:
        Bytes.
    """
    numbers = load.dtype.itemsize * load.tokens * int(model.config.hidden_size)
    recalled = [path for path, site in sites.items() if site.recalled]
    total = activation_bytes(model, sites, load) - numbers * bool(recalled)
    if load.checkpointing or not replaced or _NORMS_FIRST[model.config.model_type]:
        return total
    read = any(re.search(r"\.(query|key|value)(_proj)?$", path) for path in recalled)
    return total + numbers * int(model.config.num_hidden_layers) * read


def _behind(parts: BlockBytes, both: bool, norms_first: bool) -> int:
    """What the block of the first adapter keeps behind that adapter."""
    norms = 0 if norms_first else parts.norms // 2
    return norms + (parts.norms // 2 + parts.mlp + parts.dropout // 2 if both else 0)


def _stack(blocks: Sequence[int], model: Any, load: Workload) -> int:
    """Blocks on each other: all they keep, or their inputs and one block as it is recomputed."""
    if not load.checkpointing:
        return sum(blocks)
    return len(blocks) * load.dtype.itemsize * load.tokens * int(model.config.hidden_size) + max(blocks)
