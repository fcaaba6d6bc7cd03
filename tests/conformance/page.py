"""The table as a page, written by ``scripts/conformance.py`` and read back by the tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rows import Outcome, Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conformance.md"
ORDER = "FLEMSBCTIPDN"
TITLES = ("deltaw", "PEFT 0.21.2")

HEAD = """# Conformance

What a LoRA library should do to a PyTorch module and to an adapter's files, as checks that run against any library
through one protocol of about two dozen verbs. deltaw and PEFT 0.21.2 are run by the same code on the same tiny models:
an MLP, a Llama (untied and tied), a GPT-2 (its Conv1D), convolutions, embeddings, attention, a fused encoder layer,
shared weights. Every entry is measured, none is copied. PEFT runs in a process of its own, and only files pass between
the two libraries.

```
python scripts/conformance.py    # both libraries; writes this page
python -m pytest tests/conformance    # deltaw alone; fails where its column is no longer true
```

Differences are relative to the largest value. *pass or refused*: some cases are refused by an error that says so, which
the check accepts; all others pass. *fails in part*: some cases pass, those named do not. *later*: deltaw does not have
it yet. *n/a*: the row compares with PEFT's own files. A refusal of PEFT is any error that it raises.

"""


def page(rows: Mapping[str, Row], found: Mapping[str, Mapping[str, Outcome]]) -> str:
    """The whole page.

    Args:
        rows: id -> row.
        found: library -> id -> outcome.

    Returns:
        Markdown.
    """
    lines = [f"| id | check | tolerance | {' | '.join(TITLES)} | remark |", "|---|---|---|---|---|---|"]
    for id in ordered(rows):
        ends = [found[title][id] for title in TITLES]
        remarks = [f"{title.split()[0]}: {end.remark}" for title, end in zip(TITLES, ends, strict=True) if end.remark]
        words = (id, rows[id].title, rows[id].tolerance, *(end.status for end in ends), "<br>".join(remarks))
        lines.append("| " + " | ".join(word.replace("|", "\\|") for word in words) + " |")
    counts = [f"{title}: {_counted([found[title][id].status for id in rows])}." for title in TITLES]
    return HEAD + "\n".join(lines) + "\n\n" + " ".join(counts) + "\n"


def ordered(rows: Mapping[str, Row]) -> list[str]:
    """Ids in the table's order."""
    return sorted(rows, key=lambda id: (ORDER.index(id[0]), int(id[1:])))


def _counted(states: list[str]) -> str:
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))


def read(text: str) -> dict[str, tuple[str, str]]:
    """deltaw's part of a page.

    Args:
        text: the page.

    Returns:
        id -> (status, remark).
    """
    found = {}
    for line in text.splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 6 and re.fullmatch(r"[A-Z]\d", cells[0]):
            own = [part.removeprefix("deltaw: ") for part in cells[5].split("<br>") if part.startswith("deltaw: ")]
            found[cells[0]] = (cells[3], own[0] if own else "")
    return found
