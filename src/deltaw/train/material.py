"""From the settings to training and validation examples."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.errors import DataError
from deltaw.train.config import TrainConfig
from deltaw.train.imprint import LABELS
from deltaw.train.newhead import HINT

if TYPE_CHECKING:
    from deltaw.train.data import Dataset, Example, Format, Rows

__all__ = ["Material", "PermutedPairs", "Source", "fingerprint", "open_rows", "tokenize"]

# Too few rows to hold any out and still say something.
FEW_ROWS = 20
HELD_OUT, MOST_HELD_OUT = 0.05, 512


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows that were looked at, not yet tokenized.

    Args:
        rows: the training file.
        format: what its rows mean.
        task: what the model is trained for.
        valid: the validation file and its format, or None.
        labels: class names by position, where the task settles them.
        valid_name: what the validation rows are called; empty where they are the file that the settings name.
    """

    rows: Rows
    format: Format
    task: str
    valid: tuple[Rows, Format] | None
    labels: tuple[str, ...] = ()
    valid_name: str = ""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Tokenized examples.

    Args:
        train: training examples.
        valid: validation examples, or None.
        labels: class names.
        reason: how validation came about.
        notes: lines the user should see.
    """

    train: Any
    valid: Dataset | None
    labels: tuple[str, ...]
    reason: str
    notes: tuple[str, ...] = ()


def open_rows(config: TrainConfig) -> Source:
    """Open the files and settle format and task.

    Args:
        config: the user's settings.

    Returns:
        The rows.

    Raises:
        DataError: if a file or format is wrong, or the task does not fit the rows.
    """
    from deltaw.train.data import detect, load_rows
    from deltaw.train.tasked import is_task, task_source

    if is_task(config.model.task):
        return task_source(config)
    data, task = config.data, None if config.model.task == "auto" else config.model.task
    options: dict[str, Any] = {"separator": data.separator, "cache_dir": data.cache_dir}
    rows = load_rows(data.path, limit=data.limit, **options)
    found = detect(rows, format=data.format, columns=data.columns, task=task)
    if task is not None and task != found.task:
        raise DataError(
            "the rows do not fit the task",
            where=data.path,
            got=f"format {found.name} ({found.reason}), which is {found.task}",
            expected=f"rows for {task}",
            hint="drop --task, or choose the columns with --column role=name",
        )
    valid = None
    if data.valid is not None:
        held = load_rows(data.valid, **options)
        valid = held, detect(held, format=found.name, columns=data.columns, task=found.task)
    return Source(rows=rows, format=found, task=found.task, valid=valid)


def tokenize(config: TrainConfig, source: Source, tokenizer: Any, max_length: int) -> Material:
    """Tokenize the rows and hold some out.

    Args:
        config: the user's settings.
        source: from ``open_rows``.
        tokenizer: of the model.
        max_length: longest example, in tokens.

    Returns:
        The examples.
    """
    from deltaw.train.data import build, note_overlap, split

    data = config.data
    options: dict[str, Any] = {
        "max_length": max_length, "loss_on": data.loss_on, "truncation": data.truncation,
        "max_truncated": data.max_truncated, "template": data.template, "template_options": dict(data.template_options),
        "system": data.system, "joiner": data.joiner, "end_token": data.end_token, "bad_rows": data.bad_rows,
        "cache_dir": data.cache_dir,
    }  # fmt: skip
    earlier = earlier_labels(config) if source.task == "classification" else None
    known = earlier or ((list(source.labels) or None) if source.task == "classification" else None)
    try:
        whole = build(source.rows, source.format, tokenizer, labels=known, **options)
    except DataError as error:
        raise _other_labels(config, error, earlier) or error from None
    labels = tuple(whole.labels)
    train, valid, reason = whole, None, "no validation rows: "
    if source.valid is not None:
        rows, kind = source.valid
        valid = build(rows, kind, tokenizer, labels=labels or None, **options)
        note_overlap(train, valid)
        reason = f"validation on {len(valid):,} examples of {source.valid_name or data.valid}"
    else:
        count = len(source.rows)
        share = data.valid_fraction
        if share is None:
            share = 0.0 if count < FEW_ROWS else min(HELD_OUT, MOST_HELD_OUT / count)
            reason += f"fewer than {FEW_ROWS} rows, and no --valid" if not share else ""
        else:
            reason += "--valid-fraction 0" if not share else ""
        if share:
            train, valid = split(whole, share, config.run.seed)
            reason = f"validation on {len(valid):,} held-out examples ({share:.1%} of the rows)"
    if not data.shuffle_pairs:
        return Material(train=train, valid=valid, labels=labels, reason=reason)
    permuted = PermutedPairs(train, config.run.seed, max_length)
    return Material(train=permuted, valid=valid, labels=labels, reason=reason, notes=(permuted.note,))


def _other_labels(config: TrainConfig, error: DataError, known: list[str] | None) -> DataError | None:
    """Word rows whose labels the head of the continued adapter does not have."""
    from deltaw.train.data.labels import UNKNOWN_LABEL

    if known is None or UNKNOWN_LABEL not in str(error):
        return None
    return DataError(
        "the rows have labels that the adapter's head does not have",
        where=f"{config.data.path}, with --adapter {config.adapter.start}",
        got=error.got,
        expected=f"labels among {', '.join(known)}",
        hint=HINT,
    )


def earlier_labels(config: TrainConfig) -> list[str] | None:
    """Class names of the adapter that is continued: its head knows them in their order.

    Args:
        config: the user's settings.

    Returns:
        The names; None for a fresh adapter, or one that recorded none.
    """
    import deltaw as dw

    if config.adapter.start is None or config.adapter.new_head:
        return None
    found = dw.Adapter.open(Path(config.adapter.start).expanduser()).metadata.get(LABELS)
    return None if found is None else [str(name) for name in json.loads(found)]


class PermutedPairs:
    """Training examples whose completions (or labels) belong to other prompts: a control for what pairing teaches.

    Args:
        examples: the true pairs.
        seed: of the permutation.
        max_length: longest example; a pair that grew beyond it loses the start of its prompt.
    """

    def __init__(self, examples: Dataset, seed: int, max_length: int) -> None:
        self.examples = examples
        self.partner = list(range(len(examples)))
        random.Random(f"deltaw pairs {seed}").shuffle(self.partner)
        pairs = [_parts(example) for example in (examples[index] for index in range(len(examples)))]
        self.cuts = [
            max(0, len(pairs[index][0]) + len(pairs[partner][1]) - max_length)
            for index, partner in enumerate(self.partner)
        ]
        self.lengths = [
            len(pairs[index][0]) + len(pairs[partner][1]) - self.cuts[index]
            for index, partner in enumerate(self.partner)
        ]
        self.trained_tokens, self.report = examples.trained_tokens, examples.report
        cut = sum(bool(count) for count in self.cuts)
        self.note = "control: completions are permuted among the training prompts" + (
            f"; {cut} of them lost the start of their prompt to fit" if cut else ""
        )

    @property
    def hashes(self) -> Any:
        """Content of the examples, in the order of their completions."""
        return self.examples.hashes[self.partner]

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.partner)

    def __getitem__(self, index: int) -> Example:
        """Join one prompt and its partner's completion.

        Args:
            index: position from 0.

        Returns:
            The example.
        """
        import dataclasses

        own, other = self.examples[index], self.examples[self.partner[index]]
        if own.label is not None:
            return dataclasses.replace(own, label=other.label)
        (prompt, _), (ids, weights) = _parts(own), _completion(other)
        cut = min(self.cuts[index], max(0, len(prompt) - 1))
        # The first token stays: it is the begin token where there is one.
        head = prompt[:1] + prompt[1 + cut :]
        over = len(head) + len(ids) - (self.lengths[index])
        ids, weights = (ids[:-over], weights[:-over]) if over > 0 else (ids, weights)
        return dataclasses.replace(own, ids=head + ids, weights=[0.0] * len(head) + weights)


def _start(example: Example) -> int:
    """Where the completion begins."""
    return next((index for index, weight in enumerate(example.weights) if weight), len(example.ids))


def _parts(example: Example) -> tuple[list[int], list[int]]:
    """(prompt, completion); a labeled example is all prompt."""
    start = _start(example)
    return example.ids[:start], example.ids[start:]


def _completion(example: Example) -> tuple[list[int], list[float]]:
    start = _start(example)
    return example.ids[start:], example.weights[start:]


def fingerprint(examples: Any) -> str:
    """Name the content of examples.

    Args:
        examples: with ``hashes``, one per example in order.

    Returns:
        Sixteen hexadecimal digits; equal for equal tokens, weights and labels in equal order.
    """
    return hashlib.sha256(examples.hashes.tobytes()).hexdigest()[:16]


def check_vocabulary(examples: Sequence[Any], embeddings: int, path: str) -> None:
    """Refuse tokens that the model has no embedding for; a GPU would answer with an assertion in a kernel.

    Args:
        examples: training examples.
        embeddings: rows of the model's input embedding.
        path: the data file, for the message.

    Raises:
        DataError: naming the token.
    """
    for index in range(len(examples)):
        highest = max(examples[index].ids)
        if highest >= embeddings:
            raise DataError(
                "the tokenizer makes tokens that the model does not have",
                where=f"{path}, example {index}",
                got=f"token {highest}",
                expected=f"tokens below {embeddings}, the rows of the model's input embedding",
                hint="use the tokenizer that belongs to the model",
            )
