"""The data boundary: from a file of rows to tokens with weights.

``load_rows`` opens a file, ``detect`` settles what its rows mean, ``build`` tokenizes them once and for all, ``split``
holds a part out, ``show`` prints an example with its trained tokens marked.
"""

from __future__ import annotations

from deltaw.train.data.build import Options, build
from deltaw.train.data.dataset import Dataset
from deltaw.train.data.detect import detect
from deltaw.train.data.formats import KINDS, Format
from deltaw.train.data.prompts import prompt_ids
from deltaw.train.data.report import DataReport
from deltaw.train.data.rows import Rows, load_rows
from deltaw.train.data.show import marked, show
from deltaw.train.data.split import note_overlap, overlap, split
from deltaw.train.data.templates import DEFAULT_CHAT_TEMPLATE, Renderer
from deltaw.train.data.tokenizer import context_length, load_tokenizer
from deltaw.train.data.tokens import Example

__all__ = [
    "DEFAULT_CHAT_TEMPLATE",
    "KINDS",
    "DataReport",
    "Dataset",
    "Example",
    "Format",
    "Options",
    "Renderer",
    "Rows",
    "build",
    "context_length",
    "detect",
    "load_rows",
    "load_tokenizer",
    "marked",
    "note_overlap",
    "overlap",
    "prompt_ids",
    "show",
    "split",
]
