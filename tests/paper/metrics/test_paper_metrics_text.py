"""BLEU, NIST, ROUGE, CIDEr and TER against hand computations, definitions in numpy, and known answers."""

from __future__ import annotations

import gzip
import math
from fractions import Fraction
from pathlib import Path

import naive_metrics as naive
import numpy as np
import pytest

from deltaw.paper.metrics import E2E_METRICS, METRICS, WEBNLG_METRICS, score

TOKENS = [text.lower().split() for text in naive.HYPOTHESES]
GROUPS = [[text.lower().split() for text in group] for group in naive.REFERENCES]


def value(name: str, hypotheses: list[str], references: list[list[str]], **options: object) -> float:
    return score(name, hypotheses, references, **options).value


@pytest.mark.shared
@pytest.mark.slow
def test_first_human_reference_of_e2e_against_the_rest(shared: Path) -> None:
    """Known answer of pymteval: BLEU 0.6118, NIST 8.9290 over the 616 inputs with two references or more."""
    groups: dict[str, list[str]] = {}
    for line in gzip.decompress((shared / "e2e" / "test.txt.gz").read_bytes()).decode("utf-8").splitlines():
        record, text = line.split("||", 1)
        groups.setdefault(record, []).append(text.strip())
    several = [group for group in groups.values() if len(group) > 1]
    assert (len(groups), len(several)) == (630, 616)
    first, rest = [group[0] for group in several], [group[1:] for group in several]
    assert value("bleu", first, rest) == pytest.approx(0.6118, abs=5e-5)
    assert value("nist", first, rest) == pytest.approx(8.9290, abs=5e-5)


def test_ten_instances_against_the_definitions() -> None:
    bleu, nist = score("bleu", naive.HYPOTHESES, naive.REFERENCES), score("nist", naive.HYPOTHESES, naive.REFERENCES)
    assert bleu.value == pytest.approx(naive.bleu(TOKENS, GROUPS), rel=1e-12)
    assert nist.value == pytest.approx(naive.nist(TOKENS, GROUPS), rel=1e-12)
    assert (round(bleu.value, 4), round(nist.value, 4)) == (0.5232, 6.1396)
    assert bleu.num_segments == nist.num_segments == 10 and "sacrebleu 2." in bleu.variant


def test_bleu_by_hand() -> None:
    # a b c d e against a b c d x: 4/5, 3/4, 2/3, 1/2, lengths equal
    product = Fraction(4, 5) * Fraction(3, 4) * Fraction(2, 3) * Fraction(1, 2)
    assert product == Fraction(1, 5)
    assert value("bleu", ["a b c d e"], [["a b c d x"]]) == pytest.approx(float(product) ** 0.25)
    # 4 words against 6: every precision is 1, the penalty exp(1 - 6/4)
    assert value("bleu", ["a b c d"], [["a b c d e f"]]) == pytest.approx(math.exp(-0.5))
    # clipping: "a a a a" against "a a b": 2/4, 1/3, then nothing, held at 1e-15 / 2 and 1e-15 / 1
    parts = score("bleu", ["a a a a"], [["a a b"]]).parts
    assert [parts[f"precision_{n}"] for n in (1, 2, 3, 4)] == pytest.approx([1 / 2, 1 / 3, 5e-16, 1e-15], rel=1e-12)


def test_segments_shorter_than_n() -> None:
    # Segments of 6 and 1 words have 7, 5, 4, 3 n-grams of the orders 1 to 4. pymteval counts 7, 5+0, 4-1, 3-2.
    texts, groups = ["a b c d e f", "z"], [["a b c d e f"], ["z"]]
    found, theirs = score("bleu", texts, groups), score("bleu", texts, groups, totals="pymteval")
    assert found.value == 1 and [found.parts[f"precision_{n}"] for n in (1, 2, 3, 4)] == [1] * 4
    assert [theirs.parts[f"precision_{n}"] for n in (1, 2, 3, 4)] == pytest.approx([1, 1, 4 / 3, 3])
    assert theirs.value == pytest.approx(4**0.25)
    assert "1 of 2 hypotheses have fewer than 3 tokens: pymteval" in found.notes[0] and "raises" in theirs.notes[0]
    assert not score("bleu", ["a b c"], [["a b c d"]]).notes
    # 7 words: a 3 times, the others once; bigrams: ab, ac once after a 3 times, ba, cd, de once after once
    texts, groups = ["a b a c d e", "a"], [["a b a c d e"], ["a"]]
    nist, theirs = score("nist", texts, groups), score("nist", texts, groups, totals="pymteval")
    assert nist.parts["information_1"] == pytest.approx((3 * math.log2(7 / 3) + 4 * math.log2(7)) / 7)
    assert nist.parts["information_2"] == pytest.approx(2 * math.log2(3) / 5)
    # trigrams: aba, bac, acd, cde all follow from their first two words; so do the longer ones
    assert nist.parts["information_3"] == nist.parts["information_5"] == 0
    assert theirs.parts["information_2"] == nist.parts["information_2"] and theirs.notes and nist.notes
    # where trigrams carry information: ab before c and before d, in segments of 5 and 1 words: 3 trigrams, or 3 - 1
    texts, groups = ["x a b c y", "x"], [["x a b c y a b d"], ["x"]]
    values = [score("nist", texts, groups, totals=rule).parts["information_3"] for rule in ("ngrams", "pymteval")]
    assert values == pytest.approx([1 / 3, 1 / 2])


def test_nist_length_factor() -> None:
    # 2 words where the references have 3 on average: the factor is 1/2 by its definition
    found = score("nist", ["a b"], [["a b", "a b c d"]])
    assert found.parts["length_factor"] == pytest.approx(0.5)
    # 6 words: a twice, b twice, c, d
    assert found.value == pytest.approx(0.5 * (2 * math.log2(3)) / 2)
    assert score("nist", ["a b c"], [["a b"]]).parts["length_factor"] == 1


def test_reference_length_rules() -> None:
    # 4 words between references of 3 and 5: the closest is 3 (the shorter of two as close); with 5 and 2 it is 5
    options = {"hypotheses": ["a b c d"], "references": [["a b c d e", "a b c"]]}
    assert score("bleu", **options).parts["reference_length"] == 3
    wider = {"hypotheses": ["a b c d"], "references": [["a b c d e", "a b"]]}
    assert score("bleu", **wider).parts["reference_length"] == 5
    assert score("bleu", **wider, reference_length="shortest").parts["reference_length"] == 2
    assert value("bleu", **wider, reference_length="shortest") > value("bleu", **wider)


def test_multi_bleu_and_its_empty_references() -> None:
    # "a b c d" (4 words) against 9 words and an empty line: |4 - 0| < |4 - 9|, so the length counted is 0
    texts, groups = ["a b c d"], [["a b c d e f g h i", ""]]
    counted, dropped = (
        score("multi_bleu", texts, groups),
        score("multi_bleu", texts, groups, empty_references="dropped"),
    )
    assert counted.value == 100 and counted.parts["reference_length"] == 0
    assert dropped.value == pytest.approx(100 * math.exp(1 - 9 / 4)) and dropped.parts["reference_length"] == 9
    assert "counted" in counted.variant and "dropped" in dropped.variant
    # in the other metrics that know lengths the rule can be chosen too
    for name in ("bleu", "nist", "ter"):
        assert value(name, texts, groups) != value(name, texts, groups, empty_references="counted")
    two = (["a b c d", "x y z"], [["a b c d e", ""], ["x z y"]])
    assert value("cider", *two) > value("cider", *two, empty_references="counted")
    assert value("ter", ["x y"], [["a b c", ""]], form="pyter") == 1
    assert value("ter", ["x y z u v w"], [["a b c", ""]], form="pyter") == 2
    assert value("ter", ["x y z u v w"], [["a b c", ""]], form="pyter", empty_references="counted") == 1


def test_multi_bleu_by_hand() -> None:
    product = Fraction(4, 5) * Fraction(3, 4) * Fraction(2, 3) * Fraction(1, 2)
    assert value("multi_bleu", ["a b c d e"], [["a b c d x"]]) == pytest.approx(100 * float(product) ** 0.25)
    assert value("multi_bleu", ["a b c"], [["a b c"]]) == 0  # no 4-gram: the script prints 0
    assert value("multi_bleu", ["A b c d"], [["a b c d"]], lowercase=True) == 100
    assert value("multi_bleu", ["A b c d"], [["a b c d"]]) == 0
    # multi-bleu-detok.perl splits the final period off, multi-bleu.perl does not
    assert value("multi_bleu", ["a b c d."], [["a b c d ."]], tokenize="13a") == 100
    assert value("multi_bleu", ["a b c d."], [["a b c d ."]]) == 0


def test_case_of_bleu_and_nist() -> None:
    for name in ("bleu", "nist"):
        assert value(name, ["A b c d e"], [["a b c d e"]]) > value(
            name, ["A b c d e"], [["a b c d e"]], lowercase=False
        )


def test_rouge_by_hand() -> None:
    texts, groups = ["the cat sat on mats"], [["the cats sat down", "a mat"]]
    # rouge-score: stems of words over three letters: the cat sat on mat / the cat sat down (cats and mats are stemmed)
    one, two, longest = (score(name, texts, groups) for name in ("rouge1", "rouge2", "rougeL"))
    assert one.value == pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))
    assert two.value == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert longest.value == pytest.approx(one.value) and longest.parts["recall"] == pytest.approx(3 / 4)
    # without stems cat and cats differ: 2 of 5 and 2 of 4
    assert value("rouge1", texts, groups, stemmer=False) == pytest.approx(2 * (2 / 5) * (2 / 4) / (2 / 5 + 2 / 4))
    assert one.segments == (one.value,) and "rouge-score 0.1" in one.variant


def test_rouge_l_of_coco() -> None:
    found = score("rouge_l", naive.HYPOTHESES, naive.REFERENCES)
    from deltaw.paper.metrics.ptb import ptb_tokens

    expected = [
        naive.rouge_l(ptb_tokens(text), [ptb_tokens(one) for one in group], 1.2)
        for text, group in zip(naive.HYPOTHESES, naive.REFERENCES, strict=True)
    ]
    assert found.segments == pytest.approx(expected, rel=1e-12) and found.value == pytest.approx(np.mean(expected))
    # b = 6/5: (1 + 36/25) P R / (R + 36/25 P) with P = 4/4, R = 4/5
    hand = (1 + Fraction(36, 25)) * 1 * Fraction(4, 5) / (Fraction(4, 5) + Fraction(36, 25))
    assert value("rouge_l", ["the food is cheap"], [["the food is very cheap"]]) == pytest.approx(float(hand))
    assert value("rouge_l", ["the food is cheap"], [["the food is very cheap"]], beta=1.0) == pytest.approx(8 / 9)
    assert value("rouge_l", ["x"], [["y"]]) == 0


@pytest.mark.parametrize("form", ["coco", "plain"])
def test_cider_against_dense_vectors(form: str) -> None:
    from deltaw.paper.metrics.ptb import ptb_tokens

    found = score("cider", naive.HYPOTHESES, naive.REFERENCES, form=form)
    texts = [ptb_tokens(text) for text in naive.HYPOTHESES]
    groups = [[ptb_tokens(one) for one in group] for group in naive.REFERENCES]
    expected = naive.cider(texts, groups, clip=form == "coco")
    assert found.segments == pytest.approx(expected, rel=1e-12) and found.value == pytest.approx(expected.mean())
    assert ("sigma 6" in found.variant) == (form == "coco") and "PTB-like" in found.variant


def test_cider_by_hand() -> None:
    # Two documents without a word in common: every n-gram weighs log 2. "a b" against "a b c d": of words the cosine
    # is 2 / (sqrt 2 * sqrt 4), of pairs 1 / sqrt 3, of longer ones 0; lengths in pairs 1 and 3, so exp(-4/72).
    found = score("cider", ["a b", "x"], [["a b c d"], ["x"]])
    hand = 10 / 4 * math.exp(-4 / 72) * (2 / math.sqrt(8) + 1 / math.sqrt(3))
    assert found.segments == pytest.approx((hand, 10 / 4))
    plain = score("cider", ["a b", "x"], [["a b c d"], ["x"]], form="plain")
    assert plain.segments == pytest.approx((hand * math.exp(4 / 72), 10 / 4))


def test_ter_by_hand() -> None:
    reference = "SAUDI ARABIA denied THIS WEEK information published in the AMERICAN new york times"
    hypothesis = "THIS WEEK THE SAUDIS denied information published in the new york times"
    # Snover et al. 2006: one shift (THIS WEEK), two substitutions, one insertion, over 13 words
    assert value("ter", [hypothesis], [[reference]], case_sensitive=True) == pytest.approx(4 / 13)
    # two references of 4 and 2 words, best 1 edit: tercom divides by their mean, pyter by each one's own
    texts, groups = ["a b c d"], [["a b x d", "a b"]]
    assert value("ter", texts, groups) == pytest.approx(1 / 3)
    assert value("ter", texts, groups, form="pyter") == pytest.approx(1 / 4)
    # two segments: (1 + 1) / (4 + 1) over the corpus, (1/4 + 1/1) / 2 as a mean
    texts, groups = ["a b c d", "y"], [["a b x d"], ["z"]]
    assert value("ter", texts, groups) == pytest.approx(2 / 5)
    assert value("ter", texts, groups, form="pyter") == pytest.approx(5 / 8)
    assert score("ter", texts, groups).segments == pytest.approx((1 / 4, 1))


def test_ter_tokens_and_case() -> None:
    assert value("ter", ["It is cheap."], [["it is cheap ."]]) == pytest.approx(1 / 2)
    assert value("ter", ["It is cheap."], [["it is cheap ."]], tokenize="tercom") == 0
    assert value("ter", ["It is cheap."], [["it is cheap ."]], tokenize="treebank") == 0
    assert value("ter", ["It is"], [["it is"]], case_sensitive=True) == pytest.approx(1 / 2)


def test_empty_hypotheses_are_counted_where_that_is_asked_for() -> None:
    for name, metric in METRICS.items():
        if metric.single:
            continue
        found = score(name, ["a b c d e", ""], [["a b c d e"], ["x y z"]], empty_hypotheses="counted")
        whole = score(name, ["a b c d e", "x y z"], [["a b c d e"], ["x y z"]])
        worse = found.value > whole.value if name == "ter" else found.value < whole.value
        assert worse and math.isfinite(found.value), name
        if found.segments:
            assert found.segments[1] == (1 if name == "ter" else 0), name


def test_groups_of_the_tables() -> None:
    for group in (E2E_METRICS, WEBNLG_METRICS):
        for name, options in group.items():
            assert score(name, naive.HYPOTHESES, naive.REFERENCES, **options).value > 0
    assert list(E2E_METRICS) == ["bleu", "nist", "meteor", "rouge_l", "cider"]
    assert list(WEBNLG_METRICS) == ["multi_bleu", "meteor", "ter"]


def test_a_score_prints_what_it_is() -> None:
    text = str(score("meteor", ["the food is cheap"], [["the food is cheap"]]))
    assert text.splitlines()[0] == "meteor 1.0000  (1 segment)"
    assert "stages exact+stem," in text and "note: no synonym stage" in text
