"""Figures that are drawn from several records: quality over trained values, and the rank sweep."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from deltaw.paper.reproduce.records import Record

__all__ = ["figures"]


def figures(rows: Mapping[str, list[Record]]) -> dict[str, str]:
    """Draw what the records allow.

    Args:
        rows: the records by row.

    Returns:
        File name -> SVG text; empty where there are too few records.
    """
    return {"quality-over-parameters.svg": _quality(rows)}


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
