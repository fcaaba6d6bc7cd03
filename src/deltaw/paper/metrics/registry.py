"""The metrics by name, and ``score``, the one way to compute them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deltaw.errors import ConfigError, DataError, nearest
from deltaw.paper.metrics.accuracy import accuracy
from deltaw.paper.metrics.base import Metric, References, Score, checked, one_of
from deltaw.paper.metrics.bleu import bleu
from deltaw.paper.metrics.cider import cider
from deltaw.paper.metrics.correlation import pearson, spearman
from deltaw.paper.metrics.f1 import f1
from deltaw.paper.metrics.matthews import matthews
from deltaw.paper.metrics.meteor import meteor
from deltaw.paper.metrics.mnli import mnli
from deltaw.paper.metrics.multi_bleu import multi_bleu
from deltaw.paper.metrics.nist import nist
from deltaw.paper.metrics.rouge import rouge1, rouge2, rougeL
from deltaw.paper.metrics.rouge_l import rouge_l
from deltaw.paper.metrics.ter import ter
from deltaw.paper.metrics.wikisql import wikisql_ex, wikisql_lf

__all__ = ["E2E_METRICS", "GLUE_METRICS", "METRICS", "WEBNLG_METRICS", "score"]

_ROWS = (
    Metric(name="bleu", line="BLEU of mteval-v13a as e2e-metrics computes it, 0 to 1", compute=bleu),
    Metric(name="multi_bleu", line="BLEU of multi-bleu.perl and multi-bleu-detok.perl, 0 to 100", compute=multi_bleu),
    Metric(name="nist", line="NIST-5 as e2e-metrics computes it", compute=nist),
    Metric(name="meteor", line="METEOR 1.5: exact and stem, synonyms and paraphrases by table", compute=meteor),
    Metric(name="rouge1", line="ROUGE-1 F of rouge-score", compute=rouge1),
    Metric(name="rouge2", line="ROUGE-2 F of rouge-score", compute=rouge2),
    Metric(name="rougeL", line="ROUGE-L F of rouge-score", compute=rougeL),
    Metric(name="rouge_l", line="ROUGE-L of the COCO scripts (beta 1.2), as e2e-metrics has it", compute=rouge_l),
    Metric(name="cider", line="CIDEr of the COCO scripts (CIDEr-D, sigma 6), or plain CIDEr", compute=cider),
    Metric(name="ter", line="TER of tercom, or the mean of pyter's; lower is better", compute=ter),
    Metric(name="accuracy", line="share of labels that are right", compute=accuracy, single=True),
    Metric(name="f1", line="F1 of one label, or the mean over labels", compute=f1, single=True),
    Metric(name="matthews", line="Matthews correlation of labels", compute=matthews, single=True),
    Metric(name="pearson", line="Pearson correlation of numbers", compute=pearson, single=True),
    Metric(name="spearman", line="Spearman correlation of numbers", compute=spearman, single=True),
    Metric(name="mnli", line="MNLI accuracy, matched and mismatched together", compute=mnli, single=True),
    Metric(name="wikisql_lf", line="WikiSQL logical-form accuracy of query objects", compute=wikisql_lf, single=True),
    Metric(name="wikisql_ex", line="WikiSQL execution accuracy in SQLite", compute=wikisql_ex, single=True),
)

METRICS = {metric.name: metric for metric in _ROWS}

E2E_METRICS: dict[str, dict[str, Any]] = {
    "bleu": {},
    "nist": {},
    "meteor": {"tokenize": "ptb"},
    "rouge_l": {},
    "cider": {},
}
"""Table 3 (E2E): what measure_scores.py of e2e-metrics reports, with the options that make it so."""

WEBNLG_METRICS: dict[str, dict[str, Any]] = {
    "multi_bleu": {"tokenize": "13a"},
    "meteor": {"tokenize": "treebank"},
    "ter": {"form": "pyter", "tokenize": "treebank", "case_sensitive": True, "empty_references": "counted"},
}
"""Tables 13 and 14 (WebNLG, DART): what eval.py of GenerationEval reports, with the options that make it so."""

GLUE_METRICS: dict[str, str] = {
    "MNLI": "mnli",
    "SST-2": "accuracy",
    "MRPC": "accuracy",
    "CoLA": "matthews",
    "QNLI": "accuracy",
    "QQP": "accuracy",
    "RTE": "accuracy",
    "STS-B": "pearson",
}
"""Table 2 (GLUE): the metric of every task."""


def score(
    name: str,
    hypotheses: Sequence[str],
    references: References,
    *,
    empty_hypotheses: str = "refused",
    **options: Any,
) -> Score:
    """Compute one metric.

    Args:
        name: a name in ``METRICS``.
        hypotheses: the texts, labels, numbers or queries that are judged.
        references: one group for every hypothesis, in the same order; groups of one for labels, numbers, queries.
        empty_hypotheses: ``refused``, or ``counted``: scored as the nothing that they are.
        **options: those of the metric; ``METRICS[name].options`` lists them with their defaults.

    Returns:
        The value, its parts, and the variant of the metric that it is.

    Raises:
        ConfigError: if there is no such metric, option or value.
        DataError: if counts differ, a text is missing, or a label, number or query cannot be read.

    Source:
        arXiv:2106.09685, tables 2, 3, 13 and 14, and the scripts named in its repository.

    Example:
        >>> round(score("rouge_l", ["the food is cheap"], [["the food is very cheap"]]).value, 4)
        0.8714
    """
    metric = METRICS.get(name)
    if metric is None:
        raise ConfigError(
            "there is no such metric",
            where="metric",
            got=repr(name),
            expected="one of " + ", ".join(METRICS),
            hint=f"closest: {nearest(name, METRICS)}",
        )
    one_of(name, "empty_hypotheses", empty_hypotheses, ("refused", "counted"))
    _known_options(metric, options)
    checked(hypotheses, references, allow_empty=empty_hypotheses == "counted")
    if metric.single:
        _one_each(metric, references)
        groups: References = references
    else:
        settings = {**metric.options, **options}
        one_of(name, "empty_references", settings.get("empty_references", "dropped"), ("dropped", "counted"))
        kept = settings.get("empty_references") == "counted"
        groups = [[text for text in group if kept or text.strip()] for group in references]
    result = metric.compute(list(hypotheses), groups, **options)
    return Score(
        name=name,
        value=float(result.value),
        variant=result.variant,
        num_segments=len(hypotheses),
        parts={part: float(value) for part, value in result.parts.items()},
        segments=result.segments,
        notes=result.notes,
    )


def _known_options(metric: Metric, options: dict[str, Any]) -> None:
    for option in options:
        if option not in metric.options:
            names = ["empty_hypotheses", *metric.options]
            raise ConfigError(
                "this metric has no such option",
                where=f"metric {metric.name}",
                got=repr(option),
                expected="one of " + ", ".join(names),
                hint=f"closest: {nearest(option, names)}",
            )


def _one_each(metric: Metric, references: References) -> None:
    for number, group in enumerate(references, 1):
        if len(group) != 1:
            raise DataError(
                "this metric compares with exactly one reference",
                where=f"metric {metric.name}, segment {number}",
                got=f"{len(group)} references",
                expected="one label, number or query for every hypothesis",
                hint="give one reference file with one line for every hypothesis",
            )
