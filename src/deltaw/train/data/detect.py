"""Settle the format of a file by looking at its rows, and say why."""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.errors import DataError, nearest
from deltaw.train.data.formats import KINDS, Format, Kind
from deltaw.train.data.formats.base import Labelled
from deltaw.train.data.formats.labelled import number_of
from deltaw.train.data.rows import Rows
from deltaw.train.data.sources.base import Row, RowProblem

__all__ = ["detect", "sample_rows"]

_LOOK = 1000
_MANY_CLASSES = 100


def sample_rows(rows: Rows, count: int = _LOOK) -> list[Row]:
    """Read rows evenly spread over a file.

    Args:
        rows: the file.
        count: how many at most.

    Returns:
        Those of them that can be read; runs of 50 neighbours in columnar files.

    Raises:
        DataError: if none can.
    """
    found: list[Row] = []
    # Neighbours share a row group of a columnar file, and loading one costs far more than reading a row.
    run = 50 if rows.source.unit == "row" else 1
    step = max(run, len(rows) * run // count)
    for index in (at for start in range(0, len(rows), step) for at in range(start, min(start + run, len(rows)))):
        try:
            found.append(rows.source.row(int(rows.picks[index])))
        except RowProblem:
            continue
    if not found:
        rows[0]
    return found


def detect(
    rows: Rows, *, format: str = "auto", columns: Mapping[str, str] | None = None, task: str | None = None
) -> Format:
    """Settle what the rows mean.

    Args:
        rows: the file.
        format: a format's name, or ``auto`` to choose by the columns and values of up to 1,000 rows spread over it.
        columns: role to column, such as ``{"prompt": "src", "completion": "tgt"}``, where the names are not known ones.
        task: ``classification`` or ``regression``, to overrule what the labels look like.

    Returns:
        The format, its columns, its task and the reason.

    Raises:
        DataError: if nothing fits, several formats fit equally, or a name is unknown.
    """
    sample = sample_rows(rows)
    found = list(dict.fromkeys(column for row in sample for column in row))
    columns = dict(columns or {})
    _check_mapping(rows, found, columns)
    if format == "auto":
        kind, chosen = _choose(rows, sample, found, columns)
    elif format in KINDS:
        kind = KINDS[format]
        chosen = _assign(kind, found, columns)
        missing = [role for role in kind.roles if role not in chosen]
        if missing:
            raise _lacking(rows, kind, missing, found, chosen)
    else:
        hint = f"use one of {', '.join(KINDS)}, or auto; closest: {nearest(format, KINDS, 1)}."
        raise _error("the format is not known", rows, f"format {format!r}", f"one of {', '.join(KINDS)}", hint)
    used = ", ".join(column if role == column else f"{column} ({role})" for role, column in chosen.items())
    unused = [column for column in found if column not in chosen.values()]
    reason = f"{'columns' if len(chosen) > 1 else 'column'} {used}"
    reason += f"; not used: {', '.join(unused)}" if unused else ""
    if not kind.labelled:
        if task not in (None, "causal"):
            hint = "give a label column with --column label=NAME, or leave out the task."
            raise _error("the task does not fit the format", rows, f"format {kind.name}", f"labels for {task}", hint)
        return Format(kind=kind, columns=chosen, task="causal", reason=reason)
    task, why = _task(rows, kind, chosen, sample, task)
    return Format(kind=kind, columns=chosen, task=task, reason=f"{reason}; {why}")


def _assign(kind: Kind, found: list[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Give each role of a format its column: the user's, else the first known name that is there."""
    lower = {column.lower().strip(): column for column in reversed(found)}
    chosen: dict[str, str] = {}
    for role, names in {**kind.roles, **kind.optional}.items():
        names = (role, *names)
        taken = chosen.values()
        column = mapping.get(role) or next((lower[n] for n in names if n in lower and lower[n] not in taken), None)
        if column is not None:
            chosen[role] = column
    return chosen


def _choose(rows: Rows, sample: list[Row], found: list[str], mapping: dict[str, str]) -> tuple[Kind, dict[str, str]]:
    fitting: dict[str, dict[str, str]] = {}
    for name, kind in KINDS.items():
        chosen = _assign(kind, found, mapping)
        known = {*kind.roles, *kind.optional}
        if (
            all(role in chosen for role in kind.roles)
            and set(mapping) <= known
            and kind.fits(_telling(sample, chosen), chosen)
        ):
            fitting[name] = chosen
    if "alpaca" in fitting:
        # An instruction column is never a plain prompt beside other columns of the same row.
        fitting.pop("prompt_completion", None)
    sizes = {name: {chosen[role] for role in KINDS[name].roles} for name, chosen in fitting.items()}
    best = [name for name in fitting if not any(sizes[name] < sizes[other] for other in fitting)]
    if len(best) > 1 and "text" in best:
        best.remove("text")
    if len(best) == 1:
        return KINDS[best[0]], fitting[best[0]]
    if not best:
        raise _nothing_fits(rows, found, mapping)
    fits = "; ".join(f"{name} ({', '.join(fitting[name].values())})" for name in best)
    hint = f"say which: --format {best[0]} or --format {best[-1]}."
    raise _error("several formats fit the columns", rows, f"columns {_list(found)}", f"only one of: {fits}", hint)


def _telling(sample: list[Row], columns: Mapping[str, str]) -> Row:
    """Find a row whose columns are filled: a null says nothing about a format."""
    return next((row for row in sample if all(row.get(column) for column in columns.values())), sample[0])


def _check_mapping(rows: Rows, found: list[str], mapping: Mapping[str, str]) -> None:
    roles = {role for kind in KINDS.values() for role in (*kind.roles, *kind.optional)}
    for role, column in mapping.items():
        if role not in roles:
            hint = f"the name before the = is a role; closest: {nearest(role, roles)}."
            raise _error("a column is mapped to an unknown role", rows, f"role {role!r}", _list(sorted(roles)), hint)
        if column not in found:
            hint = f"the name after the = is a column of the file; closest: {nearest(column, found)}."
            raise _error("a mapped column is not in the file", rows, f"column {column!r}", _list(found), hint)


def _nothing_fits(rows: Rows, found: list[str], mapping: Mapping[str, str]) -> DataError:
    def distance(kind: Kind) -> tuple[float, bool, int]:
        missing = [role for role in kind.roles if role not in _assign(kind, found, mapping)]
        # Where not even one column has a known name, a prompt and its completion are the likeliest thing.
        return len(missing) / len(kind.roles), kind.name != "prompt_completion", len(missing)

    kind = min(KINDS.values(), key=distance)
    chosen = _assign(kind, found, mapping)
    missing = [role for role in kind.roles if role not in chosen]
    return _lacking(rows, kind, missing, found, chosen, what="no format fits the columns")


def _lacking(
    rows: Rows, kind: Kind, missing: list[str], found: list[str], chosen: Mapping[str, str], what: str = ""
) -> DataError:
    free = [column for column in found if column not in chosen.values()] or found
    guess = " ".join(f"--column {role}={free[min(place, len(free) - 1)]}" for place, role in enumerate(missing))
    wanted = "; ".join(f"{role}: {' or '.join(kind.roles[role][:4])}" for role in missing)
    return _error(
        what or f"the rows do not fit the format {kind.name}",
        rows,
        f"columns {_list(found)}",
        f"nearest format {kind.name}, like {kind.example}; missing {wanted or 'rows of this shape'}",
        f"name the columns, such as {guess}; or rename them." if missing else "change the rows to this shape.",
    )


def _list(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"


def _error(what: str, rows: Rows, got: str, expected: str, hint: str) -> DataError:
    return DataError(what, where=str(rows.path), got=got, expected=expected, hint=hint)


def _task(rows: Rows, kind: Kind, columns: Mapping[str, str], sample: list[Row], task: str | None) -> tuple[str, str]:
    """Decide between classes and scores by the labels."""
    labels = []
    for row in sample:
        try:
            record = kind.parse(row, columns)
        except RowProblem:
            continue
        if isinstance(record, Labelled):
            labels.append(record.label)
    if task in ("classification", "regression"):
        return task, f"{task} as asked"
    if task is not None:
        hint = "use classification or regression."
        raise _error("the task does not fit the format", rows, f"task {task!r}", f"a task for {kind.name}", hint)
    values = set(labels)
    numbers = [number_of(label) for label in labels]
    column = columns["label"]
    if labels and all(number is not None for number in numbers) and any(isinstance(n, float) for n in numbers):
        few = f" ({len(values)} different values: pass the task to make them classes)" if len(values) <= 10 else ""
        return "regression", f"regression, because {column} holds numbers with a fraction{few}"
    if len(values) > _MANY_CLASSES or (len(values) > 10 and len(values) > len(labels) / 2):
        hint = "pass --task classification or --task regression; or, for answers in words, name prompt and completion."
        got = f"{len(values)} different values of {column!r} in {len(labels)} rows"
        raise _error("the labels are neither few classes nor scores", rows, got, "few classes, or numbers", hint)
    kinds = "whole numbers" if all(isinstance(n, int) for n in numbers) and numbers else "names"
    return "classification", f"classification, because {column} holds {len(values)} different {kinds}"
