from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltaw.train.data import KINDS, detect, load_rows
from deltaw.train.data.formats.base import Chat, Completion, Labelled, Text

Write = Callable[..., Path]
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHARE = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]

DETECTED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "a", "completion": "b"}, "prompt_completion", "causal"),
    ({"question": "a", "answer": "b"}, "prompt_completion", "causal"),
    ({"Prompt": "a", "Response": "b"}, "prompt_completion", "causal"),
    ({"source": "a", "target": "b"}, "prompt_completion", "causal"),
    ({"input": "a", "output": "b"}, "prompt_completion", "causal"),
    ({"prompt": "a", "completion": "b", "text": "c"}, "prompt_completion", "causal"),
    ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt_completion", "causal"),
    ({"instruction": "a", "input": "", "output": "b"}, "alpaca", "causal"),
    ({"instruction": "a", "response": "b"}, "alpaca", "causal"),
    ({"instruction": "a", "context": "c", "response": "b", "category": "x"}, "alpaca", "causal"),
    ({"instruction": "a", "input": "", "output": "b", "text": "c"}, "alpaca", "causal"),
    ({"messages": TURNS}, "messages", "causal"),
    ({"conversations": TURNS}, "messages", "causal"),
    ({"messages": TURNS, "tools": None}, "messages", "causal"),
    ({"conversations": SHARE}, "sharegpt", "causal"),
    ({"id": "1", "system": "s", "conversations": SHARE}, "sharegpt", "causal"),
    ({"text": "a"}, "text", "causal"),
    ({"text": "a", "meta": {}}, "text", "causal"),
    ({"text": "a", "label": "x"}, "text_label", "classification"),
    ({"sentence": "a", "label": 1, "idx": 3}, "text_label", "classification"),
    ({"review": "a", "sentiment": True}, "text_label", "classification"),
    ({"text": "a", "score": 0.25}, "text_label", "regression"),
    ({"text": "a", "score": "0.25"}, "text_label", "regression"),
    ({"text_a": "a", "text_b": "b", "label": "x"}, "pair_label", "classification"),
    ({"sentence1": "a", "sentence2": "b", "score": 3.8}, "pair_label", "regression"),
    ({"premise": "a", "hypothesis": "b", "label": 0}, "pair_label", "classification"),
    ({"question1": "a", "question2": "b", "label": 0}, "pair_label", "classification"),
    ({"question": "a", "sentence": "b", "label": "x"}, "pair_label", "classification"),
]


@pytest.mark.parametrize(("row", "name", "task"), DETECTED, ids=lambda value: str(value)[:40])
def test_detection(write: Write, row: dict[str, Any], name: str, task: str) -> None:
    found = detect(load_rows(write([row])))
    assert (found.name, found.task) == (name, task)
    assert all(column in found.reason for column in row)
    found.parse(row)


@pytest.mark.parametrize("name", KINDS)
def test_every_format_has_an_example_that_it_detects(write: Write, name: str) -> None:
    row = json.loads(KINDS[name].example)
    found = detect(load_rows(write([row])))
    assert found.name == name
    assert found.parse(row) == detect(load_rows(write([row])), format=name).parse(row)


def test_mapping_and_task_overrule(write: Write) -> None:
    rows = load_rows(write([{"q": "a", "a": "b", "stars": 3.0}]))
    found = detect(rows, columns={"prompt": "q", "completion": "a"})
    assert found.parse(rows[0]) == Completion(prompt="a", completion="b")
    found = detect(rows, columns={"text": "q", "label": "stars"}, task="classification")
    assert (found.name, found.task) == ("text_label", "classification")
    assert "2 different" in detect(load_rows(write([{"text": "a", "label": v} for v in (0.0, 1.0)]))).reason


def test_unused_columns_are_named(write: Write) -> None:
    assert "not used: context" in detect(load_rows(write([{"question": "a", "context": "c", "answer": "b"}]))).reason


def test_detection_looks_past_nulls(write: Write) -> None:
    rows = [{"conversations": None}, {"conversations": SHARE}]
    assert detect(load_rows(write(rows))).name == "sharegpt"


def test_alpaca_keeps_its_parts(write: Write) -> None:
    rows = load_rows(write([{"instruction": "i", "input": "x", "output": "o", "system": "s"}]))
    wanted = Completion(prompt="i", given="x", completion="o", system="s", headed=True)
    assert detect(rows).parse(rows[0]) == wanted


def test_sharegpt_becomes_messages(write: Write) -> None:
    rows = load_rows(write([{"system": "s", "conversations": [*SHARE, {"from": "observation", "value": "t"}]}]))
    record = detect(rows).parse(rows[0])
    assert isinstance(record, Chat)
    assert [message["role"] for message in record.messages] == ["system", "user", "assistant", "tool"]
    assert record.weights == [0.0, 0.0, 1.0, 0.0]


def test_only_the_completion_of_two_lists_of_messages_is_trained(write: Write) -> None:
    rows = load_rows(write([{"prompt": [*TURNS, TURNS[0]], "completion": TURNS[1:]}]))
    record = detect(rows).parse(rows[0])
    assert isinstance(record, Chat) and record.weights == [0.0, 0.0, 0.0, 1.0]


def test_message_parts_are_joined_and_nulls_dropped(write: Write) -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": None},
        {"role": "assistant", "content": "c", "tool_calls": None},
    ]
    rows = load_rows(write([{"messages": turns}]))
    record = detect(rows).parse(rows[0])
    assert isinstance(record, Chat)
    assert record.messages == [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]


def test_records_of_labels_and_text(write: Write) -> None:
    rows = load_rows(write([{"text_a": "a", "text_b": "b", "label": " x "}]))
    assert detect(rows).parse(rows[0]) == Labelled(text_a="a", text_b="b", label="x")
    rows = load_rows(write([{"text": " a\n"}]))
    assert detect(rows).parse(rows[0]) == Text(text=" a\n")


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "format", "task"),
    [
        ("glue/SST-2/dev.tsv.gz", "text_label", "classification"),
        ("glue/CoLA/dev.tsv.gz", "text_label", "classification"),
        ("glue/MRPC/dev.tsv.gz", "pair_label", "classification"),
        ("glue/RTE/dev.tsv.gz", "pair_label", "classification"),
        ("glue/STS-B/dev.tsv.gz", "pair_label", "regression"),
        ("glue/MNLI_9k/dev.json.gz", "pair_label", "classification"),
        ("glue/QNLI_9k/dev.json.gz", "pair_label", "classification"),
        ("instruct/instruction-data.json", "alpaca", "causal"),
        ("text/bronte.txt.gz", "text", "causal"),
    ],
)
def test_real_files_are_understood(shared: Path, name: str, format: str, task: str) -> None:
    found = detect(load_rows(shared / name))
    assert (found.name, found.task) == (format, task)
