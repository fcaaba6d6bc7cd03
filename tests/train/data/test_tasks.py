"""Every task of the paper in every layout, on a few examples."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import task_files as tiny

from deltaw.errors import ConfigError, DataError
from deltaw.train.config import TASK_NAMES
from deltaw.train.data import build
from deltaw.train.data.formats.base import Labelled
from deltaw.train.data.sources.base import RowProblem
from deltaw.train.data.tasks import (
    TASKS,
    Generation,
    Query,
    column_names,
    draw,
    parse_sql,
    read_task,
    references,
    to_sql,
)
from deltaw.train.data.tasks.record import CHECKSUMS, checksum, recorded
from deltaw.train.data.tasks.synthetic import synthesize


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def contents(rows: Any) -> list[tuple[str, str]]:
    return [(row["context"], row["completion"]) for row in rows]


# ---- the registry


def test_the_flag_offers_exactly_the_registry() -> None:
    assert tuple(TASKS) == TASK_NAMES


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_sizes_licenses_and_a_validation_split(name: str) -> None:
    task = TASKS[name]
    assert task.licenses and task.counted and {"train", "valid"} <= set(task.splits)
    assert all(split.rows for split in task.splits.values())
    assert bool(task.labels) == (task.task == "classification")
    assert not ({"9k", "100", "1k", "10k"} & set(name.split("_"))) or task.subset


# ---- E2E


def test_e2e_text(folder: Path) -> None:
    tiny.put(folder, "test.txt", tiny.E2E_TEXT)
    rows = read_task("e2e", folder, "test")
    assert rows[0]["context"] == "name : Cotto | Type : pub | near : Café Sol"
    assert rows[0]["completion"] == "Cotto is a pub near Café Sol ."
    assert rows.number(2) == "line 3" and rows.format.name == "prompt_completion"
    assert references("e2e", folder) == [
        (rows[0]["context"], [rows[0]["completion"], rows[1]["completion"]]),
        ("name : Loch | price : cheap", ["Loch is cheap ."]),
    ]


def test_e2e_csv_is_written_like_the_text(folder: Path) -> None:
    tiny.put(folder, "testset_w_refs.csv", tiny.E2E_CSV)
    assert contents(read_task("e2e", folder, "test")) == [
        ("name : Cotto | Type : pub | near : Café Sol", "Cotto is a pub, near Café Sol."),
        (
            "name : Loch | price : £20-25 | family friendly : no | customer rating : 5 out of 5",
            'Loch says "no children".\nIt costs £20-25.',
        ),
    ]


def test_examples_are_values(folder: Path) -> None:
    tiny.put(folder, "test.txt", tiny.E2E_TEXT)
    *_, last = read_task("e2e", folder, "test").examples()
    assert last == Generation(
        split="test", id="test-3", context="name : Loch | price : cheap", completion="Loch is cheap ."
    )


# ---- WebNLG and DART


@pytest.mark.parametrize("layout", ["xml", "json", "tar.gz", "json.gz"])
def test_webnlg(folder: Path, layout: str) -> None:
    place = folder / "webnlg_challenge_2017"
    if layout in ("xml", "tar.gz"):
        tiny.put(place, "test/testdata_with_lex.xml", tiny.WEBNLG_XML)
    else:
        tiny.put(place, "test.json", tiny.WEBNLG_JSON)
    if layout == "json.gz":
        (place / "test.json.gz").write_bytes(gzip.compress((place / "test.json").read_bytes()))
        (place / "test.json").unlink()
    if layout == "tar.gz":
        tiny.packed(folder / "webnlg.tar.gz", place, "webnlg_challenge_2017")
        (place / "test/testdata_with_lex.xml").unlink()
    rows = read_task("webnlg", folder, "test")
    assert contents(rows) == [
        ('Aarhus_Airport : cityServed : "Aarhus, Denmark"', "Aarhus Airport serves Aarhus & more."),
        ('Aarhus_Airport : cityServed : "Aarhus, Denmark"', "The airport of Aarhus is Aarhus Airport."),
        ("Ana : plays : Cello | Ana : bornIn : Lima", "Ana of Lima plays the cello."),
    ]
    assert [row["group"] for row in rows] == ["seen", "seen", "unseen"]
    assert rows.notes == ["1 texts that are not marked good are left out, as in the paper's code"]
    assert len(read_task("webnlg", folder, "test_seen")) == 2
    (unseen,) = read_task("webnlg", folder, "test_unseen")
    assert unseen["context"].startswith("Ana") and unseen["entry"] == "test-2"


def test_webnlg_rows_of_many_files_carry_their_file(folder: Path) -> None:
    for name in ("b", "a"):
        tiny.put(folder, f"train/1triples/{name}.xml", tiny.WEBNLG_XML)
    rows = read_task("webnlg", folder, "train")
    assert len(rows) == 6 and rows.number(0) == "a.xml, line 11" and rows.number(5) == "b.xml, line 20"
    assert "2 files" not in rows.described() and str(folder / "train/1triples/a.xml") in rows.described()


@pytest.mark.parametrize("layout", ["json", "xml", "official json"])
def test_dart(folder: Path, layout: str) -> None:
    name = "dart-v1.1.1-full-test.json" if layout == "official json" else f"test.{layout}"
    tiny.put(folder, name, tiny.DART_XML if layout == "xml" else tiny.DART_JSON)
    rows = read_task("dart", folder, "test")
    good = [row for _, row in rows.each() if not isinstance(row, RowProblem)]
    context = "Mars Hill : joined : 1973 | [TABLECONTEXT] : [title] : Schools"
    texts = ["Mars Hill joined in 1973.", "In 1973 Mars Hill joined.", "1973 was when Mars Hill joined."]
    assert [(row["context"], row["completion"]) for row in good] == [(context, text) for text in texts]
    assert references("dart", folder, "test") == [(context, texts)]
    assert references("dart", folder, "test", by="entry") == [(context, texts[:2]), (context, texts[2:])]
    assert len(rows) == (4 if layout == "xml" else 3)


def test_an_empty_text_alone_is_refused(folder: Path) -> None:
    tiny.put(folder, "test.xml", re.sub(r">(Mars Hill joined|In 1973|1973 was)[^<]*<", "><", tiny.DART_XML))
    with pytest.raises(DataError, match="an empty text"):
        references("dart", folder, "test")


# ---- GLUE

EXPECTED: dict[str, list[Labelled]] = {
    name: [Labelled(text_a=first, text_b=second, label=label) for first, second, label in rows]
    for name, rows in {
        "sst2": [("it 's \" charming ", None, "positive"), ('" dull', None, "negative")],
        "cola": [("They sang.", None, "acceptable"), ('Sang they "the.', None, "unacceptable")],
        "mrpc": [('He said " yes .', "He agreed .", "equivalent"), ("It fell .", 'It rose " .', "not_equivalent")],
        "stsb": [("A plane.", "An air plane.", 5.0), ("A plane.", "A flute.", 0.25)],
        "qqp": [('What is "it?', "What's it?", "duplicate"), ("Who?", "When?", "not_duplicate")],
        "mnli": [("It rains.", "It is wet.", "entailment"), ("It rains.", "It is dry.", "contradiction")],
        "qnli": [('Who "?', "Ada did.", "entailment"), ("Who?", "It did.", "not_entailment")],
        "rte": [("It rains.", "It is wet.", "entailment"), ("It rains.", 'It is "dry.', "not_entailment")],
    }.items()
}


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("name", tiny.GLUE)
def test_glue(folder: Path, name: str, above: bool) -> None:
    tiny.glue(folder / TASKS[name].folders[0] if above else folder, name)
    rows = read_task(name, folder)
    assert list(rows.examples()) == EXPECTED[name] and not rows.task.subset
    assert rows.number(0) == ("line 1" if name == "cola" else "line 2")


def test_mnli_has_two_validation_files_and_their_union(folder: Path) -> None:
    tiny.put(folder, "dev_matched.tsv", tiny.MNLI_HEAD + "0\tp\tq\tg\ta\tb\tx\tneutral\n")
    tiny.put(folder, "dev_mismatched.tsv", tiny.MNLI_HEAD + "0\tp\tq\tg\tc\td\tx\tneutral\n" * 2)
    sizes = {split: len(read_task("mnli", folder, split)) for split in ("valid", "valid_matched", "valid_mismatched")}
    assert sizes == {"valid": 3, "valid_matched": 1, "valid_mismatched": 2}
    both = read_task("mnli", folder, "valid")
    assert [row["text_a"] for row in both] == ["a", "c", "c"] == [row["text_a"] for _, row in both.each()]
    assert [both.number(index) for index in range(3)] == [
        "valid_matched, line 2", "valid_mismatched, line 2", "valid_mismatched, line 3"
    ]  # fmt: skip
    assert [index for index, _ in both.source.each(2)] == [2]


def test_subsets_are_named_as_subsets(folder: Path) -> None:
    tiny.put(folder, "MNLI_9k/train.json", tiny.SUBSET)
    rows = read_task("mnli_9k", folder)
    assert [example.label for example in rows.examples()] == ["entailment", "contradiction"]
    assert rows.notes[0].startswith("SUBSET") and "subset of GLUE MNLI" in rows.described()
    with pytest.raises(DataError) as caught:
        read_task("mnli", folder)
    assert caught.value.hint == "this directory holds a subset; name it as one: --task mnli_9k."


def test_labels_keep_the_order_of_the_benchmark(folder: Path, byte_base: Any) -> None:
    tiny.glue(folder, "mnli")
    rows = read_task("mnli", folder)
    data = build(rows, rows.format, byte_base, max_length=64, labels=rows.task.labels)
    assert list(data.labels) == ["entailment", "neutral", "contradiction"] and [data[at].label for at in (0, 1)] == [
        0,
        2,
    ]


# ---- drawn rows


def test_a_draw_is_reproducible_nested_and_of_its_seed() -> None:
    small, large, other = draw(5_000, 100, 0), draw(5_000, 1_000, 0), draw(5_000, 100, 1)
    assert len(set(small)) == 100 and set(small) <= set(large) and (draw(5_000, 100, 0) == small).all()
    # Chance gives two of 100 in common.
    assert len(set(small) & set(other)) < 12
    keys = {at: hashlib.blake2b(f"deltaw draw 7 {at}".encode(), digest_size=8).hexdigest() for at in range(20)}
    assert draw(20, 5, 7).tolist() == sorted(sorted(keys, key=keys.__getitem__)[:5]) == [2, 4, 9, 16, 17]
    halves = [(draw(1_000, 200, seed) < 500).sum() for seed in range(20)]
    assert 90 < sum(halves) / 20 < 110


def test_mnli_n(folder: Path) -> None:
    lines = "".join(f"{n}\tp\tq\tg\tpremise {n}\tb\tx\tneutral\n" for n in range(1_200))
    tiny.put(folder, "train.tsv", tiny.MNLI_HEAD + lines)
    drawn = {(name, seed): read_task(name, folder, seed=seed) for name in ("mnli_100", "mnli_1k") for seed in (0, 1)}
    texts = {key: {row["text_a"] for row in rows} for key, rows in drawn.items()}
    assert [len(text) for text in texts.values()] == [100, 100, 1_000, 1_000]
    assert texts["mnli_100", 0] <= texts["mnli_1k", 0] and texts["mnli_100", 0] != texts["mnli_100", 1]
    assert drawn["mnli_100", 0].identity() != drawn["mnli_100", 1].identity()
    assert (
        "drawn with seed 1" in drawn["mnli_100", 1].described() and "100 training rows" in drawn["mnli_100", 1].notes[0]
    )
    with pytest.raises(DataError, match="fewer rows than are to be drawn"):
        read_task("mnli_10k", folder)


# ---- WikiSQL


@pytest.mark.parametrize("archived", [False, True])
def test_wikisql_of_salesforce(folder: Path, archived: bool) -> None:
    tiny.wikisql(folder / "data", "dev")
    if archived:
        tiny.packed(folder / "data.tar.bz2", folder / "data", "data")
        (folder / "data").rename(folder / "elsewhere")
    rows = read_task("wikisql", folder, "valid")
    assert rows[0]["context"] == 'columns: Player | No. | School "A" | column 4\nquestion: Who has no. 7?'
    assert [row["completion"] for row in rows] == [
        'SELECT "Player" FROM table WHERE "No." = 7',
        'SELECT COUNT("column 4") FROM table WHERE "School ""A""" = \'X\'\'s AND "Y"\' AND "No." > 6.5',
        'SELECT MAX("Name (2)") FROM table',
    ]
    for row, question in zip(rows, tiny.QUESTIONS, strict=True):
        assert parse_sql(row["completion"], row["header"]).as_dict() == question["sql"]


def test_wikisql_of_text2sql(folder: Path) -> None:
    path = tiny.put(folder, "wikisql.json", tiny.TEXT2SQL)
    (folder / "wikisql.json.bz2").write_bytes(bz2.compress(path.read_bytes()))
    path.unlink()
    (train,) = read_task("wikisql", folder, "train")
    assert train["context"] == "columns: the school | no. | founded\nquestion: Founded when is Erskine?"
    assert train["completion"] == 'SELECT "founded" FROM table WHERE "the school" = \'Erskine\''
    (test,) = read_task("wikisql", folder, "test")
    # This table's own order of columns is not in the file; they come as its questions use them.
    assert test["query"] == {"sel": 0, "agg": 0, "conds": [[1, 0, "Union"]]} and test["header"][0] == "founded"
    (valid,) = read_task("wikisql", folder, "valid")
    assert valid["completion"] == (
        'SELECT COUNT("no.") FROM table WHERE "the school" = \'1340 = 4,397feet\' AND "founded" > \'5\''
    )
    assert "no table headers" in read_task("wikisql", folder, "valid").notes[0]


def test_sql_reads_what_models_write() -> None:
    header = ["City", "No.", "a.b"]
    loose = 'select  count( "city" ) from TABLE where "NO." >-1.5e3 and "a.b"=\'it\'\'s\' ;'
    assert parse_sql(loose, header) == Query(select=0, aggregate=3, conditions=((1, 1, -1500.0), (2, 0, "it's")))
    assert column_names(["a", "A", " a  b "]) == ["a", "A (2)", "a b"]
    for value in (7, -7, 2.0, 1e-9, "7", "", 'say "hi"', "a AND \"b\" = 'c'", "é\n"):
        query = Query(select=2, aggregate=5, conditions=((0, 2, value), (1, 0, value)))
        again = parse_sql(to_sql(query, header), header)
        assert again == query and type(again.conditions[0][2]) is type(value)
        assert Query.from_dict(query.as_dict()) == query


@pytest.mark.parametrize(
    "text", ["", "SELECT", 'SELECT "City"', 'SELECT "Town" FROM table', 'SELECT "City" FROM table AND "City" = 1',
             'SELECT "City" FROM table WHERE "City" = 1.2.3',
             'SELECT "City" FROM table WHERE "No." > 1e999', 'SELECT "City" FROM table WHERE "City" = \'a',
             'SELECT "City" FROM table WHERE "City" = 1 OR "City" = 2']
)  # fmt: skip
def test_sql_refuses_what_is_no_query(text: str) -> None:
    with pytest.raises(DataError):
        parse_sql(text, ["City", "No."])


# ---- SAMSum


def test_samsum(folder: Path) -> None:
    tiny.put(folder, "val.json", tiny.SAMSUM)
    assert contents(read_task("samsum", folder, "valid")) == [
        ("Amanda: I baked cookies.\nJerry: Sure!\n\n", "Amanda baked cookies."),
        ("Olivia: Who?\nOliver: Me\nOlivia: Great\n\n", "Olivia votes."),
    ]


def test_the_blank_line_stays_when_samsum_is_tokenized(folder: Path, byte_base: Any) -> None:
    tiny.put(folder, "val.json", tiny.SAMSUM)
    rows = read_task("samsum", folder, "valid")
    data = build(rows, rows.format, byte_base, max_length=200)
    assert "Jerry: Sure!\n\nAmanda baked cookies.</s>" in byte_base.decode(data[0].ids)


# ---- files


def test_an_archive_leaves_nothing_outside(folder: Path, tmp_path: Path) -> None:
    archive = folder / "webnlg.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("../../evil.xml", "/evil.xml", "webnlg/dev/1triples/good.xml"):
            member = tarfile.TarInfo(name)
            member.size = len(tiny.WEBNLG_XML.encode())
            tar.addfile(member, io.BytesIO(tiny.WEBNLG_XML.encode()))
        link = tarfile.TarInfo("webnlg/dev/1triples/link.xml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    rows = read_task("webnlg", archive, "valid")
    assert len(rows) == 3 and len(rows.found) == 1
    assert rows.found[0].shown == f"{archive}/webnlg/dev/1triples/good.xml"
    assert [path.name for path in tmp_path.rglob("*.xml")] == ["good.xml"]


def test_an_unpacked_archive_is_checked_before_it_is_used_again(folder: Path, tmp_path: Path) -> None:
    tiny.put(folder / "in", "dev/1/good.xml", tiny.WEBNLG_XML)
    archive = tiny.packed(folder / "webnlg.tar.gz", folder / "in", "webnlg")
    assert len(read_task("webnlg", archive, "valid")) == 3
    (unpacked,) = (tmp_path / "cache").rglob("good.xml")
    unpacked.write_text("cut")
    assert len(read_task("webnlg", archive, "valid")) == 3


def test_a_change_of_the_file_is_a_change_of_identity(folder: Path) -> None:
    path = tiny.put(folder, "test.txt", tiny.E2E_TEXT)
    before = read_task("e2e", folder, "test")
    names = {before.identity(), before.select([0]).identity()}
    path.write_text(tiny.E2E_TEXT.replace("cheap", "dear"), encoding="utf-8")
    assert len(names | {read_task("e2e", folder, "test").identity()}) == 3


# ---- the record


def test_the_record_compares(folder: Path) -> None:
    tiny.put(folder, "e2e/test.txt", tiny.E2E_TEXT)
    tiny.put(folder, "RTE/dev.tsv", "index\tsentence1\n")
    found = {(item.task, item.split): item for item in recorded(folder)}
    e2e = found["e2e", "test"]
    assert e2e.status == "different" and e2e.why == "3 rows of 4,693; 2 inputs of 630"
    assert e2e.sha256 == checksum(read_task("e2e", folder, "test").found) and e2e.rows == 3
    assert found["e2e", "train"].status == "absent" and found["e2e", "train"].rows_expected == 42_061
    assert found["rte", "valid"].status == "different" and "sentence2" not in found["rte", "valid"].why.split("got")[0]
    assert {task.name for task in TASKS.values() if not task.draw} == {task for task, _ in found}
    assert set(CHECKSUMS) <= {
        (task.name, name, layout.name)
        for task in TASKS.values() for name, split in task.splits.items() for layout in split.layouts
    }  # fmt: skip


def test_a_checksum_does_not_see_compression(folder: Path) -> None:
    tiny.put(folder, "test.txt", tiny.E2E_TEXT)
    plain = checksum(read_task("e2e", folder, "test").found)
    (folder / "test.txt").unlink()
    (folder / "test.txt.gz").write_bytes(gzip.compress(tiny.E2E_TEXT.encode("utf-8")))
    assert checksum(read_task("e2e", folder, "test").found) == plain


# ---- stand-ins


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.draw])
def test_a_stand_in_is_read_like_the_task_and_says_what_it_is(tmp_path: Path, name: str) -> None:
    files = synthesize(name, tmp_path / "made", rows=20, seed=3)
    assert "SYNTHETIC.txt" in files and "SYNTHETIC" in (tmp_path / "made" / "SYNTHETIC.txt").read_text()
    for split in TASKS[name].splits:
        rows = read_task(name, tmp_path / "made", split)
        examples = list(rows.examples())
        whole = 20 if split == "train" else 2 * 4 if name == "mnli" and split == "valid" else 4
        assert len(examples) == whole or split.startswith("test_")
        assert rows.notes[0].startswith("SYNTHETIC")
        if TASKS[name].labels and split == "train":
            assert {example.label for example in examples} == set(TASKS[name].labels)  # type: ignore[union-attr]
    assert {item.status for item in recorded(tmp_path / "made", names=(name,))} == {"synthetic"}
    synthesize(name, tmp_path / "again", rows=20, seed=3)
    assert all((tmp_path / "made" / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)


# ---- wrong names


def test_other_refusals(folder: Path) -> None:
    tiny.glue(folder, "sst2")
    with pytest.raises(ConfigError, match="no references"):
        references("sst2", folder, "train")
    tiny.put(folder, "test.txt", tiny.E2E_TEXT)
    with pytest.raises(ConfigError, match="not grouped that way"):
        references("e2e", folder, by="line")
