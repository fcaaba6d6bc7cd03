"""Answers on disk: a run that can be continued, and the layouts that the public scorers read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deltaw.errors import ConfigError, ResumeError
from deltaw.paper.decode import Answer
from deltaw.train.files import write_text

__all__ = ["ANSWERS", "SETTINGS", "Store", "fingerprint", "write_e2e", "write_numbered"]

ANSWERS, SETTINGS = "predictions.jsonl", "decode.json"


def fingerprint(contexts: Sequence[str]) -> str:
    """Name a list of inputs.

    Args:
        contexts: in order.

    Returns:
        Sixteen hexadecimal digits.
    """
    return hashlib.sha256("\0".join(contexts).encode()).hexdigest()[:16]


class Store:
    """The answers of one decoding run, appended batch by batch.

    Args:
        directory: made if absent.
        settings: what the answers depend on; a directory with others is refused.
        overwrite: start anew in a directory that holds answers.

    Raises:
        ConfigError: if the directory is a file.
        ResumeError: if it holds answers to other settings.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.directory = directory
        self.answers: dict[int, Answer] = {}
        if directory.exists() and not directory.is_dir():
            raise ConfigError(
                "the output is a file",
                where=str(directory),
                got="a file",
                expected="a directory",
                hint="choose another --output",
            )
        wanted = json.loads(json.dumps(settings))
        if not overwrite:
            self._check(wanted)
            self.answers = _read(directory / ANSWERS)
        self.resumed = len(self.answers)
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / SETTINGS, json.dumps(wanted, indent=2) + "\n")
        # what a killed run wrote in part is left out
        self._rewrite()

    def _check(self, wanted: Mapping[str, Any]) -> None:
        place = self.directory / SETTINGS
        if not place.is_file():
            return
        found = json.loads(place.read_text(encoding="utf-8"))
        names = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        if names:
            raise ResumeError(
                "the directory holds answers that were found otherwise",
                where=str(self.directory),
                got="; ".join(f"{name}: {wanted.get(name)}" for name in names),
                expected="; ".join(f"{name}: {found.get(name)}" for name in names),
                hint="choose another --output, or add --overwrite to decode anew",
            )

    def _rewrite(self) -> None:
        lines = [_line(self.answers[id]) for id in sorted(self.answers)]
        write_text(self.directory / ANSWERS, "".join(lines))

    def add(self, answers: Sequence[Answer]) -> None:
        """Append the answers of a batch; those that are there already stay as they are.

        Args:
            answers: of one batch.
        """
        fresh = [answer for answer in answers if answer.id not in self.answers]
        with (self.directory / ANSWERS).open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, fresh)))
        self.answers.update({answer.id: answer for answer in fresh})

    def finish(self) -> list[Answer]:
        """Put the file in the order of the inputs.

        Returns:
            All answers, in that order.
        """
        self._rewrite()
        return [self.answers[id] for id in sorted(self.answers)]


def _line(answer: Answer) -> str:
    return json.dumps(dataclasses.asdict(answer), ensure_ascii=False) + "\n"


def _read(place: Path) -> dict[int, Answer]:
    """Answers that were written whole: a kill leaves at most one broken line, the last."""
    if not place.is_file():
        return {}
    found = {}
    for line in place.read_text(encoding="utf-8").split("\n"):
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[answer.id] = answer
    return found


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def write_e2e(directory: Path, answers: Sequence[Answer], references: Sequence[Sequence[str]]) -> tuple[str, str]:
    """Write what e2e-metrics reads: one answer a line, and the references in blocks with a blank line between.

    Args:
        directory: where to.
        answers: in the order of the inputs.
        references: of each input; none writes the answers alone.

    Returns:
        Names of the files.
    """
    write_text(directory / "predictions.txt", "".join(_one_line(answer.prediction) + "\n" for answer in answers))
    if not references:
        return ("predictions.txt", "")
    blocks = ("".join(_one_line(text) + "\n" for text in block) for block in references)
    write_text(directory / "references.txt", "\n".join(blocks))
    return ("predictions.txt", "references.txt")


def write_numbered(
    directory: Path, answers: Sequence[Answer], references: Sequence[Sequence[str]], count: int
) -> tuple[str, ...]:
    """Write what GenerationEval reads for WebNLG and DART: reference0, reference1, ..., one line an input.

    Args:
        directory: where to.
        answers: in the order of the inputs.
        references: of each input, at least one.
        count: files; where an input has fewer references its first one is repeated, and further ones are left out.

    Returns:
        Names of the files.
    """
    write_text(directory / "hypothesis", "".join(_one_line(answer.prediction) + "\n" for answer in answers))
    for number in range(count):
        lines = [block[number] if number < len(block) else block[0] for block in references]
        write_text(directory / f"reference{number}", "".join(_one_line(line) + "\n" for line in lines))
    return ("hypothesis", *(f"reference{number}" for number in range(count)))
