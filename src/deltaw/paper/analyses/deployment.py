"""What many tasks take on disk: one base and small adapters, against one whole model each (section 4.2, footnote 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from deltaw.paper.analyses.result import Analysis, Sheet
from deltaw.paper.analyses.style import look
from deltaw.paper.analyses.turns import require_positive
from deltaw.paper.counts import deployment_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Deployment", "deployment", "units"]

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def units(num_bytes: float) -> str:
    """Bytes in powers of 1000, as the paper counts them.

    Args:
        num_bytes: any number.

    Returns:
        Four significant figures and a unit.

    Example:
        >>> units(350e9 + 100 * 37_748_736), units(100 * 350e9), units(37_748_736)
        ('353.8 GB', '35 TB', '37.75 MB')
    """
    value, place = float(num_bytes), 0
    while value >= 1000 and place < len(_UNITS) - 1:
        value, place = value / 1000, place + 1
    return f"{value:.4g} {_UNITS[place]}"


@dataclass(frozen=True, kw_only=True)
class Deployment(Analysis):
    """Storage of many tasks.

    Args:
        model: what is deployed.
        base_bytes: of the base.
        adapter_bytes: of one adapter.
        tasks: how many.
    """

    name: ClassVar[str] = "deployment"

    model: str
    base_bytes: int
    adapter_bytes: int
    tasks: int

    def lora(self, tasks: int) -> int:
        """Bytes with one base and an adapter for each task.

        Args:
            tasks: how many.

        Returns:
            Bytes.
        """
        return deployment_bytes(self.base_bytes, self.adapter_bytes, tasks)

    def full(self, tasks: int) -> int:
        """Bytes with a whole model for each task.

        Args:
            tasks: how many.

        Returns:
            Bytes.
        """
        return tasks * self.base_bytes

    def sheet(self) -> Sheet:
        """A row for powers of ten up to the number of tasks."""
        counts = [10**power for power in range(12) if 10**power < self.tasks]
        rows = tuple(
            (
                n,
                units(self.lora(n)),
                units(self.full(n)),
                f"{self.full(n) / self.lora(n):.4g}x",
                self.lora(n),
                self.full(n),
            )
            for n in (*counts, self.tasks)
        )
        columns = ("tasks", "base + adapters", "a model each", "saved", "bytes, adapters", "bytes, models")
        title = (
            f"{self.model}: a base of {units(self.base_bytes)}, adapters of {units(self.adapter_bytes)} "
            f"({self.base_bytes / self.adapter_bytes:,.0f} times smaller)"
        )
        return Sheet(title=title, columns=columns, rows=rows, notes=("units are powers of 1000",))

    def details(self) -> Mapping[str, Any]:
        """Sizes and the number of tasks."""
        return {"base_bytes": self.base_bytes, "adapter_bytes": self.adapter_bytes, "tasks": self.tasks}

    def draw(self, figure: Figure) -> None:
        """Both over the number of tasks.

        Args:
            figure: an empty one of ``size``.
        """
        axes = figure.subplots()
        counts = sorted({max(1, round(self.tasks ** (step / 24))) for step in range(25)})
        for place, (word, of) in enumerate(
            (("a whole model each", self.full), ("one base, an adapter each", self.lora))
        ):
            drawn = {**look(place), "marker": ""}
            axes.plot(counts, [of(n) / 1e9 for n in counts], label=f"{word}: {units(of(self.tasks))}", **drawn)
        axes.set(xlabel="tasks", ylabel="GB on disk", xscale="log", yscale="log")
        axes.set_title(f"{self.model}: storage of {self.tasks:,} tasks")
        axes.grid(True)
        axes.legend()


def deployment(*, model: str, base_bytes: int, adapter_bytes: int, tasks: int = 100) -> Deployment:
    """Count what many tasks take on disk.

    Args:
        model: name, for the titles.
        base_bytes: of the base.
        adapter_bytes: of one adapter.
        tasks: how many.

    Returns:
        The sums.

    Raises:
        ConfigError: if a number is not at least 1.

    Source:
        arXiv:2106.09685, section 4.2 and footnote 4: 350 GB + 100 x 35 MB = about 354 GB, against 35 TB.

    Example:
        >>> made = deployment(model="GPT-3", base_bytes=350 * 10**9, adapter_bytes=2 * 18_874_368)
        >>> units(made.lora(100)), units(made.full(100))
        ('353.8 GB', '35 TB')
    """
    require_positive(base_bytes=base_bytes, adapter_bytes=adapter_bytes, tasks=tasks)
    return Deployment(model=model, base_bytes=base_bytes, adapter_bytes=adapter_bytes, tasks=tasks)
