"""What initializations that start from data need: directions of each site's inputs, or gradients of its weight.

The base runs as it is: nothing is attached yet, its parameters' flags and gradients are given back as they were.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.errors import ConfigError
from deltaw.initialize import INITIALIZATIONS
from deltaw.layers.attention import ATTENTION
from deltaw.record import find_record
from deltaw.sites import Plan, Site
from deltaw.tree import parent_of, require_model

__all__ = ["Sketch", "eva_ranks", "gather"]


class Sketch:
    """The strongest directions of rows that come in pieces: a singular value decomposition updated piece by piece.

    Args:
        directions: how many to keep.

    Source:
        Ross et al. 2008, incremental learning for visual tracking, without the mean.

    Example:
        >>> sketch = Sketch(1); sketch.update(torch.tensor([[3.0, 0.0], [0.0, 1.0]])); sketch.values.tolist()
        [3.0]
    """

    def __init__(self, directions: int) -> None:
        self.directions = directions
        # more are carried along than asked for, since what is cut off in between is lost
        self._carried = 2 * directions + 8
        self._values, self._vectors = torch.empty(0), torch.empty(0, 0)
        self.total = 0.0

    @property
    def values(self) -> Tensor:
        """Singular values of the rows so far, descending."""
        return self._values[: self.directions]

    @property
    def vectors(self) -> Tensor:
        """Right singular vectors of the rows so far, shape (directions, K)."""
        return self._vectors[: self.directions]

    def update(self, rows: Tensor) -> None:
        """Take in more rows.

        Args:
            rows: shape (N, K), floating.
        """
        rows = rows.detach().to("cpu", torch.float32)
        self.total += float(rows.double().square().sum())
        stacked = torch.cat([self._values[:, None] * self._vectors, rows]) if len(self._values) else rows
        if len(stacked) > stacked.shape[1]:
            # the triangle of a QR decomposition has the same right singular vectors and is small
            stacked = torch.linalg.qr(stacked, mode="r").R
        _, S, Vh = torch.linalg.svd(stacked, full_matrices=False)
        self._values, self._vectors = S[: self._carried], Vh[: self._carried]


def gather(
    model: nn.Module, made: Plan, batches: Iterable[Any] | None, loss: Callable[[Any], Tensor] | None
) -> dict[str, Tensor]:
    """What the plan's initialization needs to know about the data.

    Args:
        model: the base.
        made: the plan.
        batches: inputs of the model: mappings, tuples or tensors.
        loss: output -> scalar; None takes ``output.loss``.

    Returns:
        path -> right singular vectors of the site's inputs, or gradient of its weight as a matrix (O, K).

    Raises:
        ConfigError: if batches are missing, empty, or of no use to the initialization.
    """
    init = made.config.init
    needs = INITIALIZATIONS[init].needs
    wanted = needs in _GATHERERS
    if wanted != (batches is not None) or (loss is not None and needs != "gradient"):
        what = "batches" if wanted or batches is not None else "loss"
        raise ConfigError(
            f"init={init!r} needs batches of data" if wanted else f"init={init!r} has no use for {what}",
            where=f"attach(..., {what}=...)",
            got="no batches" if wanted else f"{what} given",
            expected="batches of inputs" if wanted else f"no {what}",
            hint="pass batches=loader." if wanted else "leave it out, or use init='eva' or init='lora_ga'.",
        )
    if not wanted or batches is None or not made.sites:
        return {}
    root = require_model(model)
    with _resting(root):
        return _GATHERERS[needs](root, made, _checked(batches, init), loss)


@contextmanager
def _resting(root: nn.Module) -> Iterator[None]:
    """The base in evaluation mode, frozen, and all adapters off; everything as it was afterwards."""
    flags = {name: (p, p.requires_grad) for name, p in root.named_parameters()}
    training = {module: module.training for module in root.modules()}
    record = find_record(root)
    root.requires_grad_(False).eval()
    try:
        with nullcontext() if record is None else record.override(()):
            yield
    finally:
        for parameter, flag in flags.values():
            parameter.requires_grad_(flag)
        for module, mode in training.items():
            module.training = mode


def _checked(batches: Iterable[Any], init: str) -> Iterator[Any]:
    """The batches, at least one."""
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ConfigError(
            "there was no batch to start from",
            where=f"init={init!r}",
            got="an empty iterable",
            expected="at least one batch",
            hint="pass a loader, not an iterator that was used up before.",
        )


def _run(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    if not isinstance(batch, tuple | list | Tensor):
        raise ConfigError(
            "this is no batch",
            where="attach(..., batches=...)",
            got=type(batch).__name__,
            expected="a mapping of arguments, a tuple of them, or a tensor",
            hint="yield what the model's forward takes.",
        )
    return model(batch) if isinstance(batch, Tensor) else model(*batch)


@contextmanager
def _listening(model: nn.Module, sites: list[Site], hear: Callable[[Site, Tensor], None]) -> Iterator[None]:
    """Call ``hear`` with each site's input, as rows."""

    def hook_of(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            if site.kind.forward is not None and any(other is not x for other in (*args, *kwargs.values())[1:3]):
                raise ConfigError(
                    "attention between two sequences has no one input to start from",
                    where=f"module '{site.path}'",
                    got="a key or value that is not the query",
                    expected="self-attention",
                    hint="exclude it, or use init='kaiming'.",
                )
            hear(site, x.detach().reshape(-1, x.shape[-1]))

        return hook

    handles = [site.module.register_forward_pre_hook(hook_of(site), with_kwargs=True) for site in sites]
    # torch's attention reads its output projection's weight; run as its own adapted form it calls the projection
    attentions = {id(parent): parent for site in sites if (parent := _attention(model, site.path)) is not None}
    for parent in attentions.values():
        parent.__dict__["forward"] = functools.partial(_called, parent)
    try:
        yield
    finally:
        for parent in attentions.values():
            del parent.__dict__["forward"]
        for handle in handles:
            handle.remove()


def _attention(model: nn.Module, path: str) -> nn.Module | None:
    parent = parent_of(model, path)
    return parent if isinstance(parent, nn.MultiheadAttention) and "forward" not in parent.__dict__ else None


def _called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Attention whose projections are called, without any term."""
    assert ATTENTION.forward is not None
    return ATTENTION.forward(module, lambda out, x, start, stop: out, args, kwargs)


def _sketches(model: nn.Module, sites: Iterable[Site], batches: Iterable[Any], factor: float = 1) -> dict[str, Sketch]:
    chosen = list(sites)
    found = {site.path: Sketch(min(site.in_features, int(site.rank * factor))) for site in chosen}
    with _listening(model, chosen, lambda site, rows: found[site.path].update(rows)), torch.no_grad():
        for batch in batches:
            _run(model, batch)
    return found


def _inputs(model: nn.Module, made: Plan, batches: Iterable[Any], loss: Any) -> dict[str, Tensor]:
    sketches = _sketches(model, made.sites, batches)
    _refuse_deaf(made, [path for path, sketch in sketches.items() if not len(sketch.values)])
    return {path: sketch.vectors for path, sketch in sketches.items()}


def _refuse_deaf(made: Plan, deaf: list[str]) -> None:
    if deaf:
        raise ConfigError(
            "no input reached this site",
            where=f"init={made.config.init!r}, module '{deaf[0]}'",
            got=f"{len(deaf)} sites that the batches never called",
            expected="batches that run every site",
            hint="its parent reads its weight itself, or the batches skip it; exclude it, or use init='kaiming'.",
        )


def _gradients(model: nn.Module, made: Plan, batches: Iterable[Any], loss: Any) -> dict[str, Tensor]:
    """Mean gradients of the sites' weights."""
    weights = {site.path: site.kind.weight(site.module) for site in made.sites}
    for weight in weights.values():
        weight.requires_grad_(True)
    total: dict[str, Tensor] = {}
    count = 0
    for batch in batches:
        with torch.enable_grad():
            output = _run(model, batch)
            value = getattr(output, "loss", None) if loss is None else loss(output)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ConfigError(
                "this initialization needs a loss",
                where="attach(..., batches=...)",
                got=f"an output of {type(output).__name__} without a scalar loss",
                expected="output.loss, or loss= that makes a scalar of the output",
                hint="put labels into the batches, or pass loss=lambda output: ...",
            )
        found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        for path, part in zip(weights, found, strict=True):
            if part is not None:
                total[path] = total[path] + part.float() if path in total else part.float()
        count += 1
    _refuse_deaf(made, [path for path in weights if path not in total])
    return {site.path: site.kind.matrix(site.module, total[site.path] / count) for site in made.sites}


_GATHERERS: dict[str, Callable[..., dict[str, Tensor]]] = {"inputs": _inputs, "gradient": _gradients}


def eva_ranks(model: nn.Module, made: Plan, batches: Iterable[Any], spread: float = 2.0) -> dict[str, int]:
    """Ranks for ``rank_pattern`` that follow how much each site's inputs vary; their sum stays the plan's.

    Args:
        model: the base.
        made: a plan whose ranks are to be shared out again.
        batches: inputs of the model: mappings, tuples or tensors.
        spread: no site gets more than this many times its planned rank, at least 1.

    Returns:
        path -> rank, 0 for sites that get none.

    Raises:
        ConfigError: if there is no batch, or the spread is below 1.

    Source:
        Paischer et al. 2024, arXiv:2410.07170, section 3: directions are ranked by the share of variance they explain.
    """
    if not spread >= 1:
        raise ConfigError(
            "a spread below 1 cannot keep the sum of the ranks",
            where="eva_ranks(..., spread=...)",
            got=repr(spread),
            expected="a number of at least 1",
            hint="2 lets a site have up to twice its planned rank.",
        )
    root = require_model(model)
    with _resting(root):
        sketches = _sketches(root, made.sites, _checked(batches, "eva"), spread)
    shares = [
        (float(value) ** 2 / max(sketch.total, 1e-30), path)
        for path, sketch in sketches.items()
        for value in sketch.values
    ]
    budget = sum(site.rank for site in made.sites)
    ranks = dict.fromkeys(sketches, 0)
    for _, path in sorted(shares, key=lambda pair: (-pair[0], pair[1]))[:budget]:
        ranks[path] += 1
    return ranks
