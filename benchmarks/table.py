"""The table of benchmarks/README.md from the committed results: `python benchmarks/table.py` rewrites it.

Of every theme the newest result counts. What is said about a row stands in remarks.toml; a remark on a row that is
not there is refused, and so is a row beyond its limit without a remark.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tomllib

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- table: python benchmarks/table.py -->\n", "<!-- end of table -->\n"
HEAD = "| work | against | deltaw | other | ratio (spread) | at most | result |\n|---|---|---:|---:|---:|---:|---|\n"


def newest() -> list[dict[str, Any]]:
    """The latest result of every theme and part of it, by theme."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((HERE / "results").glob("*_[0-9]*.json"), key=lambda path: path.stem[-10:]):
        found[file.stem[:-11]] = {**json.loads(file.read_text(encoding="utf-8")), "file": file.with_suffix(".md").name}
    return [found[theme] for theme in sorted(found)]


def cell(ratio: dict[str, float]) -> str:
    if ratio["low"] == ratio["high"]:
        return f"{ratio['median']:.3g}"
    return f"{ratio['median']:.3g} ({ratio['low']:.3g} to {ratio['high']:.3g})"


def missed(ratio: dict[str, float], limit: float | None) -> str:
    """What to say of a limit that the median is beyond; equals have a median beside 1 too, so their spread decides."""
    if limit is None or ratio["median"] <= limit:
        return ""
    return " within the spread" if limit == 1 and ratio["low"] <= limit else " missed"


def table(results: list[dict[str, Any]], remarks: dict[str, dict[str, str]]) -> str:
    """The table and the remarks under it.

    Raises:
        SystemExit: if a row beyond its limit has no remark, or a remark has no row.
    """
    lines, notes, used, silent = [], [], set(), []
    for result in results:
        theme = result["theme"]
        for row in result["rows"]:
            name, limit = f"{row['work']} / {row['against']}", row["limit"]
            remark = next((text for key, text in remarks.get(theme, {}).items() if name.startswith(key)), None)
            used |= {(theme, key) for key in remarks.get(theme, {}) if name.startswith(key)}
            beyond = missed(row["ratio"], limit)
            if beyond and not remark:
                silent.append(f"{theme}: {name}")
            if remark is not None and remark not in notes:
                notes.append(remark)
            mark = f" [{notes.index(remark) + 1}]" if remark is not None else ""
            bound = "" if limit is None else f"{limit:g}{beyond}"
            link = f"[{theme}](results/{result['file']})"
            lines.append(
                f"| {row['work']} | {row['against']} | {row['ours']} | {row['theirs']} | {cell(row['ratio'])}{mark} | "
                f"{bound} | {link} |\n"
            )
    lost = [f"{theme}: {key}" for theme, keys in remarks.items() for key in keys if (theme, key) not in used]
    if lost or silent:
        raise SystemExit("\n".join([*(f"no row: {name}" for name in lost), *(f"no remark: {name}" for name in silent)]))
    told = "".join(f"{number}. {note}\n" for number, note in enumerate(notes, 1))
    return HEAD + "".join(lines) + ("\n" + told if told else "")


def main() -> None:
    remarks = tomllib.loads((HERE / "remarks.toml").read_text(encoding="utf-8"))
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(before + BEGIN + table(newest(), remarks) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
