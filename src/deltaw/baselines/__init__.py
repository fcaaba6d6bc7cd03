"""The baselines that the LoRA paper compares with, under the verbs of LoRA adapters.

Full fine-tuning, the last blocks, biases alone, prefixes of embeddings and of layers, adapters H, L, P and D, and LoRA
beside a prefix. Each is one file with its settings' class; ``BASELINES`` lists them by name.

Source:
    Hu et al. 2021, arXiv:2106.09685, section 5.1 and appendix E.

Example:
    >>> import torch
    >>> from deltaw import baselines
    >>> net = torch.nn.Linear(2, 2)
    >>> report = baselines.attach(net, baselines.Full())
    >>> [name for name, _ in baselines.trainable(net)], report.parameters
    (['weight', 'bias'], 6)
"""

from __future__ import annotations

from deltaw.baselines.adapter_d import AdapterD
from deltaw.baselines.adapter_h import AdapterH
from deltaw.baselines.adapter_l import AdapterL
from deltaw.baselines.adapter_p import AdapterP
from deltaw.baselines.bias import BiasOnly
from deltaw.baselines.files import BaselineLoadReport, Stored, is_baseline, load, save
from deltaw.baselines.full import Full
from deltaw.baselines.inserter import completion_starts
from deltaw.baselines.method import Method
from deltaw.baselines.prefix_embedding import PrefixEmbedding
from deltaw.baselines.prefix_layer import PrefixLayer
from deltaw.baselines.registry import BASELINES
from deltaw.baselines.top_blocks import TopBlocks
from deltaw.baselines.verbs import (
    BaselineReport,
    FoldReport,
    attach,
    attached,
    detach,
    disabled,
    merge,
    trainable,
    unmerge,
)
from deltaw.baselines.with_lora import LoRAPrefixEmbedding, LoRAPrefixLayer

__all__ = [
    "BASELINES",
    "AdapterD",
    "AdapterH",
    "AdapterL",
    "AdapterP",
    "BaselineLoadReport",
    "BaselineReport",
    "BiasOnly",
    "FoldReport",
    "Full",
    "LoRAPrefixEmbedding",
    "LoRAPrefixLayer",
    "Method",
    "PrefixEmbedding",
    "PrefixLayer",
    "Stored",
    "TopBlocks",
    "attach",
    "attached",
    "completion_starts",
    "detach",
    "disabled",
    "is_baseline",
    "load",
    "merge",
    "save",
    "trainable",
    "unmerge",
]
