"""The paper's models: small ones run, stored ones load, GPT-2's tokenizer reads what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import deltaw as dw
from deltaw.cli import main
from deltaw.errors import ConfigError, ModelError
from deltaw.paper.models import (
    PAPER_MODELS,
    bias_values,
    block_values,
    blocks_of,
    lora_plan,
    paper_model,
    targets_of,
    tiny_model,
)
from deltaw.paper.opening import fixed_logits, gpt2_tokenizer, open_model, shape_name
from deltaw.train.shape import shape_config

FAMILIES = ("gpt2", "roberta", "deberta-v2")
IDS = torch.tensor([[5, 9, 2, 7, 7, 3, 11, 40]])


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_run_and_take_an_adapter(family: str) -> None:
    model = tiny_model(family)
    assert model.config.model_type == family and not model.training
    before = model(IDS).logits
    dw.attach(model, dw.LoRAConfig(targets=targets_of(family, "qkvo"), rank=2))
    assert torch.equal(model(IDS).logits, before)
    assert sum(p.numel() for _, p in dw.trainable(model)) == 2 * 4 * 2 * 32 * 2
    model(IDS).logits.sum().backward()
    grads = [p.grad for name, p in dw.trainable(model) if "lora_B" in name]
    assert grads and all(grad is not None and bool(grad.abs().sum() > 0) for grad in grads)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_are_the_same_for_a_seed_and_leave_the_global_state(family: str) -> None:
    state = torch.get_rng_state()
    first, second, other = tiny_model(family), tiny_model(family), tiny_model(family, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(IDS).logits, second(IDS).logits)
    assert not torch.equal(first(IDS).logits, other(IDS).logits)
    assert tiny_model(family, labels=3)(IDS).logits.shape == (1, 3)
    assert tiny_model(family, vocabulary=64).config.vocab_size == 64


def test_tiny_models_keep_the_switches_of_the_published_ones() -> None:
    config = tiny_model("deberta-v2").config
    published = shape_config("deberta-v2-xxlarge")
    for name in ("share_att_key", "pos_att_type", "conv_kernel_size", "norm_rel_ebd", "position_biased_input"):
        assert getattr(config, name) == getattr(published, name)
    gpt = tiny_model("gpt2")
    assert gpt.lm_head.weight is gpt.transformer.wte.weight


def test_a_cache_of_keys_and_values_gives_the_same_logits() -> None:
    model = tiny_model("gpt2")
    dw.attach(model, dw.LoRAConfig(targets=targets_of("gpt2"), rank=2))
    with torch.no_grad():
        for name, parameter in dw.trainable(model):
            if "lora_B" in name:
                parameter.normal_(std=0.5)
        whole = model(IDS).logits
        cache, pieces = None, []
        for token in IDS[0]:
            out = model(token.reshape(1, 1), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            pieces.append(out.logits)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)
    with torch.no_grad(), dw.disabled(model):
        assert not torch.allclose(model(IDS).logits, whole, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stored_model_gives_its_logits_again(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    assert type(opened.model) is type(model) and opened.task == ("causal" if family == "gpt2" else "classification")
    stored = opened.model.state_dict()
    assert all(torch.equal(stored[key], value) for key, value in model.state_dict().items())
    # Mapped files lie otherwise in memory, which a matrix product may round by.
    assert torch.allclose(opened.model(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-6)
    assert opened.tokenizer is None and any("no tokenizer" in note for note in opened.notes)
    assert opened.shape == ""


def test_a_new_head_is_named(tmp_path: Path) -> None:
    tiny_model("roberta").save_pretrained(tmp_path)
    opened = open_model(str(tmp_path), labels=("no", "maybe", "yes"))
    assert opened.model.num_labels == 3 and opened.model.config.id2label[1] == "maybe"
    assert any("newly initialized" in note and "classifier" in note for note in opened.notes)
    assert open_model(str(tmp_path), dtype="bfloat16").model.dtype == torch.bfloat16


def test_what_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        open_model(str(tmp_path / "absent"))
    place = tmp_path / "tiny"
    tiny_model("gpt2").save_pretrained(place)
    for change, error, said in (
        ({"task": "translation"}, ConfigError, "translation"),
        ({"dtype": "int4"}, ConfigError, "int4"),
        ({"labels": ("a",)}, ConfigError, "class names"),
        ({"device": "tpu"}, ConfigError, "tpu"),
    ):
        with pytest.raises(error, match=said):
            open_model(str(place), **change)  # type: ignore[arg-type]
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2Model"]}))
    with pytest.raises(ConfigError, match="GPT2Model"):
        open_model(str(place))
    (place / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(ModelError, match="lack weights"):
        open_model(str(place))


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_shapes_are_recognized(name: str) -> None:
    assert shape_name(shape_config(name)) == name


def test_shapes_of_others_are_not() -> None:
    assert shape_name(shape_config("llama-3.2-1b")) == ""
    assert shape_name(tiny_model("gpt2").config) == ""


@pytest.mark.parametrize(("matrices", "said"), [("", "''"), ("qq", "'qq'"), ("qx", "'qx'")])
def test_letters_that_are_no_matrices(matrices: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        targets_of("gpt2", matrices)


def test_names_that_are_not_known() -> None:
    with pytest.raises(ModelError, match="mamba"):
        targets_of("mamba", "qv")
    with pytest.raises(ConfigError, match="gpt2-medium"):
        paper_model("gpt2-medum")
    with pytest.raises(ConfigError, match="deberta-v2"):
        tiny_model("deberta")
    with pytest.raises(ModelError, match="blocks"):
        blocks_of(torch.nn.Linear(2, 2))


def test_blocks_and_biases_of_a_small_model() -> None:
    model = tiny_model("roberta")
    assert len(blocks_of(model)) == 2
    assert block_values(model, 1) == 12 * 32**2 + 13 * 32
    assert bias_values(model) == 2 * 11 * 32 + 32


@pytest.mark.slow
def test_each_matrix_of_gpt3_is_one_of_its_width() -> None:
    for letter in "qkvo":
        sites = lora_plan("gpt3-175b", letter, 1).sites
        assert len(sites) == 96
        assert {(site.in_features, site.parts[0].out_features) for site in sites} == {(12288, 12288)}


@pytest.mark.parametrize(("ids", "top"), [([], 5), ([128], 5), ([-1], 5), ([1], 0)])
def test_inputs_that_are_none(ids: list[int], top: int) -> None:
    with pytest.raises(ConfigError):
        fixed_logits(tiny_model("gpt2"), ids, top)


def test_fixed_logits_are_the_last_positions() -> None:
    model = tiny_model("gpt2").train()
    found = fixed_logits(model, IDS[0].tolist(), 2)
    assert model.training
    logits = model.eval()(IDS).logits.double()
    assert [index for index, _ in found.top] == logits[0, -1].topk(2).indices.tolist()
    assert found.total == pytest.approx(float(logits.sum().detach())) and "sum of all" in str(found)


# Ids of GPT-2's published tokenizer; 628 is the double newline that ends a text in the paper's decoding.
ENCODED = {
    "Hello world": [15496, 995],
    "\n\n": [628],
    "<|endoftext|>": [50256],
    "name : The Vaults | food : Italian": [3672, 1058, 383, 21314, 930, 2057, 1058, 8200],
}


@pytest.mark.shared
def test_gpt2_tokenizer(shared: Path) -> None:
    tokenizer = gpt2_tokenizer(shared / "tokenizers" / "gpt2")
    assert len(tokenizer) == 50257
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (50256,) * 3
    for text, ids in ENCODED.items():
        assert tokenizer(text)["input_ids"] == ids
    for text in (" x || y \u00e9 \u4f60\u597d\n\n", "The Punter's cost > \u00a330 .", "a  b\tc"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.shared
@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2_tokenizer_from_two_files(names: tuple[str, str], shared: Path, tmp_path: Path) -> None:
    model = json.loads((shared / "tokenizers" / "gpt2" / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (tmp_path / names[0]).write_text(json.dumps(model["vocab"]), encoding="utf-8")
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tmp_path / names[1]).write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")
    tokenizer = gpt2_tokenizer(tmp_path)
    for text, ids in ENCODED.items():
        assert tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == text


def test_gpt2_tokenizer_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no files"):
        gpt2_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="no files"):
        gpt2_tokenizer(tmp_path / "absent")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        gpt2_tokenizer(tmp_path)


@pytest.mark.shared
def test_the_released_adapter_has_the_counted_values(shared: Path) -> None:
    tensors = torch.load(
        shared / "adapters" / "loralib" / "roberta_base_lora_mnli.bin", map_location="cpu", weights_only=True
    )
    lora = [tensor.numel() for name, tensor in tensors.items() if "lora_" in name]
    head = [tensor.numel() for name, tensor in tensors.items() if "lora_" not in name]
    assert (len(lora), sum(lora), sum(head)) == (48, 294_912, 592_899)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["paper", "models", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_command_opens_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path)
    text = run(capsys, str(tmp_path), "--ids", "3, 4 5", "--top", "2")
    assert "GPT2LMHeadModel" in text and "none of the paper's" in text and "input: 3 4 5" in text
    found = json.loads(run(capsys, str(tmp_path), "--json"))
    expected = fixed_logits(model, [40, 60, 80, 100])
    assert (
        found["logits"]["total"] == pytest.approx(expected.total, rel=1e-4, abs=1e-4)
        and len(found["logits"]["top"]) == 5
    )
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert json.loads(run(capsys, str(tmp_path), "--task", "classification", "--json"))["task"] == "classification"


@pytest.mark.shared
def test_the_command_encodes_a_text(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, str(shared / "models" / "atome-1m"), "--text", "Once", "--json"))
    assert found["logits"]["ids"] == [79, 110, 99, 101]


@pytest.mark.slow
def test_the_command_lists_the_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = json.loads(run(capsys, "--json"))["models"]
    assert {row["name"]: (row["parameters"], row["lora_qv"]) for row in rows} == {
        "gpt2": (124_439_808, 147_456),
        "gpt2-medium": (354_823_168, 393_216),
        "gpt2-large": (774_030_080, 737_280),
        "roberta-base": (124_647_170, 294_912),
        "roberta-large": (355_361_794, 786_432),
        "deberta-v2-xxlarge": (1_566_913_538, 4_718_592),
        "gpt3-175b": (174_604_259_328, 18_874_368),
    }
    assert "174,604,259,328" in run(capsys)


@pytest.mark.parametrize(
    "words", [["--text", "x"], ["--ids", "1"], ["--task", "causal"], ["{}", "--text", "x"], ["{}", "--ids", "one"],
              ["{}", "--text", "x", "--ids", "1"], ["{}", "--ids", "128"], ["{}", "--top", "0"]],
    ids=str,
)  # fmt: skip
def test_the_command_refuses(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    assert main(["paper", "models", *(word.format(tmp_path) for word in words)]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("hint: ")
