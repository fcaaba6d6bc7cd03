"""``deltaw paper tasks``: the tasks, their files, sizes, checksums and licenses; stand-ins for what is not there."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._common import Output, common_options, next_commands
from deltaw.errors import ConfigError, DataError
from deltaw.train.config import TASK_NAMES

if TYPE_CHECKING:
    from deltaw.train.data.tasks import Task
    from deltaw.train.data.tasks.record import SplitRecord

__all__ = ["command"]


@click.command("tasks")
@click.option(
    "--data", metavar="DIR", help="Look for the tasks' files here: a folder that holds theirs, or one task's."
)
@click.option("--task", "names", multiple=True, type=click.Choice(TASK_NAMES), help="Only this task (repeatable).")
@click.option("--synthesize", metavar="DIR", help="Write a made-up stand-in for the one --task into a new directory.")
@click.option("--rows", type=click.IntRange(10), help="With --synthesize: training rows.  [default: 200]")
@click.option("--seed", type=click.IntRange(0), help="With --synthesize: of the made-up words.  [default: 0]")
@click.option("--cache-dir", metavar="DIR", help="Where compressed files are unpacked.")
@common_options
def command(
    *, data: str | None, names: tuple[str, ...], synthesize: str | None, rows: int | None, seed: int | None,
    cache_dir: str | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """The paper's tasks: files, sizes, checksums and licenses, against what is in a directory.

    Each split is ok, subset (complete, but part of its task), synthetic, different (the reason is given) or absent.
    Checksums are of the uncompressed content, files of one split one after another.
    """
    out = Output(quiet=quiet, as_json=as_json)
    if synthesize is not None:
        _stand_in(out, synthesize, names, rows, seed, data)
        return
    for flag, value in (("--rows", rows), ("--seed", seed)):
        if value is not None:
            raise _unread(flag, f"{value} without --synthesize", f"drop {flag}, or add --synthesize DIR")
    if data is None and cache_dir is not None:
        raise _unread("--cache-dir", "no --data", "add --data DIR: only files that are read are unpacked")
    from deltaw.train.data.tasks import TASKS
    from deltaw.train.data.tasks.record import recorded

    found = list(recorded(_directory(data), names=names, cache_dir=cache_dir))
    tasks = [task for name, task in TASKS.items() if (name in names if names else not task.draw)]
    out.say(_table(found, looked=data is not None), "", *_legend(found), *_facts(tasks))
    drawn = [name for name, task in TASKS.items() if task.draw and not names]
    if drawn:
        out.say(f"  {', '.join(drawn)}: training rows drawn from the whole or the subset with --seed")
    out.say("", next_commands(*_next(found, data)))
    out.finish({"splits": found, "tasks": {task.name: _described(task) for task in tasks}})


def _directory(data: str | None) -> str | None:
    from pathlib import Path

    if data is not None and not Path(data).expanduser().exists():
        raise DataError(
            "the directory of the tasks does not exist",
            where="--data",
            got=data,
            expected="a directory that holds the tasks' folders, such as e2e/ and glue/",
            hint="check the spelling and the working directory.",
        )
    return data


def _unread(flag: str, got: str, hint: str) -> ConfigError:
    return ConfigError(f"{flag} means nothing here", where=flag, got=got, expected="no such flag", hint=hint)


def _stand_in(
    out: Output, target: str, names: tuple[str, ...], rows: int | None, seed: int | None, data: str | None
) -> None:
    from deltaw.train.data.tasks.synthetic import synthesize

    if len(names) != 1:
        got = f"{len(names)} tasks" if names else "no task"
        hint = "add one --task, such as --task samsum"
        raise ConfigError("a stand-in is for one task", where="--task", got=got, expected="one task", hint=hint)
    if data is not None:
        raise _unread("--data", "--synthesize, which reads nothing", "drop --data")
    files = synthesize(names[0], target, rows=200 if rows is None else rows, seed=0 if seed is None else seed)
    out.say(f"SYNTHETIC stand-in for {names[0]}, not its data, written to {target}: {', '.join(files)}")
    place = shlex.quote(target)
    out.say(
        next_commands(
            f"deltaw paper tasks --task {names[0]} --data {place}",
            f"deltaw train --model DIR --task {names[0]} --data {place}",
        )
    )
    out.finish({"task": names[0], "synthetic": True, "directory": target, "files": files})


def _of(found: int | None, expected: int | None, *, looked: bool) -> str:
    want = "?" if expected is None else f"{expected:,}"
    if not looked or found is None:
        return want if expected is not None else "-"
    return f"{found:,}" if expected in (found, None) else f"{found:,} of {want}"


def _table(found: list[SplitRecord], *, looked: bool) -> str:
    from deltaw.reports import table

    header = ["task", "split", "rows", "entries", "inputs", "sha256", "status"]
    lines = []
    for item in found:
        there = looked and item.status != "absent"
        digest = item.sha256 or item.sha256_expected
        known = "" if not item.sha256 or item.sha256 == item.sha256_expected else " *"
        lines.append([
            item.task, item.split, _of(item.rows, item.rows_expected, looked=there),
            _of(item.entries, item.entries_expected, looked=there),
            _of(item.inputs, item.inputs_expected, looked=there),
            digest[:12] + known if digest else "-", item.status if looked else "",
        ])  # fmt: skip
    return table(header[: 7 if looked else 6], [line[: 7 if looked else 6] for line in lines])


def _legend(found: list[SplitRecord]) -> list[str]:
    lines = []
    if any(item.sha256 and item.sha256 != item.sha256_expected for item in found):
        lines.append("* not a checksum on record: another layout, edited files, or files nobody has recorded yet")
    lines += [f"{item.task} {item.split}: {item.why}" for item in found if item.why]
    read = [(item, file) for item in found for file in item.files[:1]]
    if read:
        lines += ["", "files:"]
    for item, file in read:
        more = f" and {len(item.files) - 1} more" if len(item.files) > 1 else ""
        lines.append(f"  {item.task} {item.split} ({item.layout}): {file}{more}")
    return lines


def _facts(tasks: list[Task]) -> list[str]:
    lines = ["", "licenses, as stated:"]
    for task in tasks:
        terms = "; ".join(f"{item.terms} ({item.by})" for item in task.licenses)
        lines.append(f"  {task.name}: {task.title}: {terms}. Sizes: {task.counted}.")
    notes = [
        f"  {task.name}: {note}" for task in tasks for note in ((task.subset,) if task.subset else ()) + task.notes
    ]
    return [*lines, *(["", "notes:", *notes] if notes else [])]


def _described(task: Task) -> dict[str, Any]:
    return {
        "title": task.title, "kind": task.task, "labels": task.labels, "subset": task.subset, "notes": task.notes,
        "licenses": task.licenses, "counted": task.counted,
        "layouts": {
            name: {layout.name: layout.files for layout in split.layouts} for name, split in task.splits.items()
        },
    }  # fmt: skip


def _next(found: list[SplitRecord], data: str | None) -> list[str]:
    if data is None:
        return ["deltaw paper tasks --data DIR"]
    there = [item.task for item in found if item.split == "train" and item.status in ("ok", "subset", "synthetic")]
    if not there:
        return ["deltaw paper tasks --task samsum --synthesize DIR"]
    return [f"deltaw train --model DIR --task {there[0]} --data {shlex.quote(data)}"]
