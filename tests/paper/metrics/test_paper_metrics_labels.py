"""Accuracy, F1, Matthews, Pearson, Spearman, MNLI and WikiSQL by hand."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pytest

from deltaw.errors import ConfigError, DataError
from deltaw.paper.metrics import GLUE_METRICS, METRICS, score


def words(text: str) -> list[str]:
    return text.split()


def one(texts: str) -> list[list[str]]:
    return [[text] for text in texts.split()]


OURS, RIGHT = words("1 1 1 0 0 1 0 0"), one("1 1 0 0 1 1 0 0")
"""3 true positives, 1 false positive, 1 false negative, 3 true negatives."""


def test_labels_by_hand() -> None:
    accuracy = score("accuracy", OURS, RIGHT)
    assert accuracy.value == 6 / 8 and accuracy.segments == (1, 1, 0, 1, 0, 1, 1, 1)
    assert score("matthews", OURS, RIGHT).value == pytest.approx((3 * 3 - 1 * 1) / math.sqrt(4 * 4 * 4 * 4))
    f1 = score("f1", OURS, RIGHT)
    assert f1.value == pytest.approx(2 * 3 / (2 * 3 + 1 + 1)) and f1.parts == {"precision": 3 / 4, "recall": 3 / 4}
    assert "scikit-learn" in f1.variant


def test_f1_options() -> None:
    ours, right = words("a a b c"), one("a b b c")
    # a: 1 of 2 and 1 of 1; b: 1 of 1 and 1 of 2; c: right
    assert score("f1", ours, right, average="macro").value == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert score("f1", ours, right, average="micro").value == pytest.approx(3 / 4)
    yes = score("f1", words("y n n"), one("y y n"), positive="y").value
    no = score("f1", words("y n n"), one("y y n"), positive="n").value
    assert (yes, no) == (pytest.approx(2 / 3), pytest.approx(2 / 3)) and score(
        "f1", words("y n n n"), one("y y n n"), positive="n"
    ).value == pytest.approx(2 * 2 / (2 * 2 + 1))
    with pytest.raises(ConfigError, match="two labels"):
        score("f1", ours, right)


def test_correlations_by_hand() -> None:
    ours, right = words("1 2 3 5"), one("1 3 2 6")
    # means 11/4 and 3: products 35/4 ... sum (x - mean)(y - mean) = 10, squares 35/4 and 14
    xs, ys = [1, 2, 3, 5], [1, 3, 2, 6]
    dx, dy = [x - 11 / 4 for x in xs], [y - 3 for y in ys]
    hand = sum(a * b for a, b in zip(dx, dy, strict=True)) / math.sqrt(sum(a * a for a in dx) * sum(b * b for b in dy))
    assert hand == pytest.approx(10 / math.sqrt(35 / 4 * 14))
    assert score("pearson", ours, right).value == pytest.approx(hand)
    # ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * 2 / (4 * 15)
    assert score("spearman", ours, right).value == pytest.approx(1 - 12 / 60)
    # ties share ranks: 1.5 1.5 3 against 1 2 3
    assert score("spearman", words("1 1 2"), one("1 2 3")).value == pytest.approx(math.sqrt(3) / 2)


def test_one_label_on_a_side_has_no_matthews_correlation() -> None:
    found = score("matthews", words("1 1 1"), one("1 0 1"))
    assert found.value == 0 and "all hypotheses have one label" in found.notes[0]
    assert score("matthews", words("1 1"), one("1 1")).value == 0


def test_mnli_over_both_sets(tmp_path: Path) -> None:
    ours, right = words("0 1 2 0 1"), one("0 1 2 1 0")
    domains = ["matched"] * 3 + ["mismatched"] * 2
    found = score("mnli", ours, right, domains=domains)
    assert found.value == 3 / 5
    assert found.parts == {"matched": 1.0, "mismatched": 0.0, "mean": 0.5}
    file = tmp_path / "domains.txt"
    file.write_text("\n".join(domains) + "\n")
    assert score("mnli", ours, right, domains=file).value == 3 / 5
    for wrong, message in (
        (domains[:-1], "4 domains for 5 labels"),
        (["matched"] * 5, "no label that is mismatched"),
        ([*domains[:-1], "other"], "'other' on line 5"),
    ):
        with pytest.raises(DataError, match=message):
            score("mnli", ours, right, domains=wrong)


def test_every_glue_task_has_a_metric() -> None:
    assert set(GLUE_METRICS.values()) <= set(METRICS) and len(GLUE_METRICS) == 8
    assert (GLUE_METRICS["CoLA"], GLUE_METRICS["STS-B"], GLUE_METRICS["MNLI"]) == ("matthews", "pearson", "mnli")


TABLE = {
    "id": "1-100",
    "header": ["City", "People", "Country"],
    "types": ["text", "real", "text"],
    "rows": [["Rome", 2800000, "Italy"], ["Milan", "1,400", "Italy"], ["Oslo", 700, "Norway"], ["Bergen", 280.5, None]],
}


def query(sel: int, agg: int, *conds: list[object], **more: object) -> str:
    return json.dumps({"sel": sel, "agg": agg, "conds": list(conds), **more})


def right_query(sel: int, agg: int, *conds: list[object], table: str = "1-100") -> list[str]:
    return [json.dumps({"table_id": table, "question": "?", "sql": json.loads(query(sel, agg, *conds))})]


def test_logical_form() -> None:
    gold = right_query(0, 3, [2, 0, "Italy"], [1, 1, 500])
    cases = {
        query(0, 3, [2, 0, "Italy"], [1, 1, 500]): 1,
        query(0, 3, [1, 1, 500], [2, 0, "italy"]): 1,  # order and case of values are ignored
        query(0, 3, [1, 1, "500"], [2, 0, "Italy"]): 1,  # values are compared as text
        query(0, 3, [1, 2, 500], [2, 0, "Italy"]): 0,
        query(1, 3, [1, 1, 500], [2, 0, "Italy"]): 0,
        query(0, 0, [1, 1, 500], [2, 0, "Italy"]): 0,
        query(0, 3, [1, 1, 500]): 0,
        json.dumps({"query": json.loads(gold[0])["sql"]}): 1,
        "SELECT COUNT city": 0,
        '{"sel": 0, "agg": 9, "conds": []}': 0,
        '{"sel": 0, "agg": 3, "conds": [[0, 1]]}': 0,
    }
    found = score("wikisql_lf", list(cases), [gold] * len(cases))
    assert found.segments == tuple(cases.values()) and found.value == sum(cases.values()) / len(cases)
    assert found.notes == (f"3 of {len(cases)} hypotheses are no query objects and count as wrong",)
    (note,) = score("wikisql_lf", ["SELECT COUNT city"], [gold]).notes
    assert note.endswith("deltaw paper decode --layout wikisql makes query objects of SQL"), "nothing was a query"
    assert score("wikisql_lf", ['{"error": "no query"}'], [gold]).notes[0].endswith("count as wrong")
    ordered = score("wikisql_lf", list(cases), [gold] * len(cases), ordered=True)
    assert ordered.segments == (1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0)


def test_execution() -> None:
    cases = [
        (query(0, 0, [1, 1, 1000]), right_query(0, 0, [2, 0, "ITALY"]), 1),  # other query, same rows
        (query(1, 1), right_query(1, 1, [2, 0, "italy"]), 1),  # MAX over all is that of Italy
        (query(1, 2), right_query(1, 2, [2, 0, "italy"]), 0),
        (query(0, 0, [1, 0, "1,400"]), right_query(0, 0, [0, 0, "milan"]), 1),  # thousands separators
        (query(1, 4, [2, 0, "norway"]), right_query(1, 0, [0, 0, "oslo"]), 1),  # SUM of one row
        (query(1, 5), right_query(1, 5, [1, 1, 0]), 1),
        (query(9, 0), right_query(0, 0), 0),  # no such column
        (query(0, 0, [0, 3, "x"]), right_query(0, 0), 0),  # the placeholder operator
        (query(0, 3), right_query(1, 3), 1),
        # a range over one column: both bounds hold
        (query(0, 0, [1, 1, 300], [1, 2, 1000]), right_query(0, 0, [0, 0, "oslo"]), 1),
        ("nothing", right_query(0, 0), 0),
        (query(0, 0, [1, 0, "many"]), right_query(0, 0), 0),  # no number where one is needed
    ]
    ours, gold, expected = zip(*cases, strict=True)
    found = score("wikisql_ex", list(ours), list(gold), tables=[TABLE])
    assert found.segments == expected and "SQLite 3" in found.variant
    assert found.notes == (f"1 of {len(cases)} hypotheses are no query objects and count as wrong",)


def test_tables_from_a_file(tmp_path: Path) -> None:
    other = {"id": "2-5", "types": ["text"], "rows": [["x"]]}
    file = tmp_path / "dev.tables.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps(table) + "\n" for table in (TABLE, other)).encode()))
    gold = [right_query(0, 0, table="2-5"), right_query(0, 0, [0, 0, "rome"])]
    assert score("wikisql_ex", [query(0, 0), query(0, 0)], gold, tables=file).segments == (1, 0)
    with pytest.raises(DataError, match="cannot be run"):
        score("wikisql_ex", [query(0, 0)], [right_query(0, 0, table="9-9")], tables=file)
    headed = [json.dumps({**json.loads(right_query(0, 0)[0]), "header": header}) for header in (TABLE["header"], ["x"])]
    assert score("wikisql_ex", [query(0, 0)], [[headed[0]]], tables=file).value == 1
    with pytest.raises(DataError, match="counts in other columns"):
        score("wikisql_ex", [query(0, 0)], [[headed[1]]], tables=file)


def test_a_value_is_never_part_of_the_statement() -> None:
    sneaky = query(0, 0, [0, 0, "x' OR 1=1; DROP TABLE table_0; --"])
    gold = [right_query(0, 0, [0, 0, "nowhere"]), right_query(0, 0)]
    assert score("wikisql_ex", [sneaky, query(0, 0)], gold, tables=[TABLE]).segments == (1, 1)


def test_labels_take_one_reference_each() -> None:
    with pytest.raises(DataError, match="exactly one reference"):
        score("accuracy", ["1"], [["1", "0"]])
