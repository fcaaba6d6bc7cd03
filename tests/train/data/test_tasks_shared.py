"""The paper's counts, on the released files themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltaw.train.data.sources.base import RowProblem
from deltaw.train.data.tasks import TASKS, Query, parse_sql, read_task, references
from deltaw.train.data.tasks.record import recorded

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


COUNTS = [
    ("e2e", "train", 42_061), ("e2e", "valid", 4_672), ("e2e", "test", 4_693),
    ("webnlg", "train", 18_025), ("webnlg", "valid", 2_258), ("webnlg", "test", 4_928),
    ("webnlg", "test_seen", 2_495), ("webnlg", "test_unseen", 2_433),
    ("dart", "valid", 6_980), ("dart", "test", 12_552),
    ("sst2", "train", 67_349), ("sst2", "valid", 872), ("cola", "train", 8_551), ("cola", "valid", 1_043),
    ("mrpc", "train", 3_667), ("mrpc", "valid", 408), ("rte", "train", 2_490), ("rte", "valid", 277),
    ("stsb", "train", 5_749), ("stsb", "valid", 1_500),
    ("mnli_9k", "train", 8_999), ("mnli_9k", "valid", 1_000), ("qnli_9k", "train", 8_999), ("qnli_9k", "valid", 1_000),
]  # fmt: skip


@pytest.mark.parametrize(("name", "split", "count"), COUNTS)
def test_rows(shared: Path, cache: Path, name: str, split: str, count: int) -> None:
    rows = read_task(name, shared, split, cache_dir=cache)
    problems = [(index, str(row)) for index, row in rows.each() if isinstance(row, RowProblem)]
    assert len(rows) == count
    assert [message for _, message in problems] == (["an empty text"] if (name, split) == ("dart", "test") else [])


@pytest.mark.parametrize(
    ("name", "split", "inputs", "most"),
    [("e2e", "valid", 547, None), ("e2e", "test", 630, 45), ("webnlg", "test", 1_862, None),
     ("webnlg", "test_seen", 971, None), ("webnlg", "test_unseen", 891, None), ("dart", "valid", 2_721, None)],
)  # fmt: skip
def test_inputs(shared: Path, cache: Path, name: str, split: str, inputs: int, most: int | None) -> None:
    found = references(name, shared, split, cache_dir=cache)
    assert len(found) == inputs == len(dict(found)) and all(texts and all(texts) for _, texts in found)
    assert most is None or max(len(texts) for _, texts in found) == most


def test_records_of_dart(shared: Path, cache: Path) -> None:
    assert [len(references("dart", shared, split, by="entry", cache_dir=cache)) for split in ("valid", "test")] == [
        2_768, 5_097
    ]  # fmt: skip


def test_webnlg_in_both_forms_is_the_same(shared: Path, cache: Path, tmp_path: Path) -> None:
    (json_file,) = read_task("webnlg", shared, "valid", cache_dir=cache).found
    tree = json_file.path.parent
    (tmp_path / "dev").symlink_to(tree / "dev")
    both: list[Any] = [references("webnlg", place, "valid", cache_dir=cache) for place in (tree, tmp_path)]
    assert len(both[0]) == len(both[1]) == 870
    assert {key: sorted(texts) for key, texts in both[0]} == {key: sorted(texts) for key, texts in both[1]}


@pytest.mark.slow
def test_every_query_of_wikisql_comes_back(shared: Path, cache: Path) -> None:
    for split, count in (("train", 56_355), ("valid", 8_421), ("test", 15_878)):
        rows = read_task("wikisql", shared, split, cache_dir=cache)
        assert len(rows) == count
        for index in range(count):
            row = rows[index]
            assert parse_sql(row["completion"], row["header"]) == Query.from_dict(row["query"])
    assert [item.status for item in recorded(shared, names=("wikisql",), cache_dir=cache)] == ["ok"] * 3


def test_drawn_rows_of_the_real_subset(shared: Path, cache: Path) -> None:
    drawn = [read_task("mnli_9k_1k", shared, seed=seed, cache_dir=cache) for seed in (0, 0, 1)]
    texts = [[row["text_a"] for row in rows] for rows in drawn]
    assert texts[0] == texts[1] != texts[2] and all(len(text) == 1_000 for text in texts)


def test_the_record_of_the_released_files(shared: Path, cache: Path) -> None:
    names = [name for name, task in TASKS.items() if not task.draw and name != "wikisql"]
    found = {(item.task, item.split): item for item in recorded(shared, names=names, cache_dir=cache)}
    assert {key for key, item in found.items() if item.status == "absent"} == {
        ("dart", "train"), ("qnli", "train"), ("qnli", "valid"),
        *((name, split) for name in ("qqp", "mnli", "samsum", "qqp_9k") for split in TASKS[name].splits),
    }  # fmt: skip
    assert {key for key, item in found.items() if item.status == "subset"} == {
        (name, split) for name in ("mnli_9k", "qnli_9k") for split in ("train", "valid")
    }
    different = {key: item.why for key, item in found.items() if item.status == "different"}
    assert different == {("mrpc", "train"): "3,667 rows of 3,668"}
    assert all(item.sha256 == item.sha256_expected for item in found.values() if item.status in ("ok", "subset"))
