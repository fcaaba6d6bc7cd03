"""The formats of rows. A new one is one file beside this one and one line in ``KINDS``."""

from __future__ import annotations

from deltaw.train.data.formats import alpaca, labelled, messages, prompt_completion, sharegpt, text
from deltaw.train.data.formats.base import Format, Kind

__all__ = ["KINDS", "Format", "Kind"]

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        messages.KIND,
        sharegpt.KIND,
        alpaca.KIND,
        prompt_completion.KIND,
        labelled.PAIR,
        labelled.SINGLE,
        text.KIND,
    )
}
