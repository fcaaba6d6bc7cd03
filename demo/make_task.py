"""Write the demo's task: records of a workshop's stock and the sentences a catalog prints for them.

Usage:
    python demo/make_task.py [--out demo/data]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from lexicon import MATERIALS as STUFFS
from lexicon import color, item, one_of, person, price, street

SEED = 7
TRAIN_ROWS, VALID_ROWS = 2000, 200
MIDDLE = ("material", "color")
LAST = ("price", "place")

OPENINGS = (
    "Meet the {item}, made by {maker}",
    "New in our catalog is the {item} that {maker} makes",
    "Our pick of the week: the {item} from the bench of {maker}",
    "Looking for a gift? Choose the {item} by {maker}",
    "{maker} proudly presents the {item}",
)
MIDDLES = {
    (): (".",),
    ("material",): (", crafted from {material}.",),
    ("color",): (", finished in {color}.",),
    ("material", "color"): (", crafted from {material} and finished in {color}.",),
}
ENDINGS = {
    ("price",): (
        " Yours for just {price}.",
        " Take it home for just {price}.",
        " At {price} it will not stay with us long.",
    ),
    ("place",): (" Visit us at {place} to try it.", " Stop by {place} and try it.", " Our doors at {place} are open."),
    ("price", "place"): (
        " Visit us at {place} and take it home for just {price}.",
        " Yours for just {price} when you stop by {place}.",
        " Our doors at {place} are open, and at {price} it will not stay with us long.",
    ),
}


def record(rng: random.Random) -> dict[str, str]:
    """Draw a record of four to six fields.

    Args:
        rng: source of chance.

    Returns:
        Field -> value, in the order printed.
    """
    first, last, _ = person(rng)
    full = {
        "item": item(rng),
        "maker": f"{first} {last}",
        "material": one_of(STUFFS)(rng),
        "color": color(rng),
        "price": price(rng),
        "place": street(rng),
    }
    left_out = rng.choice(
        ((), (), ("material",), ("color",), ("price",), ("place",), ("material", "color"), ("color", "place"))
    )
    return {field: value for field, value in full.items() if field not in left_out}


def prompt(fields: dict[str, str]) -> str:
    """Print a record on one line.

    Args:
        fields: field -> value.

    Returns:
        The line the model is given.
    """
    return " | ".join(f"{field}: {value}" for field, value in fields.items())


def completion(fields: dict[str, str], rng: random.Random) -> str:
    """Say a record in the catalog's voice, every field word for word.

    Args:
        fields: field -> value.
        rng: source of chance, for the phrasing.

    Returns:
        Two sentences.
    """
    middle = tuple(field for field in MIDDLE if field in fields)
    last = tuple(field for field in LAST if field in fields)
    text = rng.choice(OPENINGS) + rng.choice(MIDDLES[middle]) + rng.choice(ENDINGS[last])
    return text.format(**fields)


def rows(seed: int, count: int) -> list[dict[str, str]]:
    """Make all rows.

    Args:
        seed: the same seed gives the same rows.
        count: how many.

    Returns:
        Rows of ``prompt`` and ``completion``; no prompt occurs twice.
    """
    rng, made = random.Random(seed), {}
    while len(made) < count:
        fields = record(rng)
        made.setdefault(prompt(fields), completion(fields, rng))
    return [{"prompt": asked, "completion": answer} for asked, answer in made.items()]


def write(folder: Path) -> None:
    """Write ``train.jsonl`` and ``valid.jsonl``.

    Args:
        folder: directory to write into; made if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = rows(SEED, TRAIN_ROWS + VALID_ROWS)
    for name, part in (("train", made[:TRAIN_ROWS]), ("valid", made[TRAIN_ROWS:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    """Write the data next to this script, or where the user says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "data", help="directory to write")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
