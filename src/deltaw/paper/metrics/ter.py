"""TER: edits and shifts against words of the reference; lower is better.

Two forms are in use and differ: tercom's (DART) divides the edits of the corpus by its mean reference lengths,
GenerationEval (WebNLG) takes the best reference of each segment by itself and the mean over segments. The search for
shifts makes this by far the slowest metric: its cost grows with every reference and steeply with the words of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltaw.paper.metrics.base import References, Result, one_of, packages
from deltaw.paper.metrics.tokens import treebank_tokens

if TYPE_CHECKING:
    from sacrebleu.metrics import TER

__all__ = ["ter"]


def ter(
    hypotheses: Sequence[str],
    references: References,
    *,
    form: str = "tercom",
    tokenize: str = "none",
    case_sensitive: bool = False,
    empty_references: str = "dropped",
) -> Result:
    """Translation edit rate, 0 is best; 1 is as many edits as the reference has words.

    Args:
        hypotheses: the texts that are judged.
        references: one group for every hypothesis.
        form: ``tercom``: fewest edits over the references / mean words of the references, summed over the corpus.
            ``pyter``: lowest edits / words over the references, mean over segments.
        tokenize: ``none`` splits at blanks, ``tercom`` by tercom's normalization (its -N), ``treebank`` into word
            tokens (GenerationEval).
        case_sensitive: tell upper from lower case.
        empty_references: ``dropped``; or ``counted``: of length 0 in the form tercom, of TER 1 in the form pyter.

    Returns:
        The value and the rate of every segment.

    Source:
        Snover et al. 2006; sacrebleu's port of tercom; WebNLG/GenerationEval, eval.py.

    Example:
        >>> ter(["a b c d"], [["a b x d"]]).value
        0.25
    """
    from sacrebleu.metrics import TER

    one_of("ter", "form", form, ("tercom", "pyter"))
    one_of("ter", "tokenize", tokenize, ("none", "tercom", "treebank"))
    one_of("ter", "case_sensitive", case_sensitive, (True, False))
    counter = TER(normalized=tokenize == "tercom", case_sensitive=case_sensitive)
    if tokenize == "treebank":
        hypotheses = [" ".join(treebank_tokens(text)) for text in hypotheses]
        references = [[" ".join(treebank_tokens(text)) for text in group] for group in references]
    found = [_best(counter, form, text, group) for text, group in zip(hypotheses, references, strict=True)]
    edits, words = sum(edits for edits, _ in found), sum(words for _, words in found)
    segments = tuple(_rate(*one) for one in found)
    pooled = form == "tercom"
    rule = "edits / mean reference words over the corpus" if pooled else "mean of the lowest by segment"
    return Result(
        value=_rate(edits, words) if pooled else sum(segments) / len(segments),
        parts={"edits": edits, "words": words} if pooled else {},
        segments=segments,
        variant=f"TER, {form} form ({rule}), tokens {tokenize}, {'cased' if case_sensitive else 'lower case'}, "
        f"empty references {empty_references}, shifts as tercom finds them; {packages('sacrebleu')}",
    )


def _best(counter: TER, form: str, hypothesis: str, references: Sequence[str]) -> tuple[float, float]:
    """The edits of a segment and the words they are held against."""
    if form == "tercom":
        found = counter.sentence_score(hypothesis, list(references))
        return float(found.num_edits), float(found.ref_length)
    rates = []
    for reference in references:
        found = counter.sentence_score(hypothesis, [reference])
        rates.append((float(found.num_edits), float(found.ref_length)) if reference.strip() else (1.0, 1.0))
    return min(rates, key=lambda pair: _rate(*pair))


def _rate(edits: float, words: float) -> float:
    return edits / words if words else float(edits > 0)
