"""Tokenize rows into a data set, or take it from the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltaw.errors import ConfigError, DataError, nearest
from deltaw.train.data.cache import Writer, key_of, open_store
from deltaw.train.data.dataset import Dataset
from deltaw.train.data.formats.base import Format, Labelled, Record
from deltaw.train.data.labels import ClassNames, score
from deltaw.train.data.prompts import renderer_for
from deltaw.train.data.report import DataReport, length_stats
from deltaw.train.data.rows import Rows
from deltaw.train.data.sources.base import RowProblem
from deltaw.train.data.sources.place import cache_root
from deltaw.train.data.templates import Rendered, Renderer
from deltaw.train.data.tokenizer import tokenizer_hash
from deltaw.train.data.tokens import Affixes, Encoded, affixes, encode, encode_labelled, end_token_id
from deltaw.train.data.truncate import fit, refuse_share

__all__ = ["Options", "build"]

_BATCH = 256
_SHOWN = 10

CHOICES = {
    "loss_on": ("completion", "all"),
    "truncation": ("refuse", "cut", "cut-prompt", "drop"),
    "system": ("keep", "fold", "drop"),
    "bad_rows": ("refuse", "drop"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How rows become tokens.

    Args:
        max_length: tokens at most per example.
        loss_on: ``completion`` trains answers, ``all`` every token.
        truncation: for examples over ``max_length``: ``refuse`` cuts their end and refuses the file when their share is
            over ``max_truncated``; ``cut`` cuts without a limit; ``cut-prompt`` cuts the start of the prompt, so that
            the answer stays whole; ``drop`` leaves them out. All are counted.
        max_truncated: share of examples, 0 to 1, that ``refuse`` accepts to be cut.
        template: ``auto``, ``plain``, ``default``, or the text of a chat template; see
            :class:`deltaw.train.data.templates.Renderer`.
        template_options: variables for the chat template.
        system: ``keep``, ``fold`` or ``drop`` system turns.
        joiner: what stands between a plain prompt and its completion.
        end_token: ``auto``, ``none``, or the text of a token.
        bad_rows: ``refuse`` raises one error over all broken rows, ``drop`` leaves them out and counts them.
    """

    max_length: int
    loss_on: str = "completion"
    truncation: str = "refuse"
    max_truncated: float = 0.05
    template: str = "auto"
    template_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    system: str = "keep"
    joiner: str = "auto"
    end_token: str = "auto"
    bad_rows: str = "refuse"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                hint = f"closest: {nearest(value, choices, 1)}."
                raise ConfigError(
                    "a data option has no such value",
                    where=name,
                    got=repr(value),
                    expected=" or ".join(choices),
                    hint=hint,
                )
        if self.max_length < 2:
            raise ConfigError(
                "the maximum length is too small",
                where="max_length",
                got=str(self.max_length),
                expected="at least 2 tokens: one to read, one to predict",
                hint="leave it out to use the model's context length.",
            )
        if not 0 <= self.max_truncated <= 1:
            raise ConfigError(
                "a share is out of range",
                where="max_truncated",
                got=str(self.max_truncated),
                expected="a number from 0 to 1",
                hint="0.05 accepts that 5 % of the examples are cut.",
            )


def build(
    rows: Rows,
    format: Format,
    tokenizer: Any,
    *,
    max_length: int,
    loss_on: str = "completion",
    truncation: str = "refuse",
    max_truncated: float = 0.05,
    template: str = "auto",
    template_options: Mapping[str, Any] | None = None,
    system: str = "keep",
    joiner: str = "auto",
    end_token: str = "auto",
    bad_rows: str = "refuse",
    labels: Sequence[str] | None = None,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Tokenize rows, or take the result of an earlier, identical call from the cache.

    Args:
        rows: from :func:`deltaw.train.data.load_rows`.
        format: from :func:`deltaw.train.data.detect`.
        tokenizer: a transformers tokenizer.
        max_length: see :class:`Options`, as the arguments down to ``bad_rows``.
        loss_on: which tokens are trained.
        truncation: what happens to examples that are too long.
        max_truncated: share of cut examples that is accepted.
        template: how a row becomes text.
        template_options: variables for the chat template.
        system: what happens to system turns.
        joiner: what stands between a plain prompt and its completion.
        end_token: what ends an answer.
        bad_rows: what happens to broken rows.
        labels: class names by position, from the training data; None to collect and sort them.
        cache_dir: see :func:`deltaw.train.data.sources.place.cache_root`.
        progress: called with (rows done, rows in all) now and then.

    Returns:
        The examples, with a report of what became of the rows.

    Raises:
        ConfigError: if an option is wrong.
        DataError: if rows are broken (all of them named in one error), too many are too long, or nothing is left.
    """
    options = Options(
        max_length=max_length,
        loss_on=loss_on,
        truncation=truncation,
        max_truncated=max_truncated,
        template=template,
        template_options=template_options or {},
        system=system,
        joiner=joiner,
        end_token=end_token,
        bad_rows=bad_rows,
    )
    return _cached(rows, format, tokenizer, options, labels, cache_root(cache_dir), progress)


def _cached(
    rows: Rows,
    format: Format,
    tokenizer: Any,
    options: Options,
    labels: Sequence[str] | None,
    root: Path,
    progress: Callable[[int, int], None] | None,
) -> Dataset:
    if format.task != "causal" and options.truncation == "cut-prompt":
        raise ConfigError(
            "a text with a label has no prompt to cut",
            where="truncation",
            got=f"cut-prompt for {format.task}",
            expected="refuse, cut or drop",
            hint="choose --truncation cut to keep the start of each text.",
        )
    added = affixes(tokenizer)
    renderer = renderer_for(
        tokenizer,
        added,
        template=options.template,
        options=dict(options.template_options),
        system=options.system,
        joiner=options.joiner,
    )
    end_id = None if format.task != "causal" else _end(tokenizer, options, renderer, format)
    if end_id is not None:
        renderer.set_end(str(tokenizer.convert_ids_to_tokens(end_id)))
    decides = {
        "chat": renderer.chat_template,
        **dataclasses.asdict(options),
        "labels": labels,
        "format": [format.name, dict(format.columns), format.task],
    }
    # The limit on cut examples decides whether they are accepted, not what they are.
    decides |= {"max_truncated": 0, "truncation": "cut" if options.truncation == "refuse" else options.truncation}
    key = key_of({**decides, "rows": rows.identity(), "tokenizer": tokenizer_hash(tokenizer)})
    store = open_store(root, key)
    cached = store is not None
    if store is None:
        _Job(rows, format, tokenizer, options, renderer, added, end_id, labels, progress).run(root, key)
        store = open_store(root, key)
        assert store is not None, "a data set that was just written can be read"
    report = dataclasses.replace(
        store.report,
        path=str(rows.path),
        reason=format.reason,
        truncation=options.truncation,
        cached=cached,
        cache=str(root / "tokens" / key),
    )
    refuse_share(report, options.truncation, options.max_truncated)
    return Dataset(store, format, renderer, report)


def _end(tokenizer: Any, options: Options, renderer: Renderer, format: Format) -> int | None:
    """Find the end token; a chat template that brings its own makes one of the tokenizer dispensable."""
    templated = not renderer.is_default and format.name != "text"
    if templated and options.end_token == "auto" and tokenizer.eos_token_id is None:
        return None
    return end_token_id(tokenizer, options.end_token)


class _Job:
    """One tokenization: reads, renders, encodes, truncates, writes and counts."""

    def __init__(
        self,
        rows: Rows,
        format: Format,
        tokenizer: Any,
        options: Options,
        renderer: Renderer,
        added: Affixes,
        end_id: int | None,
        labels: Sequence[str] | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.rows, self.format, self.tokenizer, self.options = rows, format, tokenizer, options
        self.renderer, self.added, self.progress = renderer, added, progress
        self.problems: list[tuple[int, str]] = []
        self.labelled = format.task != "causal"
        self.names = ClassNames(labels) if format.task == "classification" else None
        self.end_id = end_id
        self.kinds: set[type] = set()
        self.report = DataReport(
            path=str(rows.path),
            kind=rows.kind,
            rows=len(rows),
            format=format.name,
            reason=format.reason,
            task=format.task,
            max_length=options.max_length,
            notes=list(rows.notes),
        )

    def run(self, root: Path, key: str) -> None:
        try:
            self.writer = Writer(root, key, self.labelled)
        except OSError as error:
            raise _unwritable(root, error) from error
        try:
            self._read()
            self._refuse_problems()
            self._refuse_nothing()
            names = self._settle_labels()
            self._summarize()
            self.writer.finish(self.report, names, whole_labels=self.names is not None)
        except OSError as error:
            self.writer.abort()
            raise _unwritable(root, error) from error
        except BaseException:
            self.writer.abort()
            raise

    def _read(self) -> None:
        batch: list[tuple[int, Any]] = []
        for index, row in self.rows.each():
            try:
                if isinstance(row, RowProblem):
                    raise row
                record = self.format.parse(row)
                batch.extend((index, item) for item in self._prepare(record))
                self._look(record, index)
            except RowProblem as problem:
                self.problems.append((index, str(problem)))
            if len(batch) >= _BATCH:
                self._encode(batch)
                batch = []
            if self.progress and (index + 1) % _BATCH == 0:
                self.progress(index + 1, len(self.rows))
        self._encode(batch)
        if self.progress:
            self.progress(len(self.rows), len(self.rows))

    def _prepare(self, record: Record) -> Sequence[Any]:
        self.kinds.add(type(record))
        if isinstance(record, Labelled):
            label = self.names.position(record.label) if self.names else score(record.label)
            return [(record.text_a, record.text_b, label)]
        return self.renderer.render(record)

    def _look(self, record: Record, index: int) -> None:
        """Count rows whose own text contains a special token's: it becomes that token, which is seldom meant."""
        if isinstance(record, Labelled):
            return
        values = [vars(message) if not isinstance(message, dict) else message for message in _texts(record)]
        if any(
            special in str(value) for item in values for value in item.values() for special in self.renderer.specials
        ):
            self.report.special.add(self.rows.number(index))

    def _encode(self, batch: list[tuple[int, Any]]) -> None:
        # After the first broken row the rest is only read, so that all problems are found quickly.
        if not batch or (self.problems and self.options.bad_rows == "refuse"):
            return
        if self.labelled:
            pairs = [(first, second) for _, (first, second, _) in batch]
            found = encode_labelled(self.tokenizer, pairs, self.added, self.options.max_length)
            for (index, (_, _, label)), (encoded, length) in zip(batch, found, strict=True):
                self._add_labelled(index, encoded, length, label)
            return
        texts: list[Rendered] = [item for _, item in batch]
        for (index, _), encoded in zip(batch, encode(self.tokenizer, texts, self.added, self.end_id), strict=True):
            place = self.rows.number(index)
            if encoded.across:
                self.report.across.add(place)
            if encoded.begun:
                self.report.begun.add(place)
            if self.options.loss_on == "all":
                encoded.weights = [0.0] + [1.0] * (len(encoded.ids) - 1)
            for ids, weights in fit(encoded, self.options, self.added, self.report, place):
                self.writer.add(ids, index, weights=weights)

    def _add_labelled(self, index: int, encoded: Encoded, length: int, label: float) -> None:
        place = self.rows.number(index)
        if length > self.options.max_length:
            if self.options.truncation == "drop":
                self.report.too_long.add(place)
                return
            self.report.cut.add(place)
        self.writer.add(encoded.ids, index, types=encoded.types, label=float(label))

    def _refuse_problems(self) -> None:
        if self.options.bad_rows == "drop":
            for index, message in self.problems:
                self.report.bad.add(f"{self.rows.number(index)}: {message}")
            return
        if self.problems:
            raise problems_error(self.rows, self.format, self.problems)

    def _refuse_nothing(self) -> None:
        if len(self.writer):
            return
        raise DataError(
            "no example is left to train on",
            where=str(self.rows.path),
            got=f"{len(self.rows)} rows; {self.report.lost.count + self.report.too_long.count} too long, "
            f"{self.report.untrained.count} with nothing to train, {self.report.bad.count} broken",
            expected="at least one example",
            hint="raise --max-length or choose --truncation cut-prompt; deltaw data show shows the rows.",
        )

    def _settle_labels(self) -> tuple[str, ...]:
        if self.names is None:
            return ()
        names, positions, counts = self.names.settle(self.rows)
        self.writer.relabel(positions)
        self.report.labels = dict(zip(names, counts, strict=True))
        return names

    def _summarize(self) -> None:
        arrays, report = self.writer.arrays(), self.report
        lengths = np.diff(arrays["offsets"])
        report.lengths, report.histogram = length_stats(lengths)
        report.examples, report.tokens = len(lengths), int(lengths.sum())
        report.trained_tokens = int(arrays["trained"].sum())
        report.duplicates = len(lengths) - len(np.unique(arrays["hashes"]))
        report.unrolled, report.without_end = self.renderer.unrolled, self.renderer.without_end
        if self.labelled:
            if self.added.joins_pairs and self.format.name == "pair_label":
                report.notes.append(
                    "the tokenizer has no separator for pairs: the two texts are joined by a line break"
                )
            return
        report.template = self.renderer.describe(self.kinds)
        own = "" if self.end_id is None else str(self.tokenizer.convert_ids_to_tokens(self.end_id))
        ends = self.renderer.ends | ({own} if self.renderer.appends and own else set())
        report.end_token = ", ".join(sorted(ends))
        for end in sorted(ends - {own}):
            report.notes.append(
                f"the template ends answers with {end!r}, the tokenizer's end token is {own!r}: generation has to stop "
                "at the former too, and a base that never saw it cannot learn it from frozen embeddings"
            )


def _unwritable(root: Path, error: OSError) -> DataError:
    return DataError(
        "tokenized data cannot be written",
        where=str(root),
        got=f"{type(error).__name__}: {error.strerror or error}",
        expected="room for 8 bytes per token",
        hint="make room, or name another place with --cache-dir or the environment's DELTAW_CACHE.",
    )


def _texts(record: Record) -> Sequence[Any]:
    messages = getattr(record, "messages", None)
    return messages if messages is not None else [record]


def problems_error(rows: Rows, format: Format, problems: list[tuple[int, str]]) -> DataError:
    """Build the one error over all broken rows.

    Args:
        rows: the file.
        format: what the rows should be.
        problems: (position, message), at least one.

    Returns:
        The error, to be raised by the caller.
    """
    shown = [f"{rows.number(index)}: {message}" for index, message in problems[:_SHOWN]]
    rest = f"\n    and {len(problems) - _SHOWN:,} more" if len(problems) > _SHOWN else ""
    hint = "correct these rows, or pass --bad-rows drop to leave them out."
    if any("chat template refuses" in message and "system" in message.lower() for _, message in problems):
        hint = "pass --system fold to put system text into the first user turn, or --system drop."
    elif any("is not how it renders that turn" in message for _, message in problems):
        hint = "set the template's variables so that both agree, such as --template-options enable_thinking=false."
    elif any("is missing" in message for _, message in problems):
        hint = "correct these rows, name the right column with --column ROLE=COLUMN, or pass --bad-rows drop."
    return DataError(
        f"{len(problems):,} of {len(rows):,} rows cannot be used",
        where=str(rows.path),
        got="\n    ".join(shown) + rest,
        expected=f"rows of the format {format.name}, like {format.kind.example}",
        hint=hint,
    )
