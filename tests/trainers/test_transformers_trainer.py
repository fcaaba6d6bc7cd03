"""transformers' own Trainer trains, evaluates, saves, resumes and picks the best, and equals a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

import builders
import deltaw as dw
import loops
from deltaw.errors import CheckpointError, StateError


class Losses(TrainerCallback):
    """Collects what a Trainer logs."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.eval: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.train += [logs["loss"]] if "loss" in logs else []
        self.eval += [logs["eval_loss"]] if "eval_loss" in logs else []


def trainer(net: Any, place: Path, **settings: Any) -> tuple[Trainer, Losses]:
    losses = Losses()
    defaults: dict[str, Any] = {
        "per_device_train_batch_size": loops.BATCH, "num_train_epochs": 1, "learning_rate": loops.LR, "seed": 11,
        "lr_scheduler_type": "constant", "logging_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "dataloader_num_workers": 0, "dataloader_pin_memory": False,
    }  # fmt: skip
    made = Trainer(
        net,
        TrainingArguments(str(place), **{**defaults, **settings}),
        data_collator=default_data_collator,
        train_dataset=loops.rows(),
        eval_dataset=loops.rows(4),
        callbacks=[losses],
    )
    return made, losses


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_it_equals_a_plain_loop(tmp_path: Path, checkpointing: dict[str, bool] | None) -> None:
    plain, net = loops.model(), loops.model()
    base = builders.base_bits(net)
    expected = loops.plain_loop(plain, loops.batches(loops.rows()), clip=1.0)
    made, losses = trainer(
        net, tmp_path, train_sampling_strategy="sequential", max_grad_norm=1.0,
        activation_checkpointing=checkpointing is not None, activation_checkpointing_kwargs=checkpointing,
    )  # fmt: skip
    made.train()
    assert losses.train == pytest.approx(expected, rel=1e-6)
    loops.assert_same(loops.adapter(net), loops.adapter(plain), rtol=0, atol=1e-6)
    assert builders.base_bits(net) == base and dw.check(net).ok
    with torch.no_grad():
        wanted = sum(float(plain.eval()(**b).loss) for b in loops.batches(loops.rows(4))) / 2
    assert made.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resume_is_bit_identical(tmp_path: Path, dropout: float) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole, parted = loops.model(noise=0.1, dropout=dropout), loops.model(noise=0.1, dropout=dropout)
    made, through = trainer(whole, tmp_path, **settings)
    made.train()
    builders.randomize(parted)  # whatever it holds is replaced
    made, after = trainer(parted, tmp_path, **settings)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert after.train == through.train[4:]
    loops.assert_same(loops.adapter(parted), loops.adapter(whole))
    assert dw.draws(parted) == dw.draws(whole)


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    net = loops.model()
    seen = {}

    class Watch(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen[state.global_step] = loops.adapter(net)

    made, losses = trainer(
        net, tmp_path, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=True, learning_rate=0.1,
    )  # fmt: skip
    made.add_callback(Watch())
    made.train()
    best = 2 * (1 + max(range(3), key=losses.eval.__getitem__))
    assert made.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}") and best != 6
    loops.assert_same(loops.adapter(net), seen[best])


def test_a_checkpoint_is_a_peft_directory_without_the_base(tmp_path: Path) -> None:
    net = loops.model()
    made, _ = trainer(net, tmp_path, save_strategy="steps", save_steps=3)
    made.train()
    place = tmp_path / "checkpoint-6"
    names = {file.name for file in place.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "model.safetensors", "optimizer.pt"} <= names
    assert "config.json" not in names and (place / "model.safetensors").stat().st_size < 8000
    other = builders.llama()
    assert dw.load(other, place).applied == 4
    loops.assert_same(loops.adapter(other), loops.adapter(net))
    made.save_model(str(tmp_path / "final"))
    assert dw.load(builders.llama(), tmp_path / "final").applied == 4


def test_a_checkpoint_of_other_adapters_is_refused(tmp_path: Path) -> None:
    made, _ = trainer(loops.model(), tmp_path, save_strategy="steps", save_steps=3)
    made.train()
    base = builders.llama()
    builders.attach(base, "sql", rank=2, targets=["q_proj", "v_proj"])
    made, _ = trainer(base, tmp_path)
    with pytest.raises(CheckpointError, match="does not fit the attached ones"):
        made.train(resume_from_checkpoint=True)


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = builders.mlp(dropout=0.0)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": (self.body(x) - labels).square().mean()}

    data = [{"x": torch.randn(6), "labels": torch.randn(4)} for _ in range(6)]
    nets = []
    for resume in (None, True):
        net = Net()
        builders.attach(net, rank=2, targets=["fc1", "fc2"], dropout=0.2)
        args = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=2, num_train_epochs=1, report_to=[], use_cpu=True,
            disable_tqdm=True, save_steps=2, learning_rate=0.1,
        )  # fmt: skip
        Trainer(net, args, train_dataset=data).train(resume_from_checkpoint=resume)
        if resume is None:
            (tmp_path / "checkpoint-3").rename(tmp_path / "aside")
        nets.append(net)
    loops.assert_same(loops.adapter(nets[0]), loops.adapter(nets[1]))


def quantized() -> Any:
    """A base that says of itself what transformers' quantized models say; its linear layers hold int8."""
    base = builders.llama()
    for layer in base.model.layers:
        for name in ("q_proj", "v_proj"):
            setattr(layer.self_attn, name, builders.Int8Linear(getattr(layer.self_attn, name)))
    base.is_quantized = True
    return base


def test_a_quantized_base_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="purely quantized"):
        trainer(quantized(), tmp_path)
    net = quantized()
    builders.attach(net, rank=2, targets=["q_proj", "v_proj"])
    made, losses = trainer(net, tmp_path, save_strategy="steps", save_steps=3)
    made.train()
    assert len(losses.train) == 6 and dw.check(net).ok
    assert dw.load(quantized(), tmp_path / "checkpoint-6").applied == 4
    dw.detach(net)
    with pytest.raises(ValueError, match="purely quantized"):
        trainer(net, tmp_path)


def test_a_base_trained_by_hand_is_not_lost(tmp_path: Path) -> None:
    net = loops.model()
    net.model.norm.weight.requires_grad_(True)
    made, _ = trainer(net, tmp_path, save_strategy="steps", save_steps=1)
    with pytest.raises(StateError, match="parameter of the base is being trained"):
        made.train()


def test_a_compiled_run_saves_and_resumes(tmp_path: Path) -> None:
    settings = {
        "torch_compile": True, "torch_compile_backend": "aot_eager", "save_strategy": "steps", "save_steps": 3,
        "train_sampling_strategy": "sequential",
    }  # fmt: skip
    plain, net, parted = loops.model(), loops.model(), loops.model()
    made, losses = trainer(net, tmp_path, **settings)
    made.train()
    assert losses.train == pytest.approx(loops.plain_loop(plain, loops.batches(loops.rows()), clip=1.0), rel=1e-5)
    made, _ = trainer(parted, tmp_path, **settings)
    made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    loops.assert_same(loops.adapter(parted), loops.adapter(net))
    assert dw.load(builders.llama(), tmp_path / "checkpoint-6").applied == 4
