"""Generate the pretraining text of the demo's base: seeded, endless, written by nobody but the rules beside this file.

Usage:
    python demo/make_corpus.py --documents 10 --seed 1
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Iterator

from grammar import RULES
from lexicon import DRAWS, person
from notes import BRIDGES, CLAUSES, LABELS, OPENERS, QUESTIONS, ROWS, SENTENCES, TITLES

TOKEN = re.compile(r"<(\w+)>|\{(\w+?)(\d*)\}|\[([^\[\]]*)\]")
PERSON_PARTS = {"full", "first", "sur", "he", "him", "his"}
LISTS = (
    "- {label} - {value}",
    "{label}: {value}",
    "{label} = {value}",
    "({label}) {value}",
    "{label}, {value}",
    "* {value} ({label})",
)
JOINTS = ("\n", "\n", "\n", "; ", ", ", " / ", " + ")


class Scene:
    """Expands text of one document and keeps its numbered values.

    Args:
        rng: source of chance; the whole document is a function of its state.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.kept: dict[str, str] = {}
        self.used: set[str] = set()

    def expand(self, text: str) -> str:
        """Replace rules, choices and slots until none is left.

        Args:
            text: a text of the grammar.

        Returns:
            Plain text.
        """
        while TOKEN.search(text):
            text = TOKEN.sub(self._replace, text)
        return text

    def value(self, kind: str, number: str) -> str:
        """Give the value of a slot.

        Args:
            kind: kind of value, such as ``town``.
            number: digits that name a kept value, or "" for a fresh one.

        Returns:
            The value; the same one for the same kind and number.
        """
        if kind in PERSON_PARTS:
            return self._person_part(kind, number)
        if not number:
            return DRAWS[kind](self.rng)
        key = kind + number
        if key not in self.kept:
            # Two kept values of one kind must differ, or a text that sets them against each other would make no sense.
            taken = {value for name, value in self.kept.items() if name.rstrip("0123456789") == kind}
            drawn = DRAWS[kind](self.rng)
            while drawn in taken:
                drawn = DRAWS[kind](self.rng)
            self.kept[key] = drawn
        return self.kept[key]

    def _person_part(self, part: str, number: str) -> str:
        if not number or part + number not in self.kept:
            first, last, she = person(self.rng)
            parts = {"first": first, "sur": last, "full": f"{first} {last}"}
            parts |= dict(
                zip(("he", "him", "his"), ("she", "her", "her") if she else ("he", "him", "his"), strict=True)
            )
            if not number:
                return parts[part]
            self.kept |= {name + number: text for name, text in parts.items()}
        return self.kept[part + number]

    def _replace(self, match: re.Match[str]) -> str:
        rule, kind, number, choice = match.groups()
        if rule:
            if rule in SPECIAL:
                return SPECIAL[rule](self)
            fresh = [text for text in RULES[rule] if text not in self.used or "{" not in text]
            text = self.rng.choice(fresh or RULES[rule])
            self.used.add(text)
            return text
        if kind:
            return self.value(kind, number)
        return self.rng.choice(choice.split("|"))


def fitting(slots: set[str], pool: tuple[str, ...]) -> list[str]:
    """Select the sentences that speak only of shown values.

    Args:
        slots: slots whose values the reader has seen.
        pool: sentences of the grammar.

    Returns:
        The sentences all of whose kept slots are among ``slots``.
    """
    return [line for line in pool if set(re.findall(r"\{(\w+\d)\}", line)) <= slots]


def shown(scene: Scene, low: int, high: int) -> list[str]:
    """Draw which values a note holds, the thing and its person nearly always among them."""
    rest = [slot for slot in LABELS if slot not in {"item1", "full1"}]
    slots = [slot for slot in ("item1", "full1") if scene.rng.random() < 0.9]
    slots += scene.rng.sample(rest, scene.rng.randint(low, high) - 1)
    scene.rng.shuffle(slots)
    return slots


def told(scene: Scene, slots: list[str], high: int) -> str:
    """Write sentences about the shown values, each with news: one chain of clauses, or several sentences."""
    rng, sentences, said = scene.rng, [], set()
    if rng.random() < 0.4:
        parts = [rng.choice(CLAUSES[slot]) for slot in rng.sample(slots, rng.randint(1, len(slots)))]
        opener = rng.choice(fitting(set(slots), OPENERS) or ["note"])
        said = set(re.findall(r"\{(\w+\d)\}", opener))
        parts = [part for part in parts if not set(re.findall(r"\{(\w+\d)\}", part)) <= said] or ["at hand"]
        sentences.append(", ".join([opener, *parts[:-1]]) + rng.choice((", ", " and ", ", and ")) + parts[-1] + ".")
    pool = fitting(set(slots), SENTENCES)
    rng.shuffle(pool)
    if rng.random() < 0.5:
        pool.sort(key=lambda line: -line.count("{"))
    for line in pool[: 3 * high]:
        news = set(re.findall(r"\{(\w+\d)\}", line)) - said
        if (news or rng.random() < 0.15) and len(sentences) < high:
            sentences.append(line)
            said |= news
    return " ".join(sentences)


def note(scene: Scene) -> str:
    """Write a labeled note and a telling of it."""
    rng, slots = scene.rng, shown(scene, 2, 6)
    form, joint = rng.choice(LISTS), rng.choice(JOINTS)
    lines = [form.format(label=rng.choice(LABELS[slot]), value="{" + slot + "}") for slot in slots]
    title = rng.choice(TITLES) + ("\n" if joint == "\n" else ". ") if rng.random() < 0.7 else ""
    bridge = rng.choice(BRIDGES)
    head, colon = f"{title}{joint.join(lines)}{rng.choice(('.', ''))}", ": " if bridge else ""
    return f"{head}\n{bridge}{colon}{told(scene, slots, rng.randint(1, 4))}"


def quiz(scene: Scene) -> str:
    """Write a few facts, then questions with their answers."""
    slots = shown(scene, 2, 6)
    asked = [(q, a) for q, a in QUESTIONS if set(re.findall(r"\{(\w+\d)\}", q + a)) <= set(slots)]
    scene.rng.shuffle(asked)
    mark_q, mark_a = scene.rng.choice(
        (("", " "), ("Q. ", "\nA. "), ("- ", "\n- "), ("{first3} asks, ", "\n{first2} answers, "))
    )
    pairs = "\n".join(f"{mark_q}{question}{mark_a}{answer}" for question, answer in asked[:4])
    return f"{told(scene, slots, 6)}\n{pairs}"


def retell(scene: Scene) -> str:
    """Tell something twice, the second time in another order and other sentences."""
    slots = shown(scene, 3, 6)
    bridge = scene.rng.choice([bridge for bridge in BRIDGES if bridge])
    return f"{told(scene, slots, 5)}\n{bridge}: {told(scene, slots, 4)}"


def ledger(scene: Scene) -> str:
    """Write rows of one form, then sentences about some of them."""
    rng = scene.rng
    form, sayings = rng.choice(ROWS)
    numbers = [str(number) for number in range(1, rng.randint(3, 6))]

    def row(text: str, number: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda match: "{" + match[1] + number + "}", text)

    rows = [row(form, number) for number in numbers]
    told_rows = [row(rng.choice(sayings), number) for number in rng.sample(numbers, min(3, len(numbers)))]
    lead = rng.choice(
        ("list of {day}", "table {code9}", "from the book of {full9}", "kept by {first9}", "at the {spot9} of {town9}")
    )
    joint = rng.choice(("\n", "\n- ", ". ", "; "))
    return f"{lead}{joint}{joint.join(rows)}\n{'. '.join(told_rows)}."


SPECIAL = {"note": note, "quiz": quiz, "retell": retell, "ledger": ledger, "shelf": ledger}


def document(rng: random.Random) -> str:
    """Write one document.

    Args:
        rng: source of chance; equal states give equal documents.

    Returns:
        A text of a few lines, with capitals at sentence starts and the right articles.
    """
    text = Scene(rng).expand(rng.choice(RULES["document"]))
    text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
    return re.sub(
        r'(?m)(^|^["(]|^- |[.!?]["]? ["]?|, "|said ")([a-z])', lambda match: match[1] + match[2].upper(), text
    )


def documents(seed: int) -> Iterator[str]:
    """Write documents without end.

    Args:
        seed: the same seed gives the same documents on every machine.

    Yields:
        One document at a time.
    """
    rng = random.Random(seed)
    while True:
        yield document(rng)


def main() -> None:
    """Print some documents, an empty line after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=10, help="how many documents")
    parser.add_argument("--seed", type=int, default=1, help="another seed, another text")
    options = parser.parse_args()
    for _, text in zip(range(options.documents), documents(options.seed), strict=False):
        sys.stdout.write(text + "\n\n")


if __name__ == "__main__":
    main()
