"""The baselines by name: a new one is one file and one line here."""

from __future__ import annotations

from deltaw.baselines.adapter_d import AdapterD
from deltaw.baselines.adapter_h import AdapterH
from deltaw.baselines.adapter_l import AdapterL
from deltaw.baselines.adapter_p import AdapterP
from deltaw.baselines.bias import BiasOnly
from deltaw.baselines.full import Full
from deltaw.baselines.method import Method
from deltaw.baselines.prefix_embedding import PrefixEmbedding
from deltaw.baselines.prefix_layer import PrefixLayer
from deltaw.baselines.top_blocks import TopBlocks
from deltaw.baselines.with_lora import LoRAPrefixEmbedding, LoRAPrefixLayer

__all__ = ["BASELINES"]

BASELINES: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Full,
        TopBlocks,
        BiasOnly,
        PrefixEmbedding,
        PrefixLayer,
        AdapterH,
        AdapterL,
        AdapterP,
        AdapterD,
        LoRAPrefixEmbedding,
        LoRAPrefixLayer,
    )
}
"""Name -> its settings' class, in the order of the paper's tables."""
