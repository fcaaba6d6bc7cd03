"""``deltaw combine``: a weighted sum of adapters."""

from __future__ import annotations

import dataclasses

import click

from deltaw.cli._algebra import facts, free_place, open_adapter, output_option, quoted, rows, say_written
from deltaw.cli._common import Output, as_path, common_options
from deltaw.errors import ConfigError

__all__ = ["command", "split_weight"]

METHOD_HELP = (
    "exact: the sum at the least rank that holds it; concatenate: the sum with ranks added; ties, dare: heuristics "
    "on the factors, not the sum."
)
DENSITY_HELP = "Share of the factors' entries that ties or dare keep; default 0.5."


def split_weight(word: str) -> tuple[str, float]:
    """Read ``DIR`` or ``DIR:WEIGHT``; a directory whose name ends like that is taken as it is.

    Args:
        word: what was typed.

    Returns:
        The directory and the weight, 1 where none was typed.

    Raises:
        ConfigError: if what follows the last colon is no number.

    Example:
        >>> split_weight("a:-0.3"), split_weight("b")
        (('a', -0.3), ('b', 1.0))
    """
    head, colon, tail = word.rpartition(":")
    if not colon or not head or as_path(word).exists():
        return word, 1.0
    try:
        return head, float(tail)
    except ValueError:
        raise ConfigError(
            "a weight is a number",
            where=f"ADAPTER {word!r}",
            got=repr(tail),
            expected="DIR or DIR:WEIGHT, such as a:0.7 or b:-0.3",
            hint="write the weight after the last colon.",
        ) from None


@click.command("combine")
@click.argument("adapters", metavar="ADAPTER[:WEIGHT]...", nargs=-1, required=True)
@click.option("--method", default="exact", show_default=True, metavar="NAME", help=METHOD_HELP)
@click.option("--density", type=float, metavar="SHARE", help=DENSITY_HELP)
@click.option("--seed", type=int, metavar="N", help="Which entries dare drops; default 0.")
@click.option("--allow-other-base", is_flag=True, help="Add adapters of bases with different fingerprints.")
@output_option
@click.option("--modules", "every", is_flag=True, help="List every module, however many there are.")
@common_options
def command(
    *,
    adapters: tuple[str, ...],
    method: str,
    density: float | None,
    seed: int | None,
    allow_other_base: bool,
    output: str,
    every: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Add adapters, each times a weight; negative weights subtract.

    Each ADAPTER is a PEFT directory, followed by a colon and its weight (1 where none is given): deltaw combine a:0.7
    b:-0.3 -o c. No model is needed; ranks, alphas and modules may differ. The result is compared with the exact sum.
    DoRA adapters cannot be added; full copies, biases and token rows come from one adapter of weight 1 at most.
    """
    out = Output(quiet=quiet, as_json=as_json)
    place = free_place(output)
    words = [split_weight(word) for word in adapters]
    sources = [open_adapter(path) for path, _ in words]
    from deltaw.algebra import combine

    made = combine(
        sources,
        [weight for _, weight in words],
        method=method,
        density=density,
        seed=seed,
        allow_other_base=allow_other_base,
    )
    report = dataclasses.replace(made, every=every)
    written = report.adapter.save(place)
    out.say(report)
    base = quoted(report.adapter.raw.get("base_model_name_or_path") or "DIR")
    say_written(
        out,
        report.adapter,
        place,
        written,
        f"deltaw compare {quoted(sources[0].where)} {quoted(place)}",
        f"deltaw generate --model {base} --adapter {quoted(place)} --prompt '...'",
    )
    out.finish(
        {
            **facts(report.adapter, place, written),
            "method": report.method,
            "heuristic": report.heuristic,
            "sources": [{"path": where, "weight": weight} for where, weight in report.sources],
            "error": report.error,
            "modules": rows(report.modules),
            "notes": report.notes,
        }
    )
