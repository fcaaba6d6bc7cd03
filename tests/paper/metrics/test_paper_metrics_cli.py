"""``deltaw paper score``: layouts, options, what it prints and writes, what it refuses."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import naive_metrics as naive
import pytest

from deltaw.cli import main
from deltaw.errors import DataError
from deltaw.paper.metrics import METRICS, read_lines, read_segments, score

Captured = pytest.CaptureFixture[str]
Run = Callable[..., dict]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The ten instances in both layouts."""
    (tmp_path / "out.txt").write_text("\n".join(naive.HYPOTHESES) + "\n")
    (tmp_path / "e2e.txt").write_text("\n\n".join("\n".join(group) for group in naive.REFERENCES) + "\n")
    for i in range(3):
        lines = [group[i] if i < len(group) else "" for group in naive.REFERENCES]
        (tmp_path / f"reference{i}").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def run(files: Path, capsys: Captured) -> Run:
    """Run the command in JSON on the ten instances."""

    def call(*words: str, layout: str = "e2e") -> dict:
        names = ["e2e.txt"] if layout == "e2e" else [f"reference{i}" for i in range(3)]
        given = [part for name in names for part in ("--references", str(files / name))]
        line = ["paper", "score", "--hypotheses", str(files / "out.txt"), *given, "--layout", layout, "--json", *words]
        assert main(line) == 0
        found: dict = json.loads(capsys.readouterr().out)
        return found

    return call


def test_the_group_e2e(run: Run) -> None:
    found = run("--metric", "e2e")
    assert [one["metric"] for one in found["scores"]] == ["bleu", "nist", "meteor", "rouge_l", "cider"]
    for one in found["scores"]:
        options = {"tokenize": "ptb"} if one["metric"] == "meteor" else {}
        again = score(one["metric"], naive.HYPOTHESES, naive.REFERENCES, **options)
        assert one["value"] == again.value and one["variant"] == again.variant and one["num_segments"] == 10


def test_both_layouts_hold_the_same(run: Run) -> None:
    of = {layout: run("--metric", "bleu,rougeL,ter", layout=layout) for layout in ("e2e", "lines")}
    assert of["e2e"]["scores"] == of["lines"]["scores"]
    assert (of["e2e"]["empty_references"], of["lines"]["empty_references"]) == (0, 10)


def test_options_reach_their_metrics(run: Run) -> None:
    plain = {one["metric"]: one["value"] for one in run("--metric", "bleu,multi_bleu,rouge_l")["scores"]}
    words = ["-O", "lowercase=false", "-O", "multi_bleu.tokenize=13a", "-O", "rouge_l.beta=3"]
    found = {one["metric"]: one for one in run("--metric", "bleu,multi_bleu,rouge_l", *words)["scores"]}
    assert found["bleu"]["value"] < plain["bleu"] and "cased" in found["bleu"]["variant"]
    assert "tokens 13a" in found["multi_bleu"]["variant"] and "beta 3" in found["rouge_l"]["variant"]
    assert found["rouge_l"]["value"] != plain["rouge_l"]
    # a group's own options can be changed
    meteor = next(
        one for one in run("--metric", "e2e", "-O", "meteor.tokenize=norm")["scores"] if one["metric"] == "meteor"
    )
    assert "tokens norm;" in meteor["variant"]


def test_the_rule_for_empty_references(run: Run) -> None:
    counted, dropped = (
        run("--metric", "multi_bleu", "-O", f"empty_references={rule}", layout="lines")["scores"][0]
        for rule in ("counted", "dropped")
    )
    assert counted["parts"]["reference_length"] < dropped["parts"]["reference_length"]
    assert run("--metric", "multi_bleu", layout="lines")["scores"][0] == counted


def test_segments_go_to_a_table(files: Path, run: Run, capsys: Captured) -> None:
    table = files / "segments.tsv"
    run("--metric", "bleu,rouge_l,cider", "--segments", str(table))
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    assert rows[0] == ["segment", "rouge_l", "cider"] and len(rows) == 11
    expected = score("cider", naive.HYPOTHESES, naive.REFERENCES).segments
    assert [float(row[2]) for row in rows[1:]] == pytest.approx(expected, rel=1e-5)


def test_what_people_read(files: Path, capsys: Captured) -> None:
    line = ["paper", "score", "--metric", "ter", "--hypotheses", str(files / "out.txt")]
    line += [part for i in range(3) for part in ("--references", str(files / f"reference{i}"))]
    assert main(line) == 0
    text = capsys.readouterr().out
    assert text.startswith("ter 0.") and "TER, tercom form" in text and "10 empty lines in the reference files" in text
    assert main([*line, "--quiet"]) == 0 and capsys.readouterr().out == ""


def test_the_list_names_every_metric_and_option(capsys: Captured) -> None:
    assert main(["paper", "score", "--list"]) == 0
    text = capsys.readouterr().out
    for name, metric in METRICS.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
        assert metric.line in line and all(f"{option}=" in line for option in metric.options)
    assert main(["paper", "score", "--list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["metrics"]) == set(METRICS)


def test_empty_hypotheses(files: Path, run: Run, capsys: Captured) -> None:
    (files / "out.txt").write_text("\n".join(["", *naive.HYPOTHESES[1:]]) + "\n")
    words = ["paper", "score", "--metric", "bleu", "--hypotheses", str(files / "out.txt")]
    words += ["--references", str(files / "e2e.txt"), "--layout", "e2e"]
    assert main(words) == 3
    assert f"{files / 'out.txt'}, line 1" in capsys.readouterr().err
    assert run("--metric", "bleu", "--empty-hypotheses", "counted")["scores"][0]["value"] > 0
    assert main([*words, "--empty-hypotheses", "skipped"]) == 2


def test_labels_from_files(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "out").write_text("1\n0\n1\n")
    (tmp_path / "gold").write_text("1\n0\n0\n")
    (tmp_path / "domains").write_text("matched\nmatched\nmismatched\n")
    line = ["paper", "score", "--hypotheses", str(tmp_path / "out"), "--references", str(tmp_path / "gold"), "--json"]
    assert main([*line, "--metric", "accuracy,mnli,f1", "-O", f"mnli.domains={tmp_path / 'domains'}"]) == 0
    found = {one["metric"]: one for one in json.loads(capsys.readouterr().out)["scores"]}
    assert found["accuracy"]["value"] == pytest.approx(2 / 3) and found["mnli"]["parts"]["matched"] == 1
    assert found["f1"]["value"] == pytest.approx(2 / 3)


def test_files_are_read_as_they_lie(tmp_path: Path) -> None:
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress("\ufefffirst\u2028still first\r\n  second  \n\n".encode()))
    assert read_lines(file) == ["first\u2028still first", "second", ""]
    plain = tmp_path / "b.txt"
    plain.write_text("no newline at the end")
    assert read_lines(plain) == ["no newline at the end"]
    plain.write_text("")
    assert read_lines(plain) == []


def test_a_file_of_groups_without_empty_lines_has_one_reference_a_line(tmp_path: Path) -> None:
    out, refs = tmp_path / "out", tmp_path / "refs"
    out.write_text("a\nb\n")
    refs.write_text("c\nd\n")
    assert read_segments(out, refs, layout="e2e").references == [["c"], ["d"]]
    refs.write_text("c\nd\n\n\n")  # empty lines at the end are no group
    assert read_segments(out, refs, layout="e2e").references == [["c"], ["d"]]
    out.write_text("a\n")
    assert read_segments(out, refs, layout="e2e").references == [["c", "d"]]


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, files: Path, capsys: Captured) -> None:
    import sys

    for module, name in (("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score")):
        with monkeypatch.context() as patch:
            for loaded in [one for one in sys.modules if one.partition(".")[0] == module]:
                patch.delitem(sys.modules, loaded)
            patch.setitem(sys.modules, module, None)
            metric = "ter" if module == "sacrebleu" else "rouge1"
            words = ["--hypotheses", str(files / "out.txt"), "--references", str(files / "e2e.txt"), "--layout", "e2e"]
            assert main(["paper", "score", "--metric", metric, *words]) == 1
        text = capsys.readouterr().err
        assert f"expected: {name}, part of the extra 'paper'" in text and "deltaw[paper]" in text


def test_texts_given_as_one_text() -> None:
    with pytest.raises(DataError, match="lists of texts"):
        score("bleu", ["a"], ["a"])  # type: ignore[list-item]
