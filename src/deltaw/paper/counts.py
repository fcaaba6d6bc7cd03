"""The paper's counts, as formulas: trained values of every method, totals of its models, bytes of what is stored.

Plain whole numbers in and out; nothing here needs torch or a model. Legend: d width of the model (``width``), L number
of blocks (``layers``), r rank or bottleneck, V vocabulary, T positions. The blocks are those of GPT-2 and RoBERTa:
inner width 4 d, biases everywhere, two norms a block, so that one of them holds 12 d^2 + 13 d values.

Source: Hu et al. 2021, arXiv:2106.09685, sections 5.1 and D, unless a function says otherwise.
"""

from __future__ import annotations

from deltaw.errors import ConfigError

__all__ = [
    "adapter_count",
    "bias_count",
    "block_count",
    "deployment_bytes",
    "encoder_total",
    "head_count",
    "lora_count",
    "model_total",
    "prefix_embedding_count",
    "prefix_layer_count",
    "top_blocks_count",
]


def lora_count(matrices: int, width: int, rank: int) -> int:
    """Count LoRA's values: 2 x matrices x d x r.

    Args:
        matrices: adapted matrices in all blocks together, each d x d.
        width: d.
        rank: r.

    Returns:
        Trained values.

    Source:
        Section 5.1, "LoRA".

    Example:
        >>> lora_count(48, 1024, 4)
        393216
    """
    _check(matrices=matrices, width=width, rank=rank)
    return 2 * matrices * width * rank


def adapter_count(adapters: int, width: int, bottleneck: int, norms: int = 0) -> int:
    """Count bottleneck adapters: adapters x (2 d r + r + d) + 2 x norms x d.

    An adapter is a layer d -> r and one r -> d, both with bias. Houlsby's (H) has two a block, Lin's (L) and
    Pfeiffer's (P) one; Lin's brings a LayerNorm besides.

    Args:
        adapters: adapter layers in all blocks together.
        width: d.
        bottleneck: r.
        norms: trained LayerNorms, 2 d values each.

    Returns:
        Trained values.

    Source:
        Section 5.1, "Adapter tuning".

    Example:
        >>> adapter_count(192, 12288, 1), adapter_count(24, 1024, 6, norms=24)
        (7078080, 368784)
    """
    _check(adapters=adapters, width=width, bottleneck=bottleneck, norms=norms)
    return adapters * (2 * width * bottleneck + bottleneck + width) + 2 * norms * width


def prefix_embedding_count(width: int, prefix: int, infix: int) -> int:
    """Count prefix-embedding tuning: d x (prefix + infix), one embedding for each special token.

    Args:
        width: d.
        prefix: special tokens before the prompt, l_p.
        infix: special tokens after it, l_i.

    Returns:
        Trained values.

    Source:
        Section 5.1, "Prefix-embedding tuning".

    Example:
        >>> prefix_embedding_count(12288, 256, 8)
        3244032
    """
    _check(width=width, prefix=prefix, infix=infix)
    return width * (prefix + infix)


def prefix_layer_count(layers: int, width: int, prefix: int, infix: int) -> int:
    """Count prefix-layer tuning: L x d x (prefix + infix), one activation for each special token after each block.

    Args:
        layers: L.
        width: d.
        prefix: special tokens before the prompt, l_p.
        infix: special tokens after it, l_i.

    Returns:
        Trained values.

    Source:
        Section 5.1, "Prefix-layer tuning". The paper's own labels for GPT-3 lie above this formula.

    Example:
        >>> prefix_layer_count(96, 12288, 8, 8)
        18874368
    """
    _check(layers=layers, width=width, prefix=prefix, infix=infix)
    return layers * width * (prefix + infix)


def block_count(width: int) -> int:
    """Count one block: 12 d^2 + 13 d.

    Attention has 4 d^2 + 4 d, the MLP 8 d^2 + 5 d, the two norms 4 d.

    Args:
        width: d.

    Returns:
        Values of one block.

    Source:
        The architecture of Radford et al. 2019 (GPT-2) and Devlin et al. 2018, arXiv:1810.04805.

    Example:
        >>> block_count(768)
        7087872
    """
    _check(width=width)
    return 12 * width * width + 13 * width


def bias_count(layers: int, width: int, per_block: int = 11, outside: int = 0) -> int:
    """Count bias-only training (BitFit): L x per_block x d + outside.

    A block has 11 d bias values: 3 d of queries, keys and values, d of attention's output, 4 d + d of the MLP, 2 d of
    its norms.

    Args:
        layers: L.
        width: d.
        per_block: bias vectors of size d in a block.
        outside: bias values outside the blocks, such as those of a norm over the embeddings.

    Returns:
        Trained values.

    Source:
        Section 5.1, "Bias-only or BitFit"; Zaken et al. 2021, arXiv:2106.10199.

    Example:
        >>> bias_count(12, 768, outside=768)
        102144
    """
    _check(layers=layers, width=width, per_block=per_block, outside=outside)
    return layers * per_block * width + outside


def top_blocks_count(width: int, blocks: int = 2) -> int:
    """Count training the last blocks alone (FT-Top2): blocks x (12 d^2 + 13 d).

    Args:
        width: d.
        blocks: how many of the last blocks are trained.

    Returns:
        Trained values.

    Source:
        Section 5.1, "Fine-Tuning": a variant that adapts the last two layers on GPT-2.

    Example:
        >>> top_blocks_count(1024)
        25192448
    """
    _check(blocks=blocks)
    return blocks * block_count(width)


def model_total(vocabulary: int, positions: int, layers: int, width: int) -> int:
    """Count a GPT-2 with its head tied to the embeddings: V d + T d + L (12 d^2 + 13 d) + 2 d.

    Args:
        vocabulary: V.
        positions: T.
        layers: L.
        width: d.

    Returns:
        All values of the model, shared ones once.

    Source:
        The architecture of Radford et al. 2019; GPT-3's sizes are those of Brown et al. 2020, arXiv:2005.14165,
        table 2.1.

    Example:
        >>> model_total(50257, 1024, 24, 1024), model_total(50257, 2048, 96, 12288)
        (354823168, 174604259328)
    """
    _check(vocabulary=vocabulary, positions=positions, layers=layers, width=width)
    return (vocabulary + positions) * width + layers * block_count(width) + 2 * width


def encoder_total(vocabulary: int, positions: int, layers: int, width: int, types: int = 1) -> int:
    """Count a RoBERTa encoder without pooler and head: (V + T + types) d + 2 d + L (12 d^2 + 13 d).

    Args:
        vocabulary: V.
        positions: T, the two that padding takes included.
        layers: L.
        width: d.
        types: rows of the table of token types.

    Returns:
        All values of the encoder.

    Source:
        The architecture of Liu et al. 2019, arXiv:1907.11692.

    Example:
        >>> encoder_total(50265, 514, 12, 768)
        124055040
    """
    return model_total(vocabulary, positions, layers, width) + types * width


def head_count(width: int, labels: int) -> int:
    """Count a classifier's head: d^2 + d of its dense layer, d x labels + labels of its output.

    RoBERTa's head is both; on DeBERTa the dense layer is the pooler. It is trained beside LoRA and never counted by
    the paper.

    Args:
        width: d.
        labels: number of labels; 1 for a regression.

    Returns:
        Trained values outside the adapter.

    Source:
        ``RobertaClassificationHead`` and ``ContextPooler`` of transformers.

    Example:
        >>> head_count(768, 3)
        592899
    """
    _check(width=width, labels=labels)
    return width * width + width + width * labels + labels


def deployment_bytes(base: int, adapter: int, tasks: int) -> int:
    """Add up what serving ``tasks`` tasks stores: one base and one adapter for each.

    Args:
        base: bytes of the base.
        adapter: bytes of one adapter.
        tasks: how many.

    Returns:
        Bytes.

    Source:
        Footnote 4.

    Example:
        >>> deployment_bytes(350 * 10**9, 37_748_736, 100)
        353774873600
    """
    _check(base=base, adapter=adapter, tasks=tasks)
    return base + tasks * adapter


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 0:
            raise ConfigError(
                f"{name} cannot be negative",
                where=name,
                got=str(value),
                expected="a whole number from 0 up",
                hint="counts are sums of sizes: give the size itself",
            )
