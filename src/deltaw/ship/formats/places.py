"""Finding a pipeline's modules: the component a name speaks of, and the real path behind it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from deltaw.errors import CheckpointError, nearest
from deltaw.ship.formats.contract import Ask
from deltaw.ship.formats.draft import Draft
from deltaw.ship.formats.tree import Tree
from deltaw.ship.formats.unet_names import original_names

__all__ = ["COMPONENTS", "Places", "wanted"]

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "prior")
"""What diffusers calls the adaptable parts of a pipeline."""


@dataclass
class Places:
    """The modules of a tree by component, and by their name with dots turned into underscores.

    Args:
        tree: the base's modules.
        component: the component that a tree of one model stands for.
        tables: component -> underscored name -> paths.
    """

    tree: Tree
    component: str
    tables: dict[str, dict[str, set[str]]] = field(default_factory=dict)

    @property
    def held(self) -> set[str]:
        """Components that the tree has at its top; none where it is one model."""
        tops = {path.partition(".")[0] for path in self.tree.nodes}
        return tops & set(COMPONENTS)

    def prefix(self, component: str) -> str | None:
        """What stands before a component's modules in this tree.

        Args:
            component: one of ``COMPONENTS``.

        Returns:
            "unet." or the like; "" where the tree is that model itself; None where it does not hold it.
        """
        if component in self.held:
            return f"{component}."
        return "" if not self.held and component == self.component else None

    def find(self, component: str, name: str, pair: tuple[Tensor, Tensor] | None) -> list[str]:
        """Look an underscored name up.

        Args:
            component: where to look.
            name: path with underscores for dots.
            pair: its factors, to rule out modules of another size, or None.

        Returns:
            Every path that it may mean.
        """
        table = self._table(component)
        found = table.get(name, set()) | table.get(name.removeprefix(f"{component}_"), set())
        if pair is None or len(found) < 2:
            return sorted(found)
        fitting = [path for path in found if self.tree.nodes[path].admits(*pair)]
        return sorted(fitting or found)

    def names(self, component: str) -> list[str]:
        """Every underscored name of a component.

        Args:
            component: where to look.

        Returns:
            The names.
        """
        return list(self._table(component))

    def _table(self, component: str) -> dict[str, set[str]]:
        if component not in self.tables:
            prefix = self.prefix(component)
            table: dict[str, set[str]] = {}
            paths = [] if prefix is None else [p for p in self.tree.adaptable() if p.startswith(prefix)]
            inner = {path[len(prefix or "") :]: path for path in paths}
            pairs = [*inner.items(), *((name, inner[path]) for name, path in original_names(inner).items())]
            for name, path in pairs:
                table.setdefault(name.replace(".", "_"), set()).add(path)
            self.tables[component] = table
        return self.tables[component]


def wanted(ask: Ask, draft: Draft, stems: dict[str, str]) -> tuple[set[str], str]:
    """Choose the components to read.

    Args:
        ask: what the user said; ``part`` chooses one component.
        draft: names of the other components go to what was left aside.
        stems: name in the file -> component.

    Returns:
        The components to read, and the one that a tree of a single model stands for.

    Raises:
        CheckpointError: if the component asked for is not in the file, or several are in it and one model is given.
    """
    present = sorted(set(stems.values()))
    if ask.part is not None:
        draft.used.add("part")
        if ask.part not in present:
            raise CheckpointError(
                "the file holds nothing for this component",
                where=draft.where,
                got=f"--part {ask.part}",
                expected=f"one of {', '.join(present)}",
                hint=f"nearest: {nearest(ask.part, present, 1)}.",
            )
        draft.left.extend(sorted(name for name, component in stems.items() if component != ask.part))
        return {ask.part}, ask.part
    tops = {path.partition(".")[0] for path in draft.tree.nodes} if draft.tree is not None else set()
    if len(present) > 1 and not tops & set(COMPONENTS):
        raise CheckpointError(
            "the file holds updates of several models",
            where=draft.where,
            got=f"components {', '.join(present)}",
            expected="one component for one model, or the tree of a whole pipeline",
            hint=f"choose one, --part {present[0]}, and convert once per component.",
        )
    return set(present), present[0] if present else ""
