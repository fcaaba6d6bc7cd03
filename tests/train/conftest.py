"""A tiny random model with a tokenizer of its own, and files of rows, made once per session."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_train import labelled, make_model, make_tokenizer, pairs, scored, write_jsonl


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny Llama and its tokenizer."""
    path = tmp_path_factory.mktemp("base")
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with pairs.jsonl, labels.jsonl and scores.jsonl."""
    path = tmp_path_factory.mktemp("files")
    write_jsonl(path / "pairs.jsonl", pairs())
    write_jsonl(path / "labels.jsonl", labelled())
    write_jsonl(path / "scores.jsonl", scored())
    return path


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """One thread, and a token cache of the test's own."""
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
