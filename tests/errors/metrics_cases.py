"""Texts, files and options that the metrics refuse, one case per kind; each callable gets an empty directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltaw.cli import _run
from deltaw.paper.metrics import score

TWO = [["a b c"], ["d e"]]
QUERY = json.dumps({"sel": 0, "agg": 0, "conds": []})
HEADED = json.dumps({"table_id": "1-1", "header": ["city", "no."], "sql": json.loads(QUERY)})


def line(*words: object, out: str | bytes = "a b\nc d\n", refs: str | bytes = "a b\nc d\n") -> Callable[[Path], None]:
    """A command line in a directory with the files out and refs."""

    def run(tmp: Path) -> None:
        for name, text in (("out", out), ("refs", refs)):
            (tmp / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        given = ["--hypotheses", "{tmp}/out", "--references", "{tmp}/refs", *words]
        _run(["paper", "score", *[str(word).replace("{tmp}", str(tmp)) for word in given]])

    return run


def scoring(name: str, hypotheses: list[str], references: list[list[str]], **options: Any) -> Callable[[Path], None]:
    def run(tmp: Path) -> None:
        placed = {
            key: value.replace("{tmp}", str(tmp)) if isinstance(value, str) else value for key, value in options.items()
        }
        score(name, hypotheses, references, **placed)

    return run


def with_file(name: str, content: bytes, then: Callable[[Path], None]) -> Callable[[Path], None]:
    def run(tmp: Path) -> None:
        (tmp / name).write_bytes(content)
        then(tmp)

    return run


CASES: dict[str, Callable[[Path], Any]] = {
    # The command line
    "metrics_none": line(),
    "metrics_unknown": line("--metric", "bleau"),
    "metrics_layout": line("--metric", "bleu", "--layout", "e2", refs="a\n"),
    "metrics_layout_files": line("--metric", "bleu", "--layout", "e2e", "--references", "{tmp}/refs"),
    "metrics_option_unknown": line("--metric", "bleu,nist", "-O", "lower=true"),
    "metrics_option_without_value": line("--metric", "bleu", "-O", "lowercase"),
    "metrics_option_value": line("--metric", "bleu", "-O", "lowercase=maybe"),
    "metrics_no_references": lambda tmp: _run(["paper", "score", "--metric", "bleu", "--hypotheses", "out"]),
    "metrics_segments_place": line("--metric", "ter", "--segments", "{tmp}/none/segments.tsv"),
    # Files
    "metrics_file_missing": line("--metric", "bleu", "--references", "{tmp}/gone"),
    "metrics_not_utf8": line("--metric", "bleu", refs=b"a b\ncaf\xe9\n"),
    "metrics_counts": line("--metric", "bleu", refs="a b\nc d\ne f\n"),
    "metrics_counts_groups": line("--metric", "bleu", "--layout", "e2e", refs="a b\na c\n\nc d\n\ne f\n"),
    "metrics_hypotheses_empty": line("--metric", "bleu", out=""),
    "metrics_hypothesis_empty": line("--metric", "bleu", out="a b\n\n"),
    "metrics_group_empty": line("--metric", "bleu", refs="a b\n\n"),
    "metrics_group_empty_e2e": line("--metric", "bleu", "--layout", "e2e", refs="a b\n\n\nc d\n"),
    # Texts
    "metrics_score_counts": scoring("bleu", ["a b c"], TWO),
    "metrics_score_nothing": scoring("bleu", [], []),
    "metrics_score_hypothesis_empty": scoring("bleu", ["a", "  "], TWO),
    "metrics_score_group_empty": scoring("bleu", ["a", "b"], [["a"], ["", " "]]),
    "metrics_score_option_unknown": scoring("ter", ["a", "b"], TWO, sigma=6),
    "metrics_score_option_value": scoring("cider", ["a", "b"], TWO, form="coca"),
    "metrics_beta": scoring("rouge_l", ["a", "b"], TWO, beta=-1),
    "metrics_cider_one": scoring("cider", ["a"], [["a"]]),
    "metrics_references_several": scoring("accuracy", ["1"], [["1", "0"]]),
    # Labels and numbers
    "metrics_f1_labels": scoring("f1", ["a", "b"], [["c"], ["a"]]),
    "metrics_number": scoring("pearson", ["1.5", "high"], [["1"], ["2"]]),
    "metrics_constant": scoring("spearman", ["1", "2"], [["3"], ["3"]]),
    "metrics_mnli_unsaid": scoring("mnli", ["0", "1"], [["0"], ["1"]]),
    "metrics_mnli_domains": scoring("mnli", ["0", "1"], [["0"], ["1"]], domains=["matched", "missmatched"]),
    # Tables and queries
    "metrics_synonyms_missing": scoring("meteor", ["a", "b"], TWO, synonyms="{tmp}/wordnet"),
    "metrics_synonyms_form": with_file(
        "syn", b"cheap\n1 2\nfood\nn07555863\n", scoring("meteor", ["a", "b"], TWO, synonyms="{tmp}/syn")
    ),
    "metrics_paraphrases_form": with_file(
        "par", b"0.5\nclose to\nnear\nand\n", scoring("meteor", ["a", "b"], TWO, paraphrases="{tmp}/par")
    ),
    "metrics_tables_unsaid": scoring("wikisql_ex", [QUERY], [[QUERY]]),
    "metrics_tables_form": with_file(
        "t", b'{"id": "1"}\n', scoring("wikisql_ex", [QUERY], [[QUERY]], tables="{tmp}/t")
    ),
    "metrics_table_absent": scoring(
        "wikisql_ex", [QUERY], [[QUERY]], tables=[{"id": "1-1", "types": ["text"], "rows": []}]
    ),
    "metrics_table_other_columns": scoring(
        "wikisql_ex", [QUERY], [[HEADED]], tables=[{"id": "1-1", "header": ["City"], "types": ["text"], "rows": []}]
    ),
    "metrics_reference_query": scoring("wikisql_lf", [QUERY], [["SELECT name"]]),
}
