"""Figures of quality over trained values: ours, drawn from several records, and the paper's, from its tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from deltaw.paper.reproduce.records import Record

__all__ = ["PRINTED", "QUALITY", "figures"]

QUALITY, PRINTED = "quality-over-parameters.svg", "figure2-as-printed.svg"


def figures(rows: Mapping[str, list[Record]]) -> dict[str, str]:
    """Draw what the records allow.

    Args:
        rows: the records by row.

    Returns:
        File name -> SVG text; empty where there are too few records.
    """
    from deltaw.paper.analyses.printed import figure2

    return {QUALITY: _quality(rows), PRINTED: str(figure2().svg(), "utf-8")}


def _quality(rows: Mapping[str, list[Record]]) -> str:
    """BLEU on E2E over trained values, a line for each method: the form of Figure 2."""
    from deltaw.paper.analyses.quality import Scored, quality

    scored = []
    for row, made in rows.items():
        if made[0].family != "e2e" or row.endswith(("-matched-rate", "-long")):
            continue
        score = statistics.fmean(100 * record.values["BLEU"] for record in made)
        method = "LoRA" if "/lora-qv-" in row else made[0].title
        if method.startswith("LoRA "):
            continue
        scored.append(Scored(method=method, parameters=int(made[0].values["parameters"]), score=score))
    if len(scored) < 2:
        return ""
    drawn = quality(scored, title="E2E on stories3M", metric="BLEU")
    return str(drawn.svg(), "utf-8")
