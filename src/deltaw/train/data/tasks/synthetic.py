"""Made-up stand-ins in a task's own layout, for where the real data may not be used or cannot be had.

The sentences come from a handful of words, so a model learns them in minutes and a figure on them says nothing about
the task. A file beside them says so, and every reader repeats it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltaw.errors import ConfigError
from deltaw.train.data.tasks.base import Task
from deltaw.train.data.tasks.files import MARK
from deltaw.train.data.tasks.reading import task_named
from deltaw.train.files import replace_directory

__all__ = ["synthesize"]

NAMES = ("Alder House", "Birch Inn", "Cedar Cafe", "Dogwood Bar", "Elm Kitchen", "Fir Lodge")
FOODS = ("Nordic", "Thai", "Peruvian", "Greek", "Basque")
PLACES = ("harbor", "old town", "hill", "station", "market")
PEOPLE = ("Ada", "Ben", "Cleo", "Dan")
GOOD, BAD = ("bright", "warm", "clever", "moving"), ("dull", "cold", "clumsy", "empty")

Files = dict[str, str]


def synthesize(name: str, directory: str | Path, *, rows: int = 200, seed: int = 0) -> list[str]:
    """Write a stand-in for a task.

    Args:
        name: the task.
        directory: a new directory, in an existing one.
        rows: training examples, at least 10; a fifth as many in every other split.
        seed: of the words; equal seeds give equal bytes.

    Returns:
        Names of the files written; ``SYNTHETIC.txt`` among them is the label.

    Raises:
        ConfigError: if the task is unknown, draws its rows from another, or the directory exists or has no parent.
    """
    task, target = task_named(name), Path(directory).expanduser()
    if task.draw:
        raise _refusal("a drawn task has no files of its own", name, "a task with files", f"make {task.whole} instead")
    if target.exists() or not target.parent.is_dir():
        got = "a path that exists" if target.exists() else "a directory whose parent does not exist"
        raise _refusal(
            "a stand-in cannot be written there", f"{got}, {target}", "a new directory", "choose another name"
        )
    if rows < 10:
        raise _refusal("a stand-in is too small", f"{rows} rows", "at least 10", "ask for more rows")
    files: Files = {MARK: _label(task, rows, seed)}
    for split, part in task.splits.items():
        if part.layouts:
            random_words = random.Random(f"deltaw synthetic {name} {split} {seed}")
            _writer(task)(task, split, rows if split == "train" else max(2, rows // 5), random_words, files)

    def fill(place: Path) -> None:
        for file, content in files.items():
            (place / file).write_bytes(content.encode("utf-8"))

    replace_directory(target, fill)
    return sorted(files)


def _label(task: Task, rows: int, seed: int) -> str:
    return (
        f"SYNTHETIC. The files of this directory were made up by deltaw ({rows} training rows, seed {seed}).\n"
        f"They have the layout of {task.title} and none of its data. Figures on them are not figures on the task.\n"
    )


def _refusal(what: str, got: str, expected: str, hint: str) -> ConfigError:
    return ConfigError(what, where="the synthetic stand-in", got=got, expected=expected, hint=f"{hint}.")


Writer = Callable[[Task, str, int, random.Random, Files], None]


def _writer(task: Task) -> Writer:
    special = {"e2e": _e2e, "webnlg": _webnlg, "dart": _dart, "wikisql": _wikisql, "samsum": _samsum}
    if task.name in special:
        return special[task.name]
    return _subset if task.subset else _glue


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _e2e(task: Task, split: str, count: int, words: random.Random, files: Files) -> None:
    lines: list[str] = []
    while len(lines) < count:
        name, food, place = words.choice(NAMES), words.choice(FOODS), words.choice(PLACES)
        record = f"name : {name} | food : {food} | area : {place}"
        texts = (f"{name} serves {food} food in the {place} .", f"In the {place} is {name} , a {food} place .")
        lines += [f"{record}||{text} " for text in texts]
    files[task.splits[split].layouts[0].files[0]] = "\n".join(lines[:count]) + "\n"


def _facts(words: random.Random) -> tuple[list[tuple[str, str, str]], list[str]]:
    name, food, place = words.choice(NAMES).replace(" ", "_"), words.choice(FOODS), words.choice(PLACES)
    plain = name.replace("_", " ")
    texts = [f"{plain} in the {place} serves {food} food.", f"The {food} food of {plain} is served in the {place}."]
    return [(name, "servesFood", food), (name, "isLocatedIn", place)], texts


def _webnlg(task: Task, split: str, count: int, words: random.Random, files: Files) -> None:
    entries: list[Any] = []
    for number in range(1, count // 2 + 2):
        triples, texts = _facts(words)
        category = "Artist" if split == "test" and number % 2 else "Food"
        made = texts[: count - 2 * (number - 1)]
        entries.append({str(number): {
            "category": category,
            "modifiedtripleset": [{"subject": s, "property": p, "object": o} for s, p, o in triples],
            "lexicalisations": [{"comment": "good", "lang": "", "lex": text} for text in made],
        }})  # fmt: skip
    entries = [entry for entry in entries if next(iter(entry.values()))["lexicalisations"]]
    files[task.splits[split].layouts[0].files[0]] = _json({"entries": entries})


def _dart(task: Task, split: str, count: int, words: random.Random, files: Files) -> None:
    records: list[Any] = []
    while count > 0:
        triples, texts = _facts(words)
        made = [{"source": "synthetic", "text": text} for text in texts[:count]]
        upper = [[s, p.upper(), o] for s, p, o in triples]
        records.append({"tripleset": upper, "subtree_was_extended": False, "annotations": made})
        count -= len(made)
    files[task.splits[split].layouts[0].files[0]] = _json(records)


def _sentence(words: random.Random, good: bool) -> str:
    return f"the {words.choice(PLACES)} story is {words.choice(GOOD if good else BAD)} and {words.choice(FOODS)}"


def _labelled(task: Task, words: random.Random) -> tuple[str, str, str]:
    """Two texts whose relation a model can see, and the class or score that follows from it."""
    first = _sentence(words, words.random() < 0.5)
    if not task.labels:
        score = words.randrange(6)
        common = first.split()[:score] or ["nothing"]
        return first, f"{' '.join(common)} at all", f"{score:.3f}"
    place = words.randrange(len(task.labels))
    if task.name == "sst2":
        return _sentence(words, place == 1), "", task.labels[place]
    if task.name == "cola":
        shown = first if place == 1 else " ".join(reversed(first.split()))
        return shown, "", task.labels[place]
    ends = {2: ("and so it is", "which nobody knows"), 3: ("and so it is", "which nobody knows", "and never was")}
    agree = ("entailment", "equivalent", "duplicate")
    order = sorted(task.labels, key=lambda name: name not in agree)
    return first, f"{first} {ends[len(order)][order.index(task.labels[place])]}", task.labels[place]


HEADERS = {
    "sst2": "sentence label",
    "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "mnli": "index promptID pairID genre sentence1 sentence2 label1 gold_label",
    "qnli": "index question sentence label",
    "rte": "index sentence1 sentence2 label",
}
_FIRST, _SECOND = ("sentence1", "question1", "#1 String"), ("sentence2", "question2", "#2 String")
_LABEL = ("label", "gold_label", "is_duplicate", "Quality", "score", "label1")


def _glue(task: Task, split: str, count: int, words: random.Random, files: Files) -> None:
    texts = [_labelled(task, words) for _ in range(count)]
    numbered = task.name in ("sst2", "cola", "mrpc", "qqp")
    rows = [(first, second, str(task.labels.index(name)) if numbered else name) for first, second, name in texts]
    file = task.splits[split].layouts[0].files[0]
    if task.name == "cola":
        files[file] = "".join(f"syn{number}\t{label}\t\t{text}\n" for number, (text, _, label) in enumerate(rows))
        return
    header = HEADERS[task.name].split("|" if "|" in HEADERS[task.name] else " ")
    lines = ["\t".join(header)]
    lines += ["\t".join(_cell(task, name, number, row) for name in header) for number, row in enumerate(rows)]
    mark = "\ufeff" if task.name == "mrpc" else ""
    files[file] = mark + "\n".join(lines) + "\n"


def _cell(task: Task, name: str, number: int, row: tuple[str, str, str]) -> str:
    first, second, label = row
    if name in _LABEL:
        return label
    if name in _FIRST or (name == "question") or (name == "sentence" and task.name == "sst2"):
        return first
    return second if name in _SECOND or name == "sentence" else f"syn{number}"


def _subset(task: Task, split: str, count: int, words: random.Random, files: Files) -> None:
    rows = [_labelled(task, words) for _ in range(count)]
    value = {str(at): {"text_a": a, "text_b": b, "label": label} for at, (a, b, label) in enumerate(rows)}
    files[task.splits[split].layouts[0].files[0]] = _json(value)


def _wikisql(task: Task, split: str, count: int, words: random.Random, files: Files) -> None:
    questions, tables = task.splits[split].layouts[0].files
    table = {
        "id": "syn-1", "header": ["Name", "Food", "Area", "Guests"], "types": ["text", "text", "text", "real"],
        "rows": [[name, words.choice(FOODS), words.choice(PLACES), words.randrange(9, 99)] for name in NAMES],
    }  # fmt: skip
    lines = []
    for number in range(count):
        name, food, guests = words.choice(NAMES), words.choice(FOODS), words.randrange(9, 99)
        form = number % 3
        asked, sql = (
            (f"Where is {name}?", {"sel": 2, "agg": 0, "conds": [[0, 0, name]]}),
            (f"How many places serve {food} food?", {"sel": 0, "agg": 3, "conds": [[1, 0, food]]}),
            (f"Who serves {food} food to more than {guests}?",
             {"sel": 0, "agg": 0, "conds": [[1, 0, food], [3, 1, guests]]}),
        )[form]  # fmt: skip
        lines.append(json.dumps({"phase": 1, "table_id": "syn-1", "question": asked, "sql": sql}))
    files[questions], files[tables] = "\n".join(lines) + "\n", json.dumps(table) + "\n"


def _samsum(task: Task, split: str, count: int, words: random.Random, files: Files) -> None:
    rows = []
    for number in range(count):
        one, two = words.sample(PEOPLE, 2)
        food, place = words.choice(FOODS), words.choice(PLACES)
        talk = f"{one}: Shall we eat {food} tonight?\r\n{two}: Yes, in the {place}.\r\n{one}: See you there!"
        summary = f"{one} and {two} will eat {food} in the {place} tonight."
        rows.append({"id": f"synthetic-{split}-{number}", "dialogue": talk, "summary": summary})
    files[task.splits[split].layouts[0].files[0]] = _json(rows)
