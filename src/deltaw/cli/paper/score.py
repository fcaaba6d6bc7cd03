"""``deltaw paper score``: the metrics of the paper's tables on files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._common import Output, common_options

if TYPE_CHECKING:
    from deltaw.paper.metrics import Score

__all__ = ["command"]


@click.command("score")
@click.option("--metric", "metrics", metavar="NAME,...", default="", help="Metrics, or the groups e2e and webnlg.")
@click.option("--hypotheses", metavar="FILE", default=None, help="What is judged, one segment a line.")
@click.option("--references", metavar="FILE", multiple=True, help="What it is compared with; several times for lines.")
@click.option(
    "--layout", metavar="NAME", default="lines", show_default=True, help="How references stand: lines or e2e."
)
@click.option(
    "-O", "--option", "options", metavar="[METRIC.]NAME=VALUE", multiple=True, help="An option of a metric; see --list."
)
@click.option(
    "--empty-hypotheses",
    type=click.Choice(["refused", "counted"]),
    default="refused",
    show_default=True,
    help="What an empty hypothesis is: refused, or counted as the nothing that it is.",
)
@click.option("--segments", "table", metavar="FILE", default=None, help="Write every segment's scores to a TSV file.")
@click.option("--list", "listing", is_flag=True, help="List the metrics with their options, and stop.")
@common_options
def command(
    *,
    metrics: str,
    hypotheses: str | None,
    references: tuple[str, ...],
    layout: str,
    options: tuple[str, ...],
    empty_hypotheses: str,
    table: str | None,
    listing: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Score texts, labels, numbers or queries against references.

    Every score names its variant: rules, tokens, package and version. The group e2e is what e2e-metrics reports, the
    group webnlg what GenerationEval reports (WebNLG, DART). The layout lines has one segment a line in each of one or
    more reference files; e2e has one file whose groups are separated by empty lines.

    \b
    deltaw paper score --metric e2e --hypotheses out.txt --references refs.txt --layout e2e
    deltaw paper score --metric multi_bleu --hypotheses out.txt --references r0.txt --references r1.txt
    """
    from deltaw.paper.metrics import METRICS, read_segments, score

    out = Output(quiet=quiet, as_json=as_json)
    if listing:
        out.say(_listing())
        out.finish({"metrics": {name: {"line": row.line, "options": row.options} for name, row in METRICS.items()}})
        return
    chosen = _chosen(metrics, options)
    _needed(hypotheses, references)
    assert hypotheses is not None
    found = read_segments(hypotheses, references, layout=layout, allow_empty=empty_hypotheses == "counted")
    if table is not None:
        _writable(table)
    scores = []
    for name, settings in chosen.items():
        got = score(name, found.hypotheses, found.references, empty_hypotheses=empty_hypotheses, **settings)
        out.say(got)
        scores.append(got)
    if found.empty_references:
        out.say(f"{found.empty_references:,} empty lines in the reference files")
    if table is not None:
        written = _write(table, scores)
        out.say(f"written to {table}: {', '.join(written) or 'no metric'}")
    out.finish(
        {
            "hypotheses": hypotheses,
            "references": list(references),
            "layout": layout,
            "num_segments": len(found.hypotheses),
            "empty_references": found.empty_references,
            "scores": [_without_segments(got) for got in scores],
        }
    )


def _chosen(metrics: str, options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The metrics that were asked for, each with its options: the group's, then those of the command line."""
    from deltaw.errors import ConfigError, nearest
    from deltaw.paper.metrics import E2E_METRICS, METRICS, WEBNLG_METRICS

    groups = {"e2e": E2E_METRICS, "webnlg": WEBNLG_METRICS}
    chosen: dict[str, dict[str, Any]] = {}
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    for name in names:
        if name in groups:
            for member, settings in groups[name].items():
                chosen[member] = {**chosen.get(member, {}), **settings}
        elif name in METRICS:
            chosen.setdefault(name, {})
        else:
            raise ConfigError(
                "there is no such metric",
                where="--metric",
                got=repr(name),
                expected="one of " + ", ".join([*METRICS, *groups]),
                hint=f"closest: {nearest(name, [*METRICS, *groups])}",
            )
    if not chosen:
        raise ConfigError(
            "no metric is named",
            where="--metric",
            got="nothing",
            expected="names separated by commas, or the groups e2e and webnlg",
            hint="deltaw paper score --list shows them",
        )
    for option in options:
        _place(option, chosen)
    return chosen


def _place(option: str, chosen: dict[str, dict[str, Any]]) -> None:
    """Give an option of the command line to the metrics that have it."""
    from deltaw.errors import ConfigError, nearest
    from deltaw.paper.metrics import METRICS

    key, equals, word = option.partition("=")
    metric, dot, name = key.rpartition(".")
    takers = [one for one in chosen if name in METRICS[one].options and (not dot or one == metric)]
    if not equals or not takers:
        known = [f"{one}.{item}" for one in chosen for item in METRICS[one].options]
        raise ConfigError(
            "none of these metrics has such an option" if equals else "an option of a metric has no value",
            where="--option",
            got=repr(option),
            expected="NAME=VALUE or METRIC.NAME=VALUE with one of " + (", ".join(known) or "nothing"),
            hint=f"closest: {nearest(key if dot else name, known if dot else [item.split('.')[1] for item in known])}",
        )
    for one in takers:
        chosen[one][name] = _value(word, METRICS[one].options[name])


def _value(word: str, default: object) -> object:
    """Read a value as the kind of thing the option's default is; a word that is none goes on to be refused there."""
    if isinstance(default, bool | float):
        try:
            return json.loads(word)
        except ValueError:
            return word
    return word


def _needed(hypotheses: str | None, references: Sequence[str]) -> None:
    from deltaw.errors import ConfigError

    if hypotheses is None or not references:
        missing = "--hypotheses" if hypotheses is None else "--references"
        raise ConfigError(
            "a file is missing from the command line",
            where=missing,
            got="nothing",
            expected=f"{missing} FILE",
            hint="deltaw paper score --metric bleu --hypotheses FILE --references FILE",
        )


def _writable(table: str) -> None:
    from deltaw.errors import ConfigError

    place = Path(table).expanduser()
    if place.is_dir() or not place.parent.is_dir():
        raise ConfigError(
            "the table of segments cannot be written",
            where="--segments",
            got=table,
            expected="a file in a directory that exists",
            hint=f"make the directory first: mkdir -p {place.parent}" if not place.is_dir() else "name a file in it",
        )


def _write(table: str, scores: Sequence[Score]) -> list[str]:
    """Write a row for every segment and a column for every metric that has a value of segments."""
    columns = {got.name: got.segments for got in scores if got.segments}
    rows = [["segment", *columns]]
    for number, values in enumerate(zip(*columns.values(), strict=True), 1):
        rows.append([str(number), *(f"{value:.6g}" for value in values)])
    Path(table).expanduser().write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return list(columns)


def _without_segments(got: Score) -> dict[str, Any]:
    return {
        "metric": got.name,
        "value": got.value,
        "parts": got.parts,
        "variant": got.variant,
        "num_segments": got.num_segments,
        "notes": got.notes,
    }


def _listing() -> str:
    from deltaw.paper.metrics import E2E_METRICS, METRICS, WEBNLG_METRICS
    from deltaw.reports import table

    def written(settings: Mapping[str, object]) -> str:
        return " ".join(f"{name}={_word(value)}" for name, value in settings.items())

    lines = [table(("metric", "what", "options"), [(n, row.line, written(row.options)) for n, row in METRICS.items()])]
    for group, members in (("e2e", E2E_METRICS), ("webnlg", WEBNLG_METRICS)):
        lines.append(f"{group}: " + ", ".join(f"{n} {written(s)}".strip() for n, s in members.items()))
    return "\n".join(lines)


def _word(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
