"""METEOR: its formula by hand, its alignment against every alignment there is, its tables, its name."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import naive_metrics as naive
import pytest

from deltaw.paper.metrics import score
from deltaw.paper.metrics.meteor_align import align
from deltaw.paper.metrics.meteor_words import FUNCTION_WORDS, Paraphrases, Synonyms, normalized


def words(text: str) -> list[str]:
    return text.split()


def formula(precision: float, recall: float, chunks: float, matches: float) -> float:
    return (1 - 0.6 * (chunks / matches) ** 0.2) / (0.15 / precision + 0.85 / recall)


def test_the_formula_by_hand() -> None:
    # cat, sat, mat are content words (3/4 each), the and on function words (1/4 each)
    assert {"the", "on"} <= FUNCTION_WORDS and not {"cat", "sat", "mat", "dog"} & FUNCTION_WORDS
    found = score("meteor", ["the cat sat on the mat"], [["the dog sat on the mat"]])
    # matched: the | sat on the mat: 2 chunks of 5 words; 2 content and 3 function words of 3 and 3 on both sides
    ratio = (2 * 0.75 + 3 * 0.25) / (3 * 0.75 + 3 * 0.25)
    assert ratio == 0.75
    assert found.value == pytest.approx(formula(0.75, 0.75, 2, 5)) and found.segments == pytest.approx((found.value,))
    assert found.parts["penalty"] == pytest.approx(0.6 * (2 / 5) ** 0.2)


def test_stems_weigh_six_tenths() -> None:
    # every word is matched in one chunk: there is no penalty
    assert score("meteor", ["dogs bark"], [["dog barked"]]).value == pytest.approx(0.6)
    assert score("meteor", ["dogs bark"], [["dog barked loudly"]]).value == pytest.approx(formula(0.6, 0.4, 1, 2))
    assert score("meteor", ["dogs"], [["cats"]]).value == 0


def test_a_corpus_score_is_made_of_sums_and_of_the_best_references() -> None:
    found = score("meteor", ["dog ran", "cat"], [["cow", "dog sat"], ["cat"]])
    # sums: 2 of 3 content words on each side; "cat" is matched whole and adds no chunk: 1 chunk of 2 words
    assert found.value == pytest.approx(formula(2 / 3, 2 / 3, 1, 2))
    assert found.segments == pytest.approx((formula(1 / 2, 1 / 2, 1, 1), 1.0))


def test_the_alignment_is_the_best_there_is() -> None:
    random.seed(3)
    for _ in range(60):
        hypothesis = [random.choice("abcd") for _ in range(random.randint(1, 6))]
        reference = [random.choice("abcd") for _ in range(random.randint(1, 5))]
        found = align(hypothesis, reference)
        assert (len(found.matches), found.chunks) == naive.best_alignment(hypothesis, reference)
        assert all(hypothesis[match.other] == reference[match.start] for match in found.matches)


def test_chunks_need_order_on_both_sides() -> None:
    assert align(words("a b c d"), words("a b c d")).chunks == 1
    assert align(words("c d a b"), words("a b c d")).chunks == 2
    assert align(words("a x b"), words("a b")).chunks == 2
    assert align(words("d c b a"), words("a b c d")).chunks == 4


def test_normalization_joins_what_systems_write_differently() -> None:
    assert normalized("family-friendly, at 3.5 stars") == words("family friendly , at 3.5 stars")
    assert normalized("It's “cheap” – isn’t it") == ["it", "'s", '"', "cheap", '"', "-", "isn", "'t", "it"]
    assert normalized("No. 5 of J. Smith, the end.") == ["no.", "5", "of", "j.", "smith", ",", "the", "end", "."]
    assert normalized("No. The end") == ["no", ".", "the", "end"]
    # Jr is none of METEOR's abbreviations, and in lower case none is
    assert normalized("Adv. Low Jr. of mr. X, Sept. 5") == words("adv. low jr. of mr . x , sept . 5")
    # the second of two commas is not seen; a blank outside ASCII is in the way of what follows it
    assert normalized("one,,two") == ["one", ",", ",two"]
    assert normalized("a. b") == ["a.", "b"] and normalized("a.\u00a0b") == ["a", ".", "b"]


def table(place: Path) -> Path:
    (place / "english.synsets").write_text("cheap\n11 12\ninexpensive\n12\nrun\n20\nstart\n21 20\nhot dog\n30\n")
    (place / "english.exceptions").write_text("run\nran\n")
    return place


def test_synonyms_come_from_a_table(tmp_path: Path) -> None:
    plain = score("meteor", ["cheap food"], [["inexpensive food"]])
    found = score("meteor", ["cheap food"], [["inexpensive food"]], synonyms=table(tmp_path))
    assert plain.value == pytest.approx(formula(1 / 2, 1 / 2, 1, 1))
    assert found.value == pytest.approx(1.8 / 2)
    assert "exact+stem+synonym, table english.synsets" in found.variant and "synonym" not in plain.variant
    assert any("no synonym stage" in note for note in plain.notes)
    assert not any("no synonym stage" in note for note in found.notes)
    # irregular forms and endings lead to base forms: ran -> run, started -> start
    known = Synonyms.read(tmp_path / "english.synsets")
    assert known.of("ran") == {"20"} and known.of("started") == {"20", "21"} and known.of("dogs") == set()
    assert score("meteor", ["ran"], [["started"]], synonyms=tmp_path).value == pytest.approx(0.8)


@pytest.mark.parametrize("packed", [True, False])
def test_paraphrases_come_from_a_table(tmp_path: Path, packed: bool) -> None:
    text = b"0.5\nclose to\nnear\n0.1\nriverside\nby the river\n"
    file = tmp_path / "paraphrase-en.gz"
    file.write_bytes(gzip.compress(text) if packed else text)
    assert list(Paraphrases.read(file).starting(["close", "to"], 0)) == [(2, ("near",))]
    assert list(Paraphrases.read(file, words("near to close")).phrases) == [("close", "to")]
    assert Paraphrases.read(file, words("close to")).longest == 0
    for pair in (("pub near", "pub close to"), ("pub close to", "pub near")):
        found = score("meteor", [pair[0]], [[pair[1]]], paraphrases=file)
        # pub, near and close are content words (0.75), to is a function word (0.25); all is one chunk
        near, close = 0.75 * 1.6 / 1.5, (0.75 + 0.6 * (0.75 + 0.25)) / (0.75 * 2 + 0.25)
        precision, recall = (near, close) if pair[0] == "pub near" else (close, near)
        assert found.value == pytest.approx(1 / (0.15 / precision + 0.85 / recall))
        assert "exact+stem+paraphrase, table paraphrase-en.gz" in found.variant
    assert score("meteor", ["pub near"], [["pub close to"]]).value < found.value


def test_tokens_of_the_scripts_differ() -> None:
    texts, groups = ["Cheap, (good) food."], [["cheap good food"]]
    values = {name: score("meteor", texts, groups, tokenize=name) for name in ("norm", "ptb", "treebank")}
    # the COCO scripts remove punctuation but, in lower case, never find brackets
    assert values["ptb"].value > values["norm"].value
    assert "tokens ptb then norm" in values["ptb"].variant and "tokens norm;" in values["norm"].variant
    # treebank tokens keep "gonna" apart, METEOR's own rules do not
    split = {
        name: score("meteor", ["I am gonna go"], [["gon na"]], tokenize=name).value for name in ("norm", "treebank")
    }
    assert split["norm"] == 0 < split["treebank"]
