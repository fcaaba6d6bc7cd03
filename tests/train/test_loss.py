"""The loss: a sum over trained tokens, the same however a window is cut and whichever way it goes through the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_train import make_model

from deltaw.train.batches import collate
from deltaw.train.loss import Losses, label_loss


@dataclass
class Ex:
    ids: list[int]
    weights: list[float]
    label: int | float | None = None
    types: list[int] | None = None


def examples(count: int = 6) -> list[Ex]:
    generator = torch.Generator().manual_seed(5)
    out = []
    for index in range(count):
        ids = torch.randint(2, 40, (4 + index,), generator=generator).tolist()
        weights = [0.0, 0.0] + [1.0 if place % 3 else 0.25 for place in range(len(ids) - 2)]
        out.append(Ex(ids, weights))
    return out


def by_hand(model: Any, ex: Ex) -> torch.Tensor:
    """Token by token, from the full logits of one unpadded example."""
    logits = model(input_ids=torch.tensor([ex.ids])).logits[0].double()
    terms = [
        weight * -F.log_softmax(logits[place - 1], -1)[ex.ids[place]]
        for place, weight in enumerate(ex.weights)
        if weight
    ]
    return torch.stack(terms).sum()


def test_weighted_sum_matches_a_loop_over_tokens() -> None:
    model, rows = make_model(40).eval(), examples()
    losses = Losses(model, "causal")
    batch = collate(rows, range(len(rows)), 1)
    losses.verify(batch)
    assert losses.note == "only trained tokens go through the head, a chunk at a time"
    expected = torch.stack([by_hand(model, ex) for ex in rows]).sum()
    assert losses(batch).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_both_ways_through_the_head_agree() -> None:
    model, rows = make_model(40).eval(), examples()
    batch = collate(rows, range(len(rows)), 1)
    short, full = Losses(model, "causal"), Losses(model, "causal")
    full._split = None
    assert short(batch).total.item() == pytest.approx(full(batch).total.item(), rel=1e-5)


def test_a_model_that_changes_its_logits_falls_back_and_says_so() -> None:
    model = make_model(40).eval()
    plain = model.forward

    def capped(**inputs: Any) -> Any:
        out = plain(**inputs)
        out.logits = 3 * torch.tanh(out.logits / 3)
        return out

    model.forward = capped
    losses = Losses(model, "causal")
    batch = collate(examples(), range(6), 1)
    losses.verify(batch)
    assert "changes its logits after the head" in losses.note
    expected = torch.stack([by_hand(lambda input_ids: capped(input_ids=input_ids), ex) for ex in examples()]).sum()
    assert losses(batch).total.item() == pytest.approx(expected.item(), rel=1e-5)


def gradients(model: Any, parts: list[list[Ex]]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a window cut into ``parts``."""
    model.zero_grad(set_to_none=True)
    losses = Losses(model, "causal")
    batches = [collate(part, range(len(part)), 1) for part in parts]
    weight, total = sum(batch.weight for batch in batches), 0.0
    for batch in batches:
        loss = losses(batch).total / weight
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


def test_accumulating_n_batches_equals_one_batch_of_n() -> None:
    model, rows = make_model(40).eval(), examples()
    loss, whole = gradients(model, [rows])
    for parts in ([[row] for row in rows], [rows[:1], rows[1:]], [rows[:4], rows[4:5], rows[5:]]):
        other, cut = gradients(model, parts)
        assert other == pytest.approx(loss, rel=1e-6)
        for name, grad in whole.items():
            scale = float(grad.abs().max()) + 1e-8
            assert float((grad - cut[name]).abs().max()) / scale < 1e-4, name


def test_averaging_per_batch_would_be_another_loss() -> None:
    """Guards the test above: with unequal weights the wrong rule gives a different number."""
    model, rows = make_model(40).eval(), examples()
    losses = Losses(model, "causal")
    whole = collate(rows, range(6), 1)
    parts = [collate([row], (0,), 1) for row in rows]
    right = losses(whole).total.item() / whole.weight
    wrong = sum(losses(part).total.item() / part.weight for part in parts) / len(parts)
    assert abs(right - wrong) > 1e-3


def test_label_losses_are_sums() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    labels = torch.tensor([0, 0])
    expected = F.cross_entropy(logits, labels) * 2
    assert float(label_loss(logits, labels, "classification")) == pytest.approx(float(expected))
    assert float(label_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0]), "regression")) == 5.0
