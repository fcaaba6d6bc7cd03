"""What a row means: the four kinds of record, and the contract of a format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltaw.train.data.sources.base import Row, RowProblem

__all__ = ["Chat", "Completion", "Format", "Kind", "Label", "Labelled", "Record", "Text", "text_of"]

Label = int | float | str | bool


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A prompt and what must follow it.

    Args:
        prompt: context, not trained; may be empty.
        completion: the text to learn.
        given: an input that the prompt is about, kept apart for templates with a heading for it.
        system: text that a chat template may take as its system turn.
        headed: whether a plain template puts headings before the parts.
    """

    prompt: str
    completion: str
    given: str = ""
    system: str = ""
    headed: bool = False


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation.

    Args:
        messages: role, content and whatever else the template reads.
        weights: one per message; 0 leaves an assistant turn out of the loss. Other roles are never trained.
        tools: tool descriptions for the template.
    """

    messages: list[dict[str, Any]]
    weights: list[float]
    tools: list[Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text of which every token is trained.

    Args:
        text: the text.
    """

    text: str


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A text or a pair of texts with its class or score.

    Args:
        text_a: the first text.
        text_b: the second of a pair, or None.
        label: as it stands in the row.
    """

    text_a: str
    text_b: str | None
    label: Label


Record = Completion | Chat | Text | Labelled
Columns = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One format: which columns it reads and what it makes of a row.

    Args:
        name: as in ``--format``.
        roles: the columns it must have: role to known column names, best first, in lower case.
        optional: the columns it may have, likewise.
        parse: (row, role to column) to a record; raises RowProblem.
        example: a row of this format, as JSON, for help and errors.
        labelled: whether it has a label, so that its task is classification or regression.
        fits: a further look at one row, for formats that share column names.
    """

    name: str
    roles: Mapping[str, tuple[str, ...]]
    parse: Callable[[Row, Columns], Record]
    example: str
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labelled: bool = False
    fits: Callable[[Row, Columns], bool] = lambda row, columns: True


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format settled for one file.

    Args:
        kind: its rules.
        columns: role to column of the file.
        task: ``causal``, ``classification`` or ``regression``.
        reason: why this format, in words for the user.
    """

    kind: Kind
    columns: Columns
    task: str
    reason: str

    @property
    def name(self) -> str:
        """Name of the format, as in ``--format``."""
        return self.kind.name

    def parse(self, row: Row) -> Record:
        """Read one row.

        Args:
            row: the values by column.

        Returns:
            What the row means.

        Raises:
            RowProblem: if a column is missing or null, has the wrong type, or what must be learned is empty.
        """
        return self.kind.parse(row, self.columns)


def text_of(row: Row, columns: Columns, role: str, *, required: bool = True) -> str:
    """Read a text column.

    Args:
        row: the values by column.
        columns: role to column.
        role: the role to read.
        required: whether it must be there and hold more than blanks; otherwise missing and null read as empty.

    Returns:
        The text, unchanged.

    Raises:
        RowProblem: if it is missing, null, no text, or empty though required.
    """
    column = columns.get(role, role)
    value = row.get(column)
    if value is None:
        if not required:
            return ""
        raise RowProblem(f"column {column!r} is null" if column in row else f"column {column!r} is missing")
    if not isinstance(value, str):
        raise RowProblem(f"column {column!r} holds {type(value).__name__}, not text")
    if required and not value.strip():
        raise RowProblem(f"column {column!r} is empty")
    return value
