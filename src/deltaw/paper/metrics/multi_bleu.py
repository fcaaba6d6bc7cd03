"""BLEU as multi-bleu.perl and multi-bleu-detok.perl report it: no smoothing, 0 to 100."""

from __future__ import annotations

from collections.abc import Sequence

from deltaw.paper.metrics.base import References, Result, one_of, packages, transposed

__all__ = ["multi_bleu"]


def multi_bleu(
    hypotheses: Sequence[str],
    references: References,
    *,
    tokenize: str = "none",
    lowercase: bool = False,
    empty_references: str = "counted",
) -> Result:
    """BLEU-4 over a corpus, between 0 and 100; 0 where one order has no match at all.

    The Perl scripts count an empty line of a reference file as a reference of length 0, which may be the closest one
    and shortens the reference length: about 1 BLEU on DART, where references are padded with empty lines.

    Args:
        hypotheses: the texts that are judged.
        references: one group for every hypothesis.
        tokenize: ``none`` splits at blanks (multi-bleu.perl), ``13a`` by mteval's rules (multi-bleu-detok.perl).
        lowercase: fold the case (the scripts' -lc).
        empty_references: ``counted`` as references of length 0, as the scripts do, or ``dropped``.

    Returns:
        The value with its precisions, brevity penalty and lengths.

    Source:
        Papineni et al. 2002; moses-smt, scripts/generic/multi-bleu.perl.

    Example:
        >>> multi_bleu(["a b c d"], [["a b c d", ""]]).value
        100.0
    """
    from sacrebleu.metrics import BLEU

    one_of("multi_bleu", "tokenize", tokenize, ("none", "13a"))
    one_of("multi_bleu", "lowercase", lowercase, (True, False))
    counter = BLEU(lowercase=lowercase, tokenize=tokenize, smooth_method="none", force=True)
    found = counter.corpus_score(list(hypotheses), transposed(references))
    script = "multi-bleu-detok.perl" if tokenize == "13a" else "multi-bleu.perl"
    return Result(
        # sacrebleu ends a perfect score at 100.00000000000004.
        value=min(found.score, 100.0),
        parts={
            **{f"precision_{n + 1}": precision for n, precision in enumerate(found.precisions)},
            "brevity_penalty": found.bp,
            "hypothesis_length": float(found.sys_len),
            "reference_length": float(found.ref_len),
        },
        variant=f"BLEU-4, 0 to 100, {script} rules, tokens {tokenize}, {'lower case' if lowercase else 'cased'}, "
        f"empty references {empty_references}; {packages('sacrebleu')}",
    )
