"""WikiSQL from decoding to its two accuracies: SQL is read row by row, and what is no query counts as wrong."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import deltaw as dw
import deltaw.paper.decode as decoding
from deltaw.cli import main
from deltaw.paper.decode import Answer, Prompt
from deltaw.paper.metrics import read_segments, score
from deltaw.paper.queries import Question, Written, questions_of, write_queries
from deltaw.train.data.tasks import Query, read_task
from deltaw.train.data.tasks.wikisql import Table, encode

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
sys.path.insert(0, str(Path(__file__).parents[1] / "train" / "data"))
import task_files as tiny
from tiny_train import make_model, make_tokenizer, write_jsonl

PAGE = Path(__file__).parents[2] / "docs" / "paper.md"
CITIES = {"header": ["City", "People", "Country"], "types": ["text", "real", "text"]}
TABLES: list[dict[str, Any]] = [
    {"id": "1-1", **CITIES, "rows": [["Rome", 2800, "Italy"], ["Milan", 1400, "Italy"], ["Oslo", 700, "Norway"]]},
    {"id": "1-2", **CITIES, "rows": [["Bergen", 280, "Norway"], ["Turin", 850, "Italy"]]},
    {"id": "1-3", "header": ["Player", ""], "types": ["text", "real"], "rows": [["Ann", 7], ["Bo", 6.5]]},
]
ROWS: list[dict[str, Any]] = [
    {"table_id": table, "question": question, "sql": {"sel": select, "agg": aggregate, "conds": conditions}}
    for table, question, select, aggregate, conditions in (
        ("1-1", "Who is the largest?", 0, 0, [[1, 1, 2000]]),
        ("1-3", "Who has more than 6.6?", 0, 0, [[1, 1, 6.6]]),
        ("1-2", "How many are in Italy?", 0, 3, [[2, 0, "Italy"]]),
        ("1-1", "How many are in Italy?", 0, 3, [[2, 0, "Italy"]]),
        ("1-1", "Who is the largest?", 0, 0, [[1, 1, 2000]]),
        ("1-3", "The best?", 1, 1, []),
    )
]  # fmt: skip
"""Six rows of four inputs: one question twice on one table, and one on two tables of equal columns."""
Said = dict[str, str]
"""Question to answer."""
RIGHT: Said = {
    "Who is the largest?": 'SELECT "City" FROM table WHERE "People" > 2000',
    "Who has more than 6.6?": 'select "player" from table where "column 2" > 6.6 ;',
    "How many are in Italy?": 'SELECT COUNT("City") FROM table WHERE "Country" = \'Italy\'',
    "The best?": 'SELECT MAX("column 2") FROM table',
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    model = make_model(320)
    model.config.max_position_embeddings = 512
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "dev.jsonl", ROWS)
    write_jsonl(folder / "dev.tables.jsonl", TABLES)
    return folder


@pytest.fixture
def speaks(monkeypatch: pytest.MonkeyPatch) -> Callable[[Said], list[str]]:
    """Lets the search find given answers; what it is asked is kept."""

    def put(said: Said) -> list[str]:
        asked: list[str] = []

        def search(model: Any, tokenizer: Any, prompts: Sequence[Prompt], *settings: Any) -> list[Answer]:
            asked.extend(prompt.context for prompt in prompts)
            return [
                answer(prompt.context, said[prompt.context.split("question: ")[1]], prompt.id) for prompt in prompts
            ]

        monkeypatch.setattr(decoding, "beam_search", search)
        return asked

    return put


def answer(context: str, text: str, id: int = 0) -> Answer:
    return Answer(id=id, context=context, prediction=text, tokens=1, truncated=False)


def decode(base: Path, data: Path, *words: object, layout: str = "wikisql") -> None:
    place = ["--model", base, "--task", "wikisql", "--data", data, "--split", "valid", "--output", data.parent / "out"]
    given = ["paper", "decode", *place, "--layout", layout, *words]
    assert not main([str(word) for word in given])


def scored(data: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    """Both accuracies, by the command, of the two files just as they are."""
    out = data.parent / "out"
    capsys.readouterr()
    words = ["--hypotheses", out / "hypotheses.jsonl", "--references", out / "references.jsonl"]
    words += ["--metric", "wikisql_lf,wikisql_ex", "-O", f"tables={data / 'dev.tables.jsonl'}", "--json"]
    assert not main(["paper", "score", *map(str, words)])
    return {found["metric"]: found for found in json.loads(capsys.readouterr().out)["scores"]}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_right_answers_score_one_by_the_commands_of_the_page(
    base: Path, data: Path, speaks: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(320)
    dw.attach(model, dw.LoRAConfig(rank=2, targets=["q_proj"]))
    dw.save(model, data.parent / "adapter")
    places = {"gpt2-medium": base, "deltaw-out": data.parent / "adapter", "DIR": data, "queries": data.parent / "out"}
    commands = re.findall(r"^deltaw (paper (?:decode|score) .*queries.*)$", PAGE.read_text().replace("\\\n", " "), re.M)
    assert len(commands) == 2
    asked = speaks(RIGHT)
    for command in commands:
        for name, place in places.items():
            command = re.sub(rf"(?<![\w-]){name}(?![\w-])", str(place), command)
        assert not main(shlex.split(command, comments=True))
    said = capsys.readouterr().out
    assert "6 inputs, 4 distinct to answer" in said and "NO QUERY" not in said and "come twice" not in said
    assert "6 rows in hypotheses.jsonl and references.jsonl, in the order of the data" in said
    assert "wikisql_lf 1.0000  (6 segments)" in said and "wikisql_ex 1.0000  (6 segments)" in said
    assert sorted(asked) == sorted(set(asked)) and len(asked) == 4
    out = data.parent / "out"
    assert [line["query"] for line in lines(out / "hypotheses.jsonl")] == [row["sql"] for row in ROWS]
    headers = {table["id"]: table["header"] for table in TABLES}
    assert lines(out / "references.jsonl") == [
        {"table_id": row["table_id"], "header": headers[row["table_id"]], "sql": row["sql"]} for row in ROWS
    ]


def test_wrong_and_unreadable_answers_cost_exactly_their_rows(
    base: Path, data: Path, speaks: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    # each of these is asked once or twice: another query with the same rows, one with others, and two that are none
    cases: list[tuple[Said, list[int], list[int], list[int]]] = [
        ({"Who is the largest?": 'SELECT "City" FROM table WHERE "City" = \'rome\''}, [0, 4], [], []),
        ({"The best?": 'SELECT MIN("column 2") FROM table'}, [5], [5], []),
        ({"The best?": 'SELECT MAX("Goals") FROM table'}, [5], [5], [6]),
        ({"How many are in Italy?": "two\nof them"}, [2, 3], [2, 3], [3, 4]),
        ({"The best?": ""}, [5], [5], [6]),
        ({"The best?": json.dumps(ROWS[5]["sql"])}, [5], [5], [6]),
        (dict.fromkeys(RIGHT, "?"), [*range(6)], [*range(6)], [*range(1, 7)]),
    ]
    for said, false_form, false_result, no_query in cases:
        speaks({**RIGHT, **said})
        decode(base, data, "--overwrite")
        told = capsys.readouterr().out
        found = scored(data, capsys)
        assert found["wikisql_lf"]["value"] == (6 - len(false_form)) / 6, said
        assert found["wikisql_ex"]["value"] == (6 - len(false_result)) / 6, said
        notes = [note for note in found["wikisql_lf"]["notes"] if "no query objects and count as wrong" in note]
        if not no_query:
            assert not notes and "NO QUERY" not in told
            continue
        assert notes[0].startswith(f"{len(no_query)} of 6 hypotheses") and notes == found["wikisql_ex"]["notes"]
        shown = ", ".join(map(str, no_query[:5])) + (", ..." if len(no_query) > 5 else "")
        assert f"NO QUERY: {len(no_query)} of 6 rows got" in told and f"(lines {shown})" in told
        kept = lines(data.parent / "out" / "hypotheses.jsonl")[no_query[0] - 1]
        assert kept["answer"] in said.values() and kept["error"], "the text is kept, and why it is no query"


def test_files_come_of_answers_that_are_there_and_a_limit_leaves_rows_out(
    base: Path, data: Path, speaks: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = speaks({**RIGHT, "Who has more than 6.6?": "?"})
    decode(base, data, layout="none")
    assert len(asked) == 4 and not (data.parent / "out" / "hypotheses.jsonl").exists()
    capsys.readouterr()
    decode(base, data, "--json")
    told = json.loads(capsys.readouterr().out)
    assert len(asked) == 4, "the same inputs in another layout are not searched again"
    assert (told["inputs"], told["distinct"], told["resumed"], told["rows"], told["no_query"]) == (6, 4, 4, 6, 1)
    assert {"predictions.jsonl", "hypotheses.jsonl", "references.jsonl", "decode.json"} == set(told["files"])
    decode(base, data, "--limit", 2, "--overwrite")
    kept = [row for row in ROWS if row["question"] in ("Who is the largest?", "Who has more than 6.6?")]
    assert [line["sql"] for line in lines(data.parent / "out" / "references.jsonl")] == [row["sql"] for row in kept]
    assert scored(data, capsys)["wikisql_ex"]["value"] == 2 / 3


def test_a_search_that_forbids_repetition_is_told(
    base: Path, data: Path, speaks: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    speaks(RIGHT)
    decode(base, data)
    assert "no 4 tokens come twice in an answer" in capsys.readouterr().out
    decode(base, data, "--no-repeat", 0, "--overwrite")
    assert "come twice" not in capsys.readouterr().out


def test_what_is_known_of_the_files_is_told(
    base: Path, tmp_path: Path, speaks: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The single file of text2sql has no headers and no rows: its queries are not run on other tables by mistake."""
    data = tmp_path / "data"
    tiny.put(data, "wikisql.json", tiny.TEXT2SQL)
    text = 'SELECT COUNT("no.") FROM table WHERE "the school" = \'1340 = 4,397feet\' AND "founded" > \'5\''
    speaks({"How many at 1340 = 4,397feet?": text})
    decode(base, data)
    assert "the file has no table headers" in capsys.readouterr().out
    write_jsonl(data / "dev.tables.jsonl", [{"id": "1-1", "header": ["Year"], "types": ["text"], "rows": [["1839"]]}])
    out = tmp_path / "out"
    words = ["--hypotheses", str(out / "hypotheses.jsonl"), "--references", str(out / "references.jsonl")]
    assert not main(["paper", "score", "--metric", "wikisql_lf", *words])
    assert "wikisql_lf 1.0000" in capsys.readouterr().out
    tables = ["-O", f"tables={data / 'dev.tables.jsonl'}"]
    assert main(["paper", "score", "--metric", "wikisql_ex", *words, *tables]) == 3
    assert "counts in other columns" in capsys.readouterr().err


def test_every_answer_is_read_with_the_header_of_its_row(tmp_path: Path) -> None:
    one, two = Table(id="1", header=("A | B",)), Table(id="2", header=("A", "B"))
    asked = [
        Question(context=encode(table, "B?"), table=table.id, header=table.header, query=Query(select=select))
        for table, select in ((one, 0), (two, 1))
    ]
    assert asked[0].context == asked[1].context, "a model cannot tell the two apart"
    written = write_queries(tmp_path, [answer(asked[0].context, 'SELECT "B" FROM table')], asked)
    assert written == Written(files=("hypotheses.jsonl", "references.jsonl"), rows=2, no_query=(1,))
    first, second = lines(tmp_path / "hypotheses.jsonl")
    assert first == {"error": "a query names a column that the table has not", "answer": 'SELECT "B" FROM table'}
    assert second == {"query": {"sel": 1, "agg": 0, "conds": []}}
    segments = read_segments(tmp_path / written.files[0], tmp_path / written.files[1])
    assert score("wikisql_lf", segments.hypotheses, segments.references).segments == (0, 1)


def test_texts_keep_to_their_line(tmp_path: Path) -> None:
    value = "a\nb\u2028c 'd' \"e\""
    asked = [Question(context=str(n), table="1", header=("A",), query=Query(select=0)) for n in range(2)]
    said = ['SELECT "A" FROM table WHERE "A" = \'' + value.replace("'", "''") + "'", f"none\n{value}"]
    write_queries(tmp_path, [answer(str(n), text) for n, text in enumerate(said)], asked)
    first, second = (tmp_path / "hypotheses.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    assert json.loads(first)["query"]["conds"] == [[0, 0, value]] and json.loads(second)["answer"] == said[1]


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return list(read_task("wikisql", shared, "valid", cache_dir=tmp_path_factory.mktemp("cache")))


@pytest.mark.shared
@pytest.mark.slow
def test_gold_sql_of_the_real_data_is_the_gold_query(real: list[dict[str, Any]], tmp_path: Path) -> None:
    """Two inputs of the validation rows are asked twice with different right queries: one answer cannot be both."""
    asked, gold = questions_of(real), dict[str, str]()
    for row in real:
        gold.setdefault(row["context"], row["completion"])
    assert (len(asked), len(gold)) == (8_421, 8_391)
    written = write_queries(tmp_path, [answer(context, text) for context, text in gold.items()], asked)
    assert (written.rows, written.no_query) == (8_421, ())
    ours = [line["query"] for line in lines(tmp_path / "hypotheses.jsonl")]
    right = [line["sql"] for line in lines(tmp_path / "references.jsonl")]
    assert right == [row["query"] for row in real]
    differ = [at for at, (one, other) in enumerate(zip(ours, right, strict=True)) if one != other]
    assert len(differ) == 2
    for at in differ:
        assert gold[asked[at].context] != real[at]["completion"]
    segments = read_segments(*(tmp_path / name for name in written.files))
    assert score("wikisql_lf", segments.hypotheses, segments.references).value == 8_419 / 8_421


@pytest.mark.shared
@pytest.mark.slow
def test_how_many_real_queries_repeat_four_tokens(shared: Path, real: list[dict[str, Any]]) -> None:
    """The figures of the page, for those who decode as the paper does its texts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "gpt2")
    repeated, lengths = 0, []
    for row in real:
        ids = tokenizer(row["completion"])["input_ids"]
        grams = list(zip(ids, ids[1:], ids[2:], ids[3:], strict=False))
        repeated += len(grams) != len(set(grams))
        lengths.append(len(ids) + 1)
    assert (repeated, sum(length > 64 for length in lengths), max(lengths)) == (219, 3, 94)
