"""A data directory and an encoder that every checkout can make, in the layout that the rows of the paper read.

Made-up data in the tasks' own files, the demonstration's small decoder in place of stories3M, and a random encoder of
BERT's shape: figures on them say nothing but that a row works, and are the same wherever it does.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import torch

from deltaw.train.data.tasks.synthetic import synthesize

__all__ = ["DECODER", "make_data", "make_encoder"]

DECODER = Path(__file__).resolve().parents[2] / "demo" / "base"
GLUE = {"cola": "CoLA", "sst2": "SST-2", "mrpc": "MRPC", "mnli_9k": "MNLI_9k"}


def make_data(root: Path) -> Path:
    """Write e2e, four tasks of GLUE and models/stories3M below a directory."""
    (root / "glue").mkdir(parents=True)
    (root / "models").mkdir()
    synthesize("e2e", root / "e2e")
    for file in (root / "e2e").glob("*.txt"):
        if file.stem in ("train", "valid", "test"):
            file.with_suffix(".txt.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
            file.unlink()
    for name, folder in GLUE.items():
        synthesize(name, root / "glue" / folder)
    shutil.copytree(DECODER, root / "models" / "stories3M")
    return root


def make_encoder(place: Path) -> Path:
    """Write a random encoder with the decoder's tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(DECODER)
    torch.manual_seed(11)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    BertModel(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place
