"""``inspect`` on every kind of layer and of update: norms and spectra are those of the dense formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import builders
import deltaw as dw
from deltaw.cli import main
from deltaw.errors import CheckpointError
from deltaw.layer import container_of
from deltaw.ship.inspection import Inspection, inspect_adapter
from variant_cases import FORMS, LAYERS, Form, Layer, is_refused, lora, vera

PAIRS = [(layer, form) for layer in LAYERS for form in FORMS if not is_refused(layer, form)]


def shaken(model: nn.Module, seed: int = 0) -> None:
    """Values that an update could have learned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in dw.trainable(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def pairs_at(model: nn.Module, path: str) -> list[Any]:
    return list(container_of(model.get_submodule(path))._modules["default"].parts())  # type: ignore[union-attr,operator]


def product(pair: Any, groups: int) -> Tensor:
    """scaling * B A of one update, dense and in float64; magnitudes and biases are no part of it."""
    tensors = {name: tensor.detach().double() for name, tensor in pair.tensors.items()}
    rows = pair.part.out_features
    width = tensors["vera_A"].shape[1] if "vera_A" in tensors else tensors["lora_A"].flatten(1).shape[1]
    zero = torch.zeros(rows, width, dtype=torch.float64)
    formula = vera if "vera_A" in tensors else lora
    return formula(zero, tensors, pair.part.scaling, groups)


def text_of(found: Inspection, directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the verb prints, both ways."""
    capsys.readouterr()
    assert main(["inspect", str(directory), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [module["path"] for module in said["modules"]] == [module.path for module in found.modules]
    assert main(["inspect", str(directory)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("layer", "form"), PAIRS, ids=[f"{layer.name}-{form.name}" for layer, form in PAIRS])
def test_norms_and_spectra_are_those_of_the_dense_update(
    layer: Layer, form: Form, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = layer.build()
    dw.attach(model, dw.LoRAConfig(**{"targets": [layer.target], "rank": layer.rank, "seed": 1, **form.config}))
    shaken(model)
    dw.save(model, tmp_path)
    found, path = inspect_adapter(tmp_path), layer.target.partition("[")[0]
    module = next(m for m in found.modules if m.path == path)
    parts = pairs_at(model, path)
    dense = torch.cat([product(pair, layer.groups) for pair in parts])
    values = torch.linalg.svdvals(dense)
    assert module.frobenius == pytest.approx(float(dense.norm()), rel=1e-5)
    if layer.groups == 1 and not layer.rows:
        assert module.spectral == pytest.approx(float(values[0]), rel=1e-5)
        assert sum(value > 1e-6 for value in module.spectrum) == sum(values > 1e-6 * values[0])
    assert module.rank == sum(pair.part.rank for pair in parts)
    assert module.scaling == pytest.approx(parts[0].part.scaling)
    assert module.slices == tuple(layer.rows) and module.start == ("start_A" in parts[0].tensors)
    outputs = layer.matrix(site_weight(layer, model)).shape[0]
    assert (module.in_features, module.out_features) == (dense.shape[1] * layer.groups, outputs)
    assert (module.magnitude is not None) == ("magnitude" in form.trained)
    assert (module.bias is not None) == ("bias_B" in form.trained)
    if module.bias is not None:
        bias = torch.cat([pair.tensors["bias_B"].detach().double() * pair.part.scaling for pair in parts])
        assert module.bias == pytest.approx(float(bias.norm()), rel=1e-5)
    assert not [warning for warning in found.warnings if "zero" in warning or "no low-rank" in warning]
    text = text_of(found, tmp_path, capsys)
    assert ("dora: norm and spectrum" in text) == ("magnitude" in form.trained)
    assert ("shared by all modules" in text) == ("vera" in form.name)


def site_weight(layer: Layer, model: nn.Module) -> Tensor:
    weight = getattr(layer.site(model), layer.parameter)
    assert isinstance(weight, Tensor)
    return weight.detach()


@pytest.mark.parametrize("form", [form for form in FORMS if form.start == 0], ids=lambda form: form.name)
def test_a_fresh_adapter_is_zero_wherever_it_starts(form: Form, tmp_path: Path) -> None:
    """A start that is taken off again leaves nothing, not rounding; a fresh magnitude cannot be told from a trained."""
    model = builders.mlp()
    dw.attach(model, dw.LoRAConfig(**{"targets": ["fc1", "fc2"], "rank": 2, "seed": 1, **form.config}))
    dw.save(model, tmp_path)
    found = inspect_adapter(tmp_path)
    assert [module.frobenius for module in found.modules] == [0.0, 0.0]
    known = "magnitude" not in form.trained
    assert any("every update is zero" in warning for warning in found.warnings) == known


def test_rows_of_new_and_old_tokens_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = builders.llama(tied=True)
    dw.attach(
        model, dw.LoRAConfig(targets=["q_proj"], rank=2, ties="share", train_rows={"embed_tokens": [3, 4, 5, 30]})
    )
    dw.save(model, tmp_path)
    found = inspect_adapter(tmp_path)
    table = model.get_input_embeddings().weight.detach()
    (rows,) = found.rows
    assert (rows.path, rows.ids, rows.count, rows.width) == ("model.embed_tokens", (3, 4, 5, 30), 4, 16)
    assert rows.norm == pytest.approx(float(table[[3, 4, 5, 30]].norm(dim=-1).mean()), rel=1e-5)
    assert "4 rows of 16 (ids 3-5, 30)" in text_of(found, tmp_path, capsys)


def test_rows_alone_are_no_empty_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = builders.llama()
    dw.attach(model, dw.LoRAConfig(targets=[], train_rows={"embed_tokens": [7]}))
    dw.save(model, tmp_path)
    found = inspect_adapter(tmp_path)
    assert not found.modules and not any("no low-rank update" in warning for warning in found.warnings)
    assert "1 row of 16 (ids 7)" in text_of(found, tmp_path, capsys)


def test_an_attention_is_shown_with_its_output_projection(tmp_path: Path) -> None:
    """PEFT adds the output projection's update twice: what counts is what a reader applies."""
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2)})
    dw.attach(model, dw.LoRAConfig(targets=["attn"], rank=2, seed=1))
    shaken(model)
    dw.save(model, tmp_path)
    modules = {module.path: module for module in inspect_adapter(tmp_path).modules}
    for path in ("attn", "attn.out_proj"):
        dense = torch.cat([product(pair, 1) for pair in pairs_at(model, path)])
        assert modules[path].frobenius == pytest.approx(float(dense.norm()), rel=1e-5)


def test_what_is_only_written_along_is_no_update_that_is_zero(tmp_path: Path) -> None:
    model = nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2)})
    dw.attach(model, dw.LoRAConfig(targets=["attn.out_proj"], rank=2, seed=1))
    shaken(model)
    dw.save(model, tmp_path)
    found = inspect_adapter(tmp_path)
    assert [module.padding for module in found.modules] == [True, False]
    assert not any("zero" in warning for warning in found.warnings)
    assert any("because PEFT adapts them too" in remark for remark in found.remarks)


def test_a_shared_weight_that_others_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = builders.llama(tied=True)
    dw.attach(model, dw.LoRAConfig(targets=["lm_head.weight"], rank=2, ties="share"))
    shaken(model)
    dw.save(model, tmp_path)
    found = {module.path: module for module in inspect_adapter(tmp_path).modules}
    assert found["lm_head"].weight and found["model.embed_tokens"].shares == "lm_head"
    text = text_of(inspect_adapter(tmp_path), tmp_path, capsys)
    assert "lm_head*" in text and "repeats the update of 'lm_head'" in text


def test_a_vera_file_of_others_says_what_it_does_not_hold(tmp_path: Path) -> None:
    """PEFT writes no sizes: the widest input bounds the norm."""
    model = builders.mlp()
    dw.attach(model, dw.LoRAConfig(targets=["fc1", "fc2"], variant="vera", rank=4, alpha=4, seed=1))
    shaken(model)
    dw.save(model, tmp_path)
    ours = {module.path: module for module in inspect_adapter(tmp_path).modules}
    adapter = dw.Adapter.open(tmp_path)
    dw.Adapter(tensors=adapter.tensors, raw=adapter.raw).save(tmp_path / "bare")
    found = inspect_adapter(tmp_path / "bare")
    assert [module.in_features for module in found.modules] == [None, None]
    assert all(module.frobenius >= ours[module.path].frobenius * (1 - 1e-6) for module in found.modules)
    assert any("norms are bounds" in remark for remark in found.remarks) and "? -> " in str(found)


def test_broken_vera_files_are_refused_in_one_error(tmp_path: Path) -> None:
    model = builders.mlp()
    dw.attach(model, dw.LoRAConfig(targets=["fc1", "fc2"], variant="vera", rank=4, alpha=4, seed=1))
    dw.save(model, tmp_path)
    adapter = dw.Adapter.open(tmp_path)
    tensors = {key: value for key, value in adapter.tensors.items() if not key.endswith("fc1.vera_lambda_d")}
    dw.Adapter(tensors=tensors, raw=adapter.raw).save(tmp_path / "broken")
    with pytest.raises(CheckpointError, match="do not fit together"):
        inspect_adapter(tmp_path / "broken")
