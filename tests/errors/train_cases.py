"""Bad settings, models, outputs and states of training, one case per kind; each callable must raise."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from deltaw.cli import _run
from deltaw.train import Callback, StepRecord, from_values, pack, run
from deltaw.train.data import Example
from deltaw.train.loop import not_finite
from deltaw.train.metrics import MetricsLog
from deltaw.train.state import State, write_state

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from tiny_train import labelled, make_model, make_tokenizer, pairs, write_jsonl

Case = Callable[[Path], Any]


def base(tmp: Path) -> Path:
    """A tiny Llama and rows for it."""
    path = tmp / "base"
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    write_jsonl(tmp / "rows.jsonl", pairs()[:8])
    write_jsonl(tmp / "labels.jsonl", labelled())
    return path


def settings(tmp: Path, **sections: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A run of three steps that saves after each."""
    values: dict[str, dict[str, Any]] = {
        "model": {"path": str(tmp / "base"), "device": "cpu"},
        "data": {"path": str(tmp / "rows.jsonl"), "valid_fraction": 0.0, "cache_dir": str(tmp / "cache")},
        "adapter": {"rank": 2},
        "optim": {"steps": 3, "batch_size": 4, "lr": 0.01},
        "run": {"output": str(tmp / "out"), "save_every": 1, "sample_tokens": 0, "plot": False, "probe": False},
    }
    for section, table in sections.items():
        values[section] |= table
    return values


def with_run(**sections: dict[str, Any]) -> Case:
    """A run with wrong values; ``{tmp}`` in a string is the directory."""

    def case(tmp: Path) -> None:
        base(tmp)
        filled = {
            section: {k: v.replace("{tmp}", str(tmp)) if isinstance(v, str) else v for k, v in table.items()}
            for section, table in sections.items()
        }
        run(from_values(settings(tmp, **filled)))

    return case


def line(*words: str) -> Case:
    """A command line; ``{tmp}`` in a word is the directory."""
    return lambda tmp: _run(["train", *(word.replace("{tmp}", str(tmp)) for word in words)])


def toml(text: str) -> Case:
    """A configuration file."""

    def case(tmp: Path) -> None:
        (tmp / "run.toml").write_text(text, encoding="utf-8")
        line("--model", "m", "--data", "d.jsonl", "--config", "{tmp}/run.toml")(tmp)

    return case


def broken_base(change: Callable[[Path], None], **sections: dict[str, Any]) -> Case:
    """A base directory that was damaged."""

    def case(tmp: Path) -> None:
        change(base(tmp))
        run(from_values(settings(tmp, **sections)))

    return case


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")

    return change


def drop_weights(path: Path) -> None:
    file = path / "model.safetensors"
    tensors = {key: tensor for key, tensor in load_file(str(file)).items() if "down_proj" not in key}
    save_file(tensors, str(file), {"format": "pt"})


def cut_weights(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def as_adapter(path: Path) -> None:
    (path / "config.json").rename(path / "adapter_config.json")


def as_subdirectory(path: Path) -> None:
    inside = path / "checkpoint"
    inside.mkdir()
    (path / "config.json").rename(inside / "config.json")


def small_embedding(path: Path) -> None:
    make_model(300).save_pretrained(path)


def encoder(tmp: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    path = base(tmp)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(path)
    run(from_values(settings(tmp)))


def occupied(**changes: Any) -> Case:
    """An output directory with a file of the user's."""

    def case(tmp: Path) -> None:
        base(tmp)
        (tmp / "out").mkdir()
        (tmp / "out" / "notes.txt").write_text("mine", encoding="utf-8")
        run(from_values(settings(tmp, run=changes)))

    return case


def output_file(tmp: Path) -> None:
    base(tmp)
    (tmp / "out").write_text("a file", encoding="utf-8")
    run(from_values(settings(tmp)))


def resumed(change: Callable[[Path], None], **sections: dict[str, Any]) -> Case:
    """A finished run whose newest state is changed, then resumed."""

    def case(tmp: Path) -> None:
        base(tmp)
        out = run(from_values(settings(tmp))).output
        change(out)
        again = {"run": {"resume": str(out)}}
        for section, table in sections.items():
            again[section] = again.get(section, {}) | table
        run(from_values(again))

    return case


def cut_state(out: Path) -> None:
    file = out / "checkpoint-3" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    values = json.loads((out / "checkpoint-3" / "state.json").read_text())
    # A digest of the writer's own would differ with every version of torch; the text shows the first digits of both.
    values["sha256"] = "0" * 64
    file.write_bytes(b"cut short")
    (out / "checkpoint-3" / "state.json").write_text(json.dumps(values), encoding="utf-8")


def cut_json(out: Path) -> None:
    (out / "checkpoint-3" / "state.json").write_text("{", encoding="utf-8")


def other_rows(out: Path) -> None:
    """Something of the run is not as it was; a rate stands for the rows, whose digests no text should hold."""
    file = out / "checkpoint-3" / "state.json"
    values = json.loads(file.read_text())
    values["identity"]["optim.lr"] = 0.5
    file.write_text(json.dumps(values), encoding="utf-8")


def nothing(out: Path) -> None:
    """Leave the state as it is."""


def short_metrics(tmp: Path) -> None:
    (tmp / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    MetricsLog(tmp / "metrics.jsonl", 1000)


def full_disk(tmp: Path) -> None:
    def fill(place: Path) -> None:
        raise OSError(28, "No space left on device")

    state = State(tensors={"param.a": torch.zeros(1)}, values={})
    write_state(tmp, 10, state, lambda place: None, keep=2)
    write_state(tmp, 20, state, fill, keep=2)


def values_smoothed(tmp: Path) -> None:
    base(tmp)
    write_jsonl(tmp / "rows.jsonl", [{"text": row["text"], "label": index / 7} for index, row in enumerate(labelled())])
    run(from_values(settings(tmp, optim={"label_smoothing": 0.1})))


def diverged(tmp: Path) -> None:
    from dataclasses import dataclass, field

    from deltaw.train.batches import collate

    @dataclass
    class Ex:
        ids: list[int] = field(default_factory=lambda: [1, 2])
        weights: list[float] = field(default_factory=lambda: [0.0, 1.0])
        label: int | None = None
        types: list[int] | None = None

    raise not_finite(12, [collate([Ex(), Ex()], (3, 8), 0)], (float("nan"), 2.5), [{"lr": 0.3}])


def no_optimizer_state(tmp: Path) -> None:
    """A callback that stops at once leaves a state; it belongs to another adapter size."""

    class Stop(Callback):
        def on_step(self, record: StepRecord) -> None:
            """Say nothing."""

        def wants_stop(self) -> bool:
            return True

    base(tmp)
    out = run(from_values(settings(tmp)), (Stop(),)).output
    file = out / "checkpoint-0" / "state.json"
    values = json.loads(file.read_text())
    values["config"]["adapter"]["rank"] = 3
    values["identity"]["adapter.rank"] = 3
    file.write_text(json.dumps(values), encoding="utf-8")
    run(from_values({"run": {"resume": str(out)}}))


def unsaid(tmp: Path) -> None:
    """Several examples in a row, and nothing that tells the model."""
    pack([Example(ids=[1, 2], weights=[0.0, 1.0])] * 2).inputs()


def labels_in_a_row(tmp: Path) -> None:
    """Examples of a classifier side by side."""
    pack([Example(ids=[1, 2], weights=[0.0, 0.0], label=1)] * 2)


CASES: dict[str, Case] = {
    "train_no_model": line("--data", "rows.jsonl"),
    "train_no_data": line("--model", "base"),
    "train_packing_of_labels": with_run(
        data={"path": "{tmp}/labels.jsonl"}, optim={"packing": True, "batch_size": None}
    ),
    "train_packed_row_unsaid": unsaid,
    "train_pack_labels": labels_in_a_row,
    "train_flag_unknown": line("--model", "base", "--data", "rows.jsonl", "--learning-rate", "1e-4"),
    "train_flag_choice": line("--model", "base", "--data", "rows.jsonl", "--schedule", "cosin"),
    "train_flag_range": line("--model", "base", "--data", "rows.jsonl", "--dropout", "1.5"),
    "train_flag_number": line("--model", "base", "--data", "rows.jsonl", "--rank", "many"),
    "train_toml_missing": line("--config", "{tmp}/absent.toml"),
    "train_toml_broken": toml("[optim\nlr = 1e-3\n"),
    "train_toml_key_unknown": toml("[optim]\nlearning_rate = 1e-3\n"),
    "train_toml_key_elsewhere": toml("[run]\nlr = 1e-3\nsede = 3\n"),
    "train_toml_section_unknown": toml("[optimizer]\nlr = 1e-3\n"),
    "train_toml_no_section": toml("lr = 1e-3\n"),
    "train_toml_type": toml('[optim]\nlr = "fast"\n'),
    "train_epochs_and_steps": line("--model", "base", "--data", "rows.jsonl", "--epochs", "2", "--steps", "9"),
    "train_full_with_rank": line("--model", "base", "--data", "rows.jsonl", "--method", "full", "--rank", "4"),
    "train_continue_with_alpha": line("--model", "base", "--data", "rows.jsonl", "--adapter", "a", "--alpha", "4"),
    "train_device": with_run(model={"device": "gpu"}),
    "train_model_absent": with_run(model={"path": "{tmp}/bace"}),
    "train_model_hub_unreachable": with_run(model={"path": "nobody/nothing-at-all"}),
    "train_model_no_config": broken_base(as_subdirectory),
    "train_model_is_adapter": broken_base(as_adapter),
    "train_model_architecture": broken_base(edit_config(model_type="lama4")),
    "train_model_weights_missing": broken_base(drop_weights),
    "train_model_weights_cut": broken_base(cut_weights),
    "train_model_embedding_small": broken_base(small_embedding),
    "train_model_encoder": encoder,
    "train_variant_unknown": line("--model", "base", "--data", "rows.jsonl", "--variant", "lora,dorra"),
    "train_variants_clash": with_run(adapter={"variant": ["vera", "dora"]}),
    "train_init_unknown": line("--model", "base", "--data", "rows.jsonl", "--init", "pisa"),
    "train_init_batches_unread": line("--model", "base", "--data", "rows.jsonl", "--init-batches", "2"),
    "train_rows_no_ids": line("--model", "base", "--data", "rows.jsonl", "--train-rows", "wte=hat"),
    "train_rows_type": toml("[adapter.train_rows]\nwte = [-1]\n"),
    "train_rows_outside": with_run(adapter={"train_rows": {"embed_tokens": [5, 4000]}}),
    "train_token_known": with_run(adapter={"new_tokens": ["<tool>", "<s>"]}),
    "train_smoothing_of_values": values_smoothed,
    "train_lora_plus_nothing": with_run(adapter={"variant": "vera"}, optim={"lora_plus": 16.0}),
    "train_resume_variant": resumed(nothing, adapter={"variant": "dora", "init": "pissa"}, optim={"lora_plus": 4.0}),
    "train_target_unknown": with_run(adapter={"targets": ["q_projj"]}),
    "train_task_of_other_rows": with_run(model={"task": "classification"}),
    "train_output_occupied": occupied(),
    "train_output_foreign": occupied(overwrite=True),
    "train_output_file": output_file,
    "train_resume_nothing": with_run(run={"resume": "{tmp}/elsewhere"}),
    "train_resume_settings": resumed(nothing, optim={"lr": 0.5}, adapter={"rank": 8}),
    "train_resume_identity": resumed(other_rows),
    "train_resume_cut": resumed(cut_state),
    "train_resume_json": resumed(cut_json),
    "train_resume_shapes": no_optimizer_state,
    "train_metrics_short": short_metrics,
    "train_disk_full": full_disk,
    "train_not_finite": diverged,
}
