"""A whole run of a peer, as its users write it: `python benchmarks/peers.py trl --task e2e --data DIR --output DIR`.

`trainer` is transformers' Trainer, `trl*` TRL's SFTTrainer, both with PEFT; `load` stops after loading the model.
Settings come from competitors.toml. `--dry-run` stops before the first step, as `deltaw train --dry-run` does. The last
line of output says how many tokens were read and trained. whole_run.py calls this file; it is a script of its own so
that a process imports what its library needs and nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import tomllib

HERE = Path(__file__).resolve().parent
VALIDATIONS = 10


def settings() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((HERE / "competitors.toml").read_text(encoding="utf-8"))
    return found


def rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def load(path: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(path, dtype="float32"), tokenizer


def lora(run: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=run["rank"], lora_alpha=run["alpha"], lora_dropout=run["dropout"],
        target_modules="all-linear",
    )  # fmt: skip


def arguments(run: dict[str, Any], name: str, task: dict[str, Any], output: str, count: int) -> dict[str, Any]:
    """Arguments of the trainer, whatever its class."""
    made: dict[str, Any] = {
        "output_dir": output, "per_device_train_batch_size": task["batch_size"], "num_train_epochs": 1,
        "learning_rate": run["lr"], "lr_scheduler_type": run["schedule"], "max_grad_norm": run["clip"],
        "weight_decay": run["weight_decay"], "seed": run["seed"], **run["trainer"], **run.get(name, {}),
    }  # fmt: skip
    if made["eval_strategy"] == "steps":
        steps = -(-count // task["batch_size"])
        every = max(1, steps // VALIDATIONS)
        made.update(eval_steps=every, save_steps=every)
    return made


def sft(name: str, run: dict[str, Any], task: dict[str, Any], options: argparse.Namespace) -> Any:
    """TRL's trainer on prompt and completion."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = load(options.model)
    train, valid = (rows(options.data / f"{part}.jsonl") for part in ("train", "valid"))
    chosen = arguments(run, name, task, options.output, len(train))
    config = SFTConfig(max_length=run["max_length"], **chosen)
    return SFTTrainer(
        model=model, args=config, processing_class=tokenizer, peft_config=lora(run),
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(valid) if config.eval_strategy != "no" else None,
    )  # fmt: skip


def plain(run: dict[str, Any], task: dict[str, Any], options: argparse.Namespace) -> Any:
    """transformers' trainer on ids and labels, as its documentation prepares them."""
    from peft import get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model, tokenizer = load(options.model)

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        return {"input_ids": ids, "labels": [-100] * len(prompt) + ids[len(prompt) :]}

    train = [encode(row) for row in rows(options.data / "train.jsonl")]
    made = arguments(run, "trainer", task, options.output, len(train))
    return Trainer(
        model=get_peft_model(model, lora(run)), args=TrainingArguments(**made), processing_class=tokenizer,
        train_dataset=train, data_collator=DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--task", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if options.name == "load":
        load(options.model)
        return
    run = {**settings()["run"], "seed": options.seed}
    task = run["tasks"][options.task]
    # the trainers seed themselves after the adapter was made
    from transformers import set_seed

    set_seed(options.seed)
    trainer = plain(run, task, options) if options.name == "trainer" else sft(options.name, run, task, options)
    if not options.dry_run:
        trainer.train()
        trainer.model.save_pretrained(options.output)
    tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    trained = sum(label != -100 for row in trainer.train_dataset for label in row["labels"])
    print(json.dumps({"tokens": tokens, "trained": trained, "steps": trainer.state.global_step}))


if __name__ == "__main__":
    main()
