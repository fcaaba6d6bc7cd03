"""Latency, throughput, switching: what is timed answers rightly, the base stays as it is, tables and figures are made.

No time is asserted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltaw as dw
from deltaw.errors import ConfigError, FaithError, ModelError
from deltaw.paper.analyses.contenders import BASE, CONTENDERS, Contender, built, lora_config, pick, wear_lora
from deltaw.paper.analyses.latency import latency
from deltaw.paper.analyses.subjects import random_inputs, subject, twin
from deltaw.paper.analyses.switch import switch
from deltaw.paper.analyses.throughput import peak_bytes, throughput
from deltaw.paper.analyses.turns import take_turns, timings
from deltaw.paper.roles import roles_of, targets_for
from verb_models import adapter_dir, base_dir

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_dir(tmp_path_factory.mktemp("timing") / "base", "gpt2")


@pytest.fixture(scope="module")
def loaded(place: Path) -> Any:
    return subject(str(place), device=CPU)


@pytest.fixture
def model(loaded: Any) -> Iterator[Any]:
    """The base; whatever a test does with it, it must be the same afterwards."""
    before = {key: value.clone() for key, value in loaded.state_dict().items()}
    yield loaded
    after = loaded.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], value) for key, value in before.items())
    assert not dw.attached(loaded) and not any(p.requires_grad for p in loaded.parameters())


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """A stand-in adapter: x + up(relu(down(x))), up zero at the start."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(torch.relu(self.down(x)))  # type: ignore[no-any-return]


def put_on(model: Any, size: int) -> int:
    count = 0
    for block in model.transformer.h:
        block.adapter = Bottleneck(model.config.n_embd, size)
        block.mlp.register_forward_hook(lambda module, args, out, adapter=block.adapter: adapter(out))
        count += sum(parameter.numel() for parameter in block.adapter.parameters())
    return count


STAND_IN = Contender(name="Adapter", put_on=put_on)
TABLE = (*CONTENDERS[:3], STAND_IN)


def test_turns_rotate_and_ratios_are_round_by_round() -> None:
    order: list[str] = []

    def measure(name: str, value: float) -> Callable[[], float]:
        return lambda: order.append(name) or value  # type: ignore[func-returns-value]

    taken = take_turns({"base": measure("a", 2.0), "x": measure("b", 3.0)}, 3, warm_ups=1)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert taken == {"base": [2.0] * 3, "x": [3.0] * 3}
    found = timings({"base": [1.0, 10.0, 1.0], "x": [2.0, 20.0, 3.0]}, "base")["x"]
    assert found.ratio == 2 and found.mean == pytest.approx(25 / 3) and found.rounds == 3
    assert found.deviation == pytest.approx(math.sqrt(sum((v - 25 / 3) ** 2 for v in (2, 20, 3)) / 2))


def test_copies_share_weights_unless_they_write_to_them(model: Any) -> None:
    shared, own = twin(model), twin(model, own=True)
    pairs = zip(model.parameters(), shared.parameters(), own.parameters(), strict=True)
    assert all(a is b and a is not c and torch.equal(a, c) for a, b, c in pairs)


def test_methods_start_at_the_base_and_merged_answers_as_unmerged(model: Any) -> None:
    ids = random_inputs(model, 2, 9)
    base = logits(model, ids)
    fresh = twin(model)
    dw.attach(fresh, lora_config(fresh, 4))
    stand_in, count = built(STAND_IN, model, 3)
    plain, none = built(CONTENDERS[0], model, 3)
    for each in (fresh, stand_in, plain):
        assert torch.equal(logits(each, ids), base)
    assert none == 0 and count == 2 * (32 * 3 + 3 + 3 * 32 + 32)
    (unmerged, values), (merged, same) = (built(contender, model, 4) for contender in CONTENDERS[1:3])
    assert values == same == 2 * 2 * 4 * (32 + 32)
    changed = logits(unmerged, ids)
    assert (changed - base).abs().max() > 1e-3
    torch.testing.assert_close(logits(merged, ids), changed, rtol=1e-4, atol=1e-4)
    assert list(merged.state_dict()) == list(model.state_dict())


@pytest.mark.slow
def test_latency_has_a_case_for_everything_and_makes_table_and_figure(model: Any, tmp_path: Path) -> None:
    found = latency(model, name="toy", batches=(1, 2), lengths=(4, 8), sizes=(2, 3), rounds=2, table=TABLE, methods=())
    keys = {(c.method, c.batch, c.length, c.bottleneck) for c in found.cases}
    assert len(found.cases) == len(keys) == 4 * 8 and found.methods == (BASE, "LoRA", "LoRA merged", "Adapter")
    assert found.difference is not None and found.difference < 1e-5
    by_size = {c.bottleneck: c.parameters for c in found.cases if c.method == "LoRA"}
    assert by_size == {2: 512, 3: 768}
    for case in found.cases:
        timing = case.timing
        assert timing.mean > 0 and timing.rounds == 2 and timing.ratios[0] <= timing.ratio <= timing.ratios[1]
        assert case.method != BASE or timing.ratio == 1
    lines = found.text().splitlines()
    assert len([line for line in lines if "+-" in line]) == 8 and "%" in lines[2]
    assert all(file.stat().st_size for file in found.save(tmp_path))


def test_methods_are_chosen_and_bring_what_they_are_compared_with(model: Any) -> None:
    assert [c.name for c in pick(["LoRA merged"], TABLE)] == [BASE, "LoRA", "LoRA merged"]
    assert [c.name for c in pick([], TABLE)] == [c.name for c in TABLE]
    absent = Contender(name="Absent", put_on=put_on, needs="deltaw.no_such_module")
    assert not absent.present and [c.name for c in pick([], (*TABLE, absent))] == [c.name for c in TABLE]
    with pytest.raises(ConfigError, match="nearest: 'Adapter'"):
        pick(["Adaptor"], TABLE)
    with pytest.raises(ConfigError, match="not installed"):
        pick(["Absent"], (*TABLE, absent))
    found = latency(model, name="toy", lengths=(4,), rounds=1, table=(*TABLE[:1], absent))
    assert found.notes == ("not installed, so not timed: Absent",)
    assert found.difference is None


def test_a_merge_that_answers_otherwise_is_not_timed(model: Any) -> None:
    def wrong(model: Any, size: int) -> int:
        with torch.no_grad():
            next(iter(model.transformer.h)).mlp.c_fc.weight.mul_(1.5)
        return 0

    table = (*TABLE, Contender(name="broken", put_on=wrong, own=True, same="LoRA"))
    with pytest.raises(FaithError, match="broken does not answer"):
        latency(model, name="toy", lengths=(4,), rounds=1, table=table)


@pytest.mark.parametrize("given", [{"rounds": 0}, {"batches": (0,)}, {"sizes": (-1,)}, {"lengths": (97,)}])
def test_latency_refuses_bad_numbers(given: dict[str, Any], model: Any) -> None:
    with pytest.raises(ConfigError):
        latency(model, **{"name": "toy", "rounds": 1, **given})


@pytest.mark.slow
def test_throughput_counts_and_measures_both(model: Any, tmp_path: Path) -> None:
    found = throughput(model, name="toy", batch=2, length=8, rank=2, rounds=3)
    full, lora = found.speeds
    total = sum(parameter.numel() for parameter in model.parameters())
    assert full.trained == total and lora.trained == 2 * 2 * 2 * 64
    assert full.ratio == 1 and lora.ratio > 0 and full.tokens > 0
    # gradients and two moments of every weight, at the end of the first step
    assert full.peak_bytes > 3 * 4 * total > lora.peak_bytes > 0
    assert full.rest_bytes == 4 * total and lora.rest_bytes == 4 * (total + lora.trained)
    assert "time saved" in found.text() and len(found.save(tmp_path)) == 5


def test_throughput_of_a_classifier(tmp_path: Path) -> None:
    base = subject(str(base_dir(tmp_path / "bert", "bert")), device=CPU)
    assert [speed.tokens > 0 for speed in throughput(base, name="b", batch=2, length=5, rounds=1).speeds] == [True] * 2


def test_the_peak_is_what_is_held_at_once() -> None:
    def step() -> None:
        first = torch.ones(1 << 20)
        del first
        both = torch.ones(1 << 19), torch.ones(1 << 20)
        del both

    assert peak_bytes(step, CPU) == pytest.approx(4 * 3 * (1 << 19), rel=0.01)


@pytest.mark.slow
def test_switching_times_every_way_and_is_exact(model: Any, tmp_path: Path) -> None:
    found = switch(model, name="toy", count=3, rank=2, rounds=2)
    assert [way.way for way in found.ways] == ["activate", "unmerge and merge", "read from disk"]
    # slices are stacked on disk: A (4, 32) and B (96, 4) in each of two layers
    assert found.adapters == 3 and found.adapter_bytes == 4 * 2 * 4 * (32 + 96)
    assert all(way.mean > 0 and way.median > 0 for way in found.ways) and len(found.save(tmp_path)) == 5


def test_switching_between_given_adapters(place: Path, model: Any, tmp_path: Path) -> None:
    places = [adapter_dir(place, tmp_path / str(n), targets=["c_fc"], rank=2, seed=n) for n in (1, 2)]
    found = switch(model, name="toy", adapters=places, rounds=2)
    assert found.adapters == 2 and found.adapter_bytes == 4 * 2 * 2 * (32 + 128)
    with pytest.raises(ConfigError, match="--adapters"):
        switch(model, name="toy", adapters=places[:1])


def test_a_named_shape_has_random_weights_that_depend_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    from deltaw import presets

    tiny = presets.Preset(
        config={"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 32},
        task="causal", note="",
    )  # fmt: skip
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)
    state = torch.get_rng_state()
    one, same, other = (subject("tiny", device=CPU, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [each.transformer.h[0].mlp.c_fc.weight for each in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert subject("tiny", device=CPU, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_tokens_fit_the_model(model: Any) -> None:
    ids = random_inputs(model, 3, 7, seed=1)
    assert ids.shape == (3, 7) and int(ids.max()) < model.config.vocab_size and int(ids.min()) >= 4
    assert torch.equal(ids, random_inputs(model, 3, 7, seed=1))
    assert not torch.equal(ids, random_inputs(model, 3, 7, seed=2))


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("gpt2", ("c_attn[q,k,v]", "attn.c_proj")),
        ("llama", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("bert", ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")),
    ],
)
def test_the_papers_projections_are_found_by_name(kind: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    base = subject(str(base_dir(tmp_path / kind, kind)), device=CPU)
    assert targets_for(roles_of(base), "qkvo") == targets
    assert wear_lora(base, 1) > 0


def test_a_model_without_known_projections_is_refused() -> None:
    with pytest.raises(ModelError, match="not known by name"):
        roles_of(nn.Sequential(nn.Linear(2, 2)))
