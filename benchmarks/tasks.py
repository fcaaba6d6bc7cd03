"""The data of whole runs: the same rows for deltaw in their own format and for peers as prompt and completion.

The peers' texts are written down here independently and must give the ids and masks that deltaw's own reading gives,
row by row, or nothing is measured.
"""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import SHARED

MODEL = str(SHARED / "models" / "stories3M")


@dataclass(frozen=True, kw_only=True)
class Task:
    """Files of one task.

    Args:
        name: as in competitors.toml.
        folder: holds train.jsonl and valid.jsonl for the peers.
        flags: what `deltaw train` is told of the data.
        tokens: number of training tokens.
        trained: those with a loss.
        judged: (ids, mask of trained tokens) of every validation row.
    """

    name: str
    folder: Path
    flags: list[str]
    tokens: int
    trained: int
    judged: list[tuple[list[int], list[bool]]]


def alpaca(spec: dict[str, Any], folder: Path) -> tuple[list[str], dict[str, list[dict[str, str]]]]:
    """Instruction rows, split by a shuffle."""
    found = json.loads((SHARED / spec["file"]).read_text(encoding="utf-8"))
    random.Random(0).shuffle(found)
    count, held = spec["rows"], spec["valid_rows"]
    parts = {"train": found[:count], "valid": found[count : count + held]}
    texts = {}
    for part, chosen in parts.items():
        (folder / f"{part}.json").write_text(json.dumps(chosen), encoding="utf-8")
        texts[part] = [
            {
                "prompt": f"### Instruction:\n{row['instruction'].strip()}"
                + (f"\n\n### Input:\n{row['input'].strip()}" if row["input"].strip() else "")
                + "\n\n### Response:\n",
                "completion": row["output"].strip(),
            }
            for row in chosen
        ]
    return ["--data", str(folder / "train.json"), "--valid", str(folder / "valid.json")], texts


def pairs(spec: dict[str, Any], folder: Path) -> tuple[list[str], dict[str, list[dict[str, str]]]]:
    """The paper's own files of records and sentences, their first rows."""
    texts = {}
    for part, file, count in (
        ("train", spec["file"], spec["rows"]),
        ("valid", spec["valid_file"], spec["valid_rows"]),
    ):
        lines = gzip.decompress((SHARED / file).read_bytes()).decode().splitlines()[:count]
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        halves = [line.split(spec["separator"]) for line in lines]
        texts[part] = [{"prompt": prompt.strip() + "\n", "completion": said.strip()} for prompt, said in halves]
    flags = ["--data", str(folder / "train.txt"), "--valid", str(folder / "valid.txt")]
    return [*flags, "--separator", spec["separator"]], texts


def prepare(name: str, spec: dict[str, Any], folder: Path) -> Task:
    """Write the files of a task and hold both readings of them together."""
    from transformers import AutoTokenizer

    from deltaw.train.data import build, detect, load_rows

    folder.mkdir(parents=True)
    flags, texts = (pairs if "separator" in spec else alpaca)(spec, folder)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    read: dict[str, list[tuple[list[int], list[bool]]]] = {}
    for part, chosen in texts.items():
        lines = [json.dumps(row) for row in chosen]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        own = flags[1 if part == "train" else 3]
        opened = load_rows(own, separator=spec.get("separator"), cache_dir=str(folder / "cache"))
        examples = build(opened, detect(opened), tokenizer, max_length=512, cache_dir=str(folder / "cache"))
        read[part] = [(example.ids, [weight > 0 for weight in example.weights]) for example in examples]
        for row, (ids, mask) in zip(chosen, read[part], strict=True):
            prompt = tokenizer(row["prompt"])["input_ids"]
            whole = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
            assert (whole, [place >= len(prompt) for place in range(len(whole))]) == (ids, mask), row
    return Task(
        name=name, folder=folder, flags=flags, tokens=sum(len(ids) for ids, _ in read["train"]),
        trained=sum(sum(mask) for _, mask in read["train"]), judged=read["valid"],
    )  # fmt: skip


def judge(adapter: Path, task: Task) -> float:
    """Validation loss in nats per trained token of an adapter directory, read by PEFT whoever wrote it, row by row."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32")
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids, mask in task.judged:
            row, trained = torch.tensor([ids]), torch.tensor(mask)[1:]
            logits = model(input_ids=row).logits[0, :-1][trained]
            total += float(torch.nn.functional.cross_entropy(logits, row[0, 1:][trained], reduction="sum"))
            count += int(trained.sum())
    return total / count
