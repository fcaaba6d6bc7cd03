"""Bytes that a step keeps for its backward: `python benchmarks/kept.py`, exact, no timing, about two minutes.

Counted are unique storages that autograd packs (`saved_tensors_hooks`), whole, without those of the model's parameters
and buffers; of them, what goes beyond the floor's. Per token and, for one layer, per layer. A library could hide bytes
from the hooks by keeping tensors outside of autograd's saved ones; deltaw keeps none
(peak.py would show them), PEFT and loralib use plain autograd.

    python benchmarks/kept.py                    # one layer and the three models
    python benchmarks/kept.py --models layer     # one layer
"""

from __future__ import annotations

from typing import Any

import torch
from dress import MODELS, batch, loss, wardrobe
from harness import Row, Spread, markdown, one_thread, parser, write
from torch import Tensor, nn

ADAPTED = "all linear, r 16"
DRESSES: dict[str, tuple[str, dict[str, Any]]] = {
    "floor": ("floor", {}),
    "deltaw": ("deltaw", {}),
    "PEFT": ("PEFT", {}),
    "PEFT, no fp32 cast": ("PEFT", {"autocast_adapter_dtype": False}),
    "loralib": ("loralib", {}),
    "full fine-tuning": ("full", {}),
}
LIMITS = {(torch.float32, 0.0): 0.5, (torch.float32, 0.1): 0.4, (torch.bfloat16, 0.0): 0.3, (torch.bfloat16, 0.1): 0.2}
"""What issue and design ask of deltaw / PEFT at its defaults."""
KIB = 1024
TOKENS = {torch.float32: 512, torch.bfloat16: 16}
"""In one row: enough in fp32 for the ways that many tokens take; bf16 products are slow on many processors."""


def kept(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    """Bytes of unique storages saved in one forward, the model's own and the inputs' left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    known |= {tensor.untyped_storage().data_ptr() for tensor in inputs.values()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        # detached, or an output that its own node keeps would never be freed
        return tensor.detach()

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    # deltaw recomputes inputs, but not under hooks that may move what is saved: these only look
    pack.only_looks = unpack.only_looks = True  # type: ignore[attr-defined]
    # the graph is alive until the count is read: no address is used twice
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        value = loss(model.train(), inputs)
    del value
    return sum(found.values())


def case(name: str, dtype: torch.dtype, dropout: float) -> dict[str, float]:
    """KiB a token beyond the floor's, and the floor's."""
    inputs = batch(name, 1, TOKENS[dtype])
    if name == "layer":
        inputs = {"x": inputs["x"].to(dtype)}
    dresses = {label: dress for label, dress in DRESSES.items() if dtype != torch.float32 or not dress[1]}
    made = wardrobe(name, ADAPTED, dropout, dresses, dtype)
    found = {label: kept(model, inputs) / TOKENS[dtype] / KIB for label, model in made.items()}
    return {label: value - (found["floor"] if label != "floor" else 0.0) for label, value in found.items()}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--models", nargs="+", default=["layer", *MODELS], choices=["layer", *MODELS])
    options = made.parse_args()
    one_thread()
    lines, rows = [], []
    for name in options.models:
        for (dtype, dropout), limit in LIMITS.items():
            found = case(name, dtype, dropout)
            base = str(dtype).removeprefix("torch.")
            cells = [f"{found[label]:+.2f}" if label in found else "" for label in DRESSES if label != "floor"]
            lines.append([name, base, f"{dropout}", f"{found['floor']:.1f}", *cells,
                          f"{found['deltaw'] / found['PEFT']:.2f}"])  # fmt: skip
            print(lines[-1], flush=True)
            rows.append(Row(
                work=f"bytes kept beyond the floor: {name}, {base} base, dropout {dropout}", against="PEFT",
                ours=f"{found['deltaw']:.2f} KiB/token", theirs=f"{found['PEFT']:.2f} KiB/token",
                ratio=Spread.of([found["deltaw"] / found["PEFT"]]), limit=limit,
            ))  # fmt: skip
    head = ["model", "base", "dropout", "floor", *(label for label in DRESSES if label != "floor"), "deltaw / PEFT"]
    text = [
        f"KiB a token, {ADAPTED}, one row of {TOKENS[torch.float32]} tokens (bf16: {TOKENS[torch.bfloat16]}); the",
        "floor's own, then what others keep beyond it. Exact.",
        "Made by `python benchmarks/kept.py`: unique storages packed by autograd, without parameters and buffers.",
        "PEFT at its defaults holds adapters of a bf16 base in fp32 and casts its input up; without that cast the",
        "adapters are bf16. deltaw's are fp32 and the activation stays in bf16.",
        "",
        *markdown(head, lines, words=3),
    ]
    write("kept", options, "Bytes kept for the backward beyond the floor's", text, rows, ("loralib",))


if __name__ == "__main__":
    main()
