"""What an adapter's file says of its training, so that it is used the way it was trained.

Both entries stand in the safetensors metadata, which other readers ignore.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from deltaw.baselines.worn import find_worn
from deltaw.record import find_record
from deltaw.train.vocabulary import TOKENS

__all__ = ["FORM", "LABELS", "TASK", "PromptForm", "imprint"]

LABELS = "labels"
"""Key of the class names by position, a JSON list."""

TASK = "task"
"""Key of what the adapter was trained for: causal, classification or regression."""

FORM = "prompts"
"""Key of the form in which prompts stood before the answers, a JSON object."""


@dataclass(frozen=True, kw_only=True)
class PromptForm:
    """How training wrote what stands before an answer.

    Args:
        rows: format of the rows, such as ``prompt_completion``, ``messages`` or ``text``.
        template: as in ``deltaw.train.data.build``, like the fields below.
        template_options: variables of the chat template.
        system: what happened to system turns.
        joiner: what stood between a plain prompt and its completion.
    """

    rows: str
    template: str = "auto"
    template_options: Mapping[str, Any] = field(default_factory=dict)
    system: str = "keep"
    joiner: str = "auto"

    def dumps(self) -> str:
        """Write the form as metadata.

        Returns:
            JSON text.
        """
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def loads(cls, text: str) -> PromptForm | None:
        """Read a form that ``dumps`` wrote.

        Args:
            text: the metadata.

        Returns:
            The form; None where the text is none.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            return None

    def settings(self) -> dict[str, Any]:
        """What ``deltaw.train.data.prompt_ids`` takes.

        Returns:
            Its keyword arguments.
        """
        values = dataclasses.asdict(self)
        del values["rows"]
        return values


def imprint(
    model: nn.Module, name: str, *, labels: Sequence[str] = (), form: PromptForm | None = None, task: str = "",
    new_tokens: Sequence[str] = (),
) -> None:  # fmt: skip
    """Note with a worn adapter what its use needs to know; ``save`` writes it.

    Args:
        model: the model; nothing happens where it wears neither such an adapter nor a baseline.
        name: the adapter.
        labels: class names by position; none are noted where empty.
        form: the form of prompts, or None.
        task: what it was trained for; not noted where empty.
        new_tokens: tokens that were added to the base's vocabulary; not noted where empty.
    """
    record, worn = find_record(model), find_worn(model)
    if worn is not None:
        metadata = worn.metadata
    elif record is not None and name in record.adapters:
        metadata = record.adapters[name].metadata
    else:
        return
    if labels:
        metadata[LABELS] = json.dumps(list(labels))
    if form is not None:
        metadata[FORM] = form.dumps()
    if task:
        metadata[TASK] = task
    if new_tokens:
        metadata[TOKENS] = json.dumps(list(new_tokens))
