"""TRL's SFTTrainer takes an attached model as it is, without a peft_config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import builders
import deltaw as dw
import loops


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=32
    )


def data() -> Dataset:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return Dataset.from_list([{"text": " ".join(letters[at : at + 6])} for at in range(12)])


def trainer(net: Any, place: Path, **settings: Any) -> SFTTrainer:
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": loops.LR, "report_to": [],
        "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_steps": 3, "max_length": 16, "bf16": False,
        "lr_scheduler_type": "constant", "dataloader_pin_memory": False, "train_sampling_strategy": "sequential",
    }  # fmt: skip
    return SFTTrainer(
        net, SFTConfig(str(place), **{**defaults, **settings}), train_dataset=data(), processing_class=tokenizer()
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sft(tmp_path: Path, checkpointing: bool) -> None:
    net = loops.model()
    base = builders.base_bits(net)
    made = trainer(net, tmp_path, activation_checkpointing=checkpointing)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    made = trainer(plain := loops.model(), tmp_path / "plain", activation_checkpointing=False)
    batches = [
        {k: v for k, v in b.items() if k in ("input_ids", "labels", "attention_mask")}
        for b in made.get_train_dataloader()
    ]
    assert losses == pytest.approx(loops.plain_loop(plain, batches, clip=1.0), rel=1e-5)
    loops.assert_same(loops.adapter(net), loops.adapter(plain), rtol=0, atol=1e-5)
    assert builders.base_bits(net) == base and dw.check(net).ok


def test_sft_resumes(tmp_path: Path) -> None:
    whole, parted = loops.model(dropout=0.2), loops.model(dropout=0.2)
    trainer(whole, tmp_path).train()
    trainer(parted, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    loops.assert_same(loops.adapter(parted), loops.adapter(whole))
    assert dw.load(builders.llama(), tmp_path / "checkpoint-6").applied == 4
