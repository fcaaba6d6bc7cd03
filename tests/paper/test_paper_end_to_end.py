"""Data, training, decoding and a score, on the smallest real model: better than the model untrained."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest

from deltaw.cli import main
from deltaw.paper.decode import distinct

LINES, HELD_OUT = 320, 4


def pairs_of(path: Path) -> list[tuple[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = (line.rstrip("\n").split("||") for line in itertools.islice(file, 4000))
        # what fits the small model's context well
        return [(context, text) for context, text in lines if len(context) < 90 and len(text) < 110]


@pytest.mark.slow
@pytest.mark.shared
def test_a_trained_adapter_scores_better_than_its_base(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, source = shared / "models" / "stories260K", shared / "e2e" / "train.txt.gz"
    sacrebleu = pytest.importorskip("sacrebleu")
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    found = pairs_of(source)
    inputs = distinct([context for context, _ in found])
    held = set(inputs[:HELD_OUT])
    rows = [pair for pair in found if pair[0] not in held][:LINES]
    (tmp_path / "train.txt").write_text("".join(f"{context}||{text}\n" for context, text in rows))
    tests = [pair for pair in found if pair[0] in held]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"prompt": context}) + "\n" for context, _ in tests))
    train = [
        "train", "--model", base, "--data", tmp_path / "train.txt", "--separator", "||", "--output", tmp_path / "out",
        "--rank", "8", "--steps", "60", "--batch-size", "8", "--lr", "8e-3", "--warmup-tokens", "4000",
        "--label-smoothing", "0.1", "--valid-fraction", "0", "--no-plot", "--sample-tokens", "0", "-q",
    ]  # fmt: skip
    assert not main(list(map(str, train)))
    references = [[text for context, text in tests if context == name] for name in inputs[:HELD_OUT]]
    streams = [list(row) for row in itertools.zip_longest(*references)]
    scores = {}
    for name, adapter in (("base", []), ("trained", ["--adapter", tmp_path / "out"])):
        words = ["paper", "decode", "--model", base, *adapter, "--prompts", tmp_path / "test.jsonl"]
        words += ["--form", "prompt", "--beams", "4", "--max-tokens", "60", "--output", tmp_path / name, "--json"]
        assert not main(list(map(str, words)))
        told = json.loads(capsys.readouterr().out)
        assert (told["inputs"], told["distinct"], told["answered"]) == (len(tests), HELD_OUT, HELD_OUT)
        answers = [json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        assert [answer["context"] for answer in answers] == inputs[:HELD_OUT]
        texts = [answer["prediction"] for answer in answers]
        scores[name] = sacrebleu.corpus_bleu(texts, streams, force=True).score
    assert scores["trained"] > scores["base"] + 5, scores
