"""METEOR, CIDEr, ROUGE-L and the PTB-like tokens beside the programs that e2e-metrics runs.

``judges_golden.json`` holds 37 sentences, 14 texts that are only split, and small tables, all our own, with what the
programs said of them: METEOR 1.5 (``java -Xmx3G -jar meteor-1.5.jar - - -stdio -l en -norm -m STAGES -w WEIGHTS -d
TABLES -a TABLES/paraphrase-en.gz``, OpenJDK 17), the Stanford tokenizer 3.4.1 (``-preserveLines -lowerCase``) and the
Python scorers of CIDEr and ROUGE-L, all of pycocoevalcap 1.2, on 2026-11-29. ``python tests/paper/metrics/judges.py``
makes the file again from its own sentences.

Where pycocoevalcap and java are here, the programs are run once more, with their own tables and on more texts.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import judges
import pytest

from deltaw.paper.metrics import score
from deltaw.paper.metrics.ptb import ptb_tokens

FOUND = json.loads(judges.GOLDEN.read_text(encoding="utf-8"))
CASES = [(case["hypothesis"], case["references"]) for case in FOUND["cases"]]
needs_judges = pytest.mark.skipif(bool(judges.absent()), reason=f"the judges cannot be run: {judges.absent()}")


def agrees(cases: list[judges.Case], judged: tuple[list[float], float], name: str, **options: Any) -> None:
    segments, value = judged
    ours = score(name, [case[0] for case in cases], [case[1] for case in cases], **options)
    assert ours.segments == pytest.approx(segments, abs=1e-9)
    assert ours.value == pytest.approx(value, abs=1e-9)


def tables_of(stages: str, place: Path) -> dict[str, Path]:
    known = {"synonym": ("synonyms", place), "paraphrase": ("paraphrases", place / "paraphrase-en.gz")}
    return dict(known[stage] for stage in stages.split() if stage in known)


@pytest.mark.parametrize("stages", judges.STAGES)
def test_meteor_gives_what_its_program_gave(tmp_path: Path, stages: str) -> None:
    judges.write_tables(FOUND["tables"], tmp_path)
    agrees(CASES, FOUND["judged"][f"meteor {stages}"], "meteor", **tables_of(stages, tmp_path))


def test_every_stage_changes_a_score() -> None:
    values = [FOUND["judged"][f"meteor {stages}"][1] for stages in judges.STAGES]
    assert len(set(values)) == len(values) and max(values) == values[-1]


def test_meteor_of_tokens_gives_what_its_program_gave() -> None:
    agrees(CASES, FOUND["judged"]["meteor ptb"], "meteor", tokenize="ptb")


@pytest.mark.parametrize("name", ["cider", "rouge_l"])
def test_cider_and_rouge_l_give_what_the_scorers_gave(name: str) -> None:
    agrees(CASES, FOUND["judged"][name], name)


@pytest.mark.parametrize("text", FOUND["judged"]["tokens"])
def test_tokens_are_those_of_the_stanford_program(text: str) -> None:
    assert ptb_tokens(text) == FOUND["judged"]["tokens"][text]


@needs_judges
def test_the_judges_still_say_the_same() -> None:
    assert judges.judged(CASES, FOUND["tables"], judges.STAGES, FOUND["texts"]) == {
        name: tuple(one) if name != "tokens" else one for name, one in FOUND["judged"].items()
    }


@needs_judges
@pytest.mark.slow
@pytest.mark.shared
def test_e2e_texts_are_judged_alike(shared: Path) -> None:
    groups: dict[str, list[str]] = {}
    with gzip.open(shared / "e2e" / "test.txt.gz", "rt", encoding="utf-8") as file:
        for line in file:
            inputs, _, text = line.strip().partition("||")
            groups.setdefault(inputs.strip(), []).append(text.strip())
    cases = judges.scrambled(list(groups.values())[:150], seed=7)
    found = judges.judged(cases, None, judges.STAGES[:1])
    agrees(cases, found["meteor exact stem"], "meteor")
    agrees(cases, found["meteor ptb"], "meteor", tokenize="ptb")
    for name in ("cider", "rouge_l"):
        agrees(cases, found[name], name)
    assert {text: ptb_tokens(text) for text in found["tokens"]} == found["tokens"]


@needs_judges
@pytest.mark.slow
def test_the_released_tables_are_read_as_the_program_reads_them(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(judges.home() / "meteor" / "meteor-1.5.jar") as jar:
        for name in ("synsets", "exceptions"):
            (tmp_path / f"english.{name}").write_bytes(jar.read(f"synonym/english.{name}"))
    paraphrases = judges.home() / "meteor" / "data" / "paraphrase-en.gz"
    for stages in judges.STAGES[1::2]:
        options = {"synonyms": tmp_path} | ({"paraphrases": paraphrases} if "paraphrase" in stages else {})
        agrees(CASES, judges.meteor(CASES, stages), "meteor", **options)
