"""Time of a training step: `python benchmarks/step.py` prints tables and writes them to results/.

One layer of Llama's shape on 512 tokens, where differences of a percent can be told, and whole models. *Floor* is the
same model frozen: forward, and the input's gradient backward from the first adapted module up. All competitors run in
one process and take turns; ratios are taken round by round. Before anything is timed, losses and gradients of all are
compared on the same factors. A step is forward, loss and backward, without the optimizer.

    python benchmarks/step.py                                    # one layer; models at 4x128: about 25 minutes
    python benchmarks/step.py --models layer                     # one layer: two minutes
    python benchmarks/step.py --models gpt2 --shapes 8x256       # a part
    python benchmarks/step.py --everything                       # all shapes, ranks and dropouts: hours
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable

from dress import ADAPTERS, MODELS, STEP, batch, step, verify, wardrobe
from harness import Row, Times, cpu_seconds, markdown, one_thread, parser, ratio, take_turns, write
from torch import Tensor, nn

QV, ALL = STEP["adapted"]
SHAPES = ("4x128", "8x256", "1x1024")
LAYER_SHAPE = "1x512"
Case = tuple[str, str, str, float]
"""Model, what is adapted, rows x tokens, dropout."""


def cases(options: argparse.Namespace) -> list[Case]:
    """The grid."""
    return [
        (name, adapted, shape, dropout)
        for name in options.models
        for adapted, shape, dropout in itertools.product(
            *([options.adapted, [LAYER_SHAPE]] if name == "layer" else [options.of_models, options.shapes]),
            options.dropout,
        )
    ]


def measure(case: Case, rounds: int) -> Times:
    """CPU seconds of every competitor's steps."""
    name, adapted, shape, dropout = case
    rows, tokens = map(int, shape.split("x"))
    # trained in full, models take too long for what is known
    dresses = ("floor", *ADAPTERS, *(["full"] if name == "layer" else []))
    made = wardrobe(name, adapted, dropout, {dress: (dress, {}) for dress in dresses})
    inputs = batch(name, rows, tokens)
    verify(made, name, adapted, inputs)
    for model in made.values():
        model.train()
    return take_turns({dress: timed(made, dress, inputs) for dress in made}, rounds)


def timed(made: dict[str, nn.Module], dress: str, inputs: dict[str, Tensor]) -> Callable[[], float]:
    """Measure one competitor's step."""

    def run() -> float:
        spent = cpu_seconds(lambda: step(made[dress], inputs))
        # gradients of a whole model are held by one at a time
        made[dress].zero_grad(set_to_none=True)
        return spent

    return run


def limits(case: Case) -> dict[str, float]:
    """Ratios to reach, by who stands below: for a layer the floor, for a model PEFT."""
    name, adapted, _, dropout = case
    if name == "layer":
        return {"floor": 1.10 if dropout else (1.02 if adapted == QV else 1.06), "PEFT": 1.0}
    return {"PEFT": 0.85 if dropout and adapted == ALL else 1.0}


def rows_of(case: Case, taken: Times) -> list[Row]:
    """Lines of the main table: deltaw against each."""
    name, adapted, shape, dropout = case
    found = []
    for other, values in taken.items():
        if other != "deltaw":
            found.append(Row(
                work=f"step: {name}, {adapted}, {shape}, dropout {dropout}",
                against="full fine-tuning" if other == "full" else other,
                ours=f"{statistics.median(taken['deltaw']):.3f} CPU s", theirs=f"{statistics.median(values):.3f} CPU s",
                ratio=ratio(taken["deltaw"], values), limit=limits(case).get(other),
            ))  # fmt: skip
    return found


def arguments() -> argparse.Namespace:
    made = parser(__doc__, rounds=7)
    made.add_argument("--models", nargs="+", default=["layer", *MODELS], choices=["layer", *MODELS])
    made.add_argument("--shapes", nargs="+", default=["4x128"], choices=SHAPES)
    made.add_argument("--adapted", nargs="+", choices=[QV, ALL])
    made.add_argument("--dropout", nargs="+", type=float, default=[0.0, 0.1])
    made.add_argument("--everything", action="store_true", help="every shape, rank and dropout")
    options = made.parse_args()
    # models are within noise of the floor with q, v: they are measured when asked for
    options.of_models = options.adapted or ([QV, ALL] if options.everything else [ALL])
    options.adapted = options.adapted or [QV, ALL]
    if options.everything:
        options.shapes = list(SHAPES)
    return options


def main() -> None:
    options = arguments()
    one_thread()
    lines, rows = [], []
    for case in cases(options):
        taken = measure(case, options.rounds)
        ratios = {dress: str(ratio(values, taken["floor"])) for dress, values in taken.items()}
        beside = str(ratio(taken["deltaw"], taken["PEFT"]))
        cells = [ratios.get(dress, "") for dress in (*ADAPTERS, "full")]
        lines.append(
            [case[0], case[1], case[2], f"{case[3]}", f"{statistics.median(taken['floor']):.3f}", *cells, beside]
        )
        rows += rows_of(case, taken)
        print(lines[-1], flush=True)
    head = ["model", "adapted", "rows x tokens", "dropout", "floor, s", *ADAPTERS, "full fine-tuning", "deltaw / PEFT"]
    text = [
        "CPU seconds of forward, loss and backward, fp32, one thread; ratios to the floor, median of "
        f"{options.rounds} rounds after two, and their spread, competitors taking turns.",
        "Made by `python benchmarks/step.py`; losses and gradients were compared before. The layer is Llama's, of",
        "width 1024; `full fine-tuning` is without its optimizer, as all are. RoBERTa's shape has 1026 positions here.",
        "",
        *markdown(head, lines, words=4),
    ]
    write("step", options, "A training step beside PEFT, loralib and the floor", text, rows, ("loralib",))


if __name__ == "__main__":
    main()
