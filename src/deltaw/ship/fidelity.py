"""Is a merged model faithful? Judged against what a merge in float64 would give.

The reference is taken while the adapter is on: its logits on the probes, and for every adapted module the output that
float64 weights W + dW would give on the probe's activations. The merge of record is then *ideal* rounding: those
float64 weights, rounded once to the dtype that is written. Nothing can do better in that dtype, so its errors set the
bounds:

- per module: error <= 4 x (error of ideal rounding + the dtype's own matmul error of the base module);
- whole model: max |logit difference| / max |logit| <= 4 x (that of a model with ideally rounded modules + eps);
- KL divergence, mean over tokens <= 16 x (that of the ideally rounded model + eps^2): KL is quadratic in the error, so
  the factor is squared;
- greedy tokens: a disagreement counts where the margin of the two likeliest tokens exceeds the logit difference there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from deltaw.attach import disabled
from deltaw.blocks import dense_delta
from deltaw.changes import bias_value
from deltaw.errors import FaithError, StateError
from deltaw.functional import compute_dtype
from deltaw.layer import container_of
from deltaw.layers import Kind, kind_of
from deltaw.merge import merge, unmerge
from deltaw.record import Record, record_of
from deltaw.reports import table
from deltaw.worn import FullCopy, Reader

__all__ = ["FidelityReport", "Probe", "Reference", "SiteFidelity", "fidelity", "reference"]

Probe: TypeAlias = Tensor | Mapping[str, Tensor]
"""One batch of inputs: a tensor given to the model as it is, or its keyword arguments."""

FACTOR = 4
ROWS = 64
"""Rows of activations kept per module."""

WIDE = torch.float64


@dataclass(frozen=True, kw_only=True)
class SiteFidelity:
    """One module of the merged model.

    Args:
        path: dotted module path.
        error: max |output - float64 output| / max |float64 output|.
        bound: the same for ideal rounding and the dtype's own matmul error, times 4.
    """

    path: str
    error: float
    bound: float

    @property
    def faithful(self) -> bool:
        """Whether the error keeps to the bound."""
        return self.error <= self.bound


@dataclass(frozen=True, kw_only=True)
class FidelityReport:
    """What a merged model's outputs say beside the adapted model's; ``str`` is a table.

    Args:
        dtype: of the merged weights.
        sites: one entry per adapted module.
        logit_error: max |logit difference| / max |logit|.
        logit_bound: bound on it, or the tolerance that replaces it.
        kl_mean: KL(adapted || merged), mean over tokens, nats.
        kl_max: its largest value.
        kl_bound: bound on the mean.
        tokens: positions compared.
        disagreements: greedy tokens that differ although the margin exceeds the logit difference.
        undecided: greedy tokens that differ within it.
        effect: max |logit difference| / max |logit| between adapted model and base: what there is to reproduce.
        tolerance: given by the user, or None; then only ``logit_error`` is judged, against it.
    """

    dtype: torch.dtype
    sites: tuple[SiteFidelity, ...]
    logit_error: float
    logit_bound: float
    kl_mean: float
    kl_max: float
    kl_bound: float
    tokens: int
    disagreements: int
    undecided: int
    effect: float
    tolerance: float | None = None

    @property
    def unfaithful_sites(self) -> tuple[SiteFidelity, ...]:
        """Modules beyond their bound, worst first."""
        return tuple(sorted((site for site in self.sites if not site.faithful), key=_excess, reverse=True))

    @property
    def failures(self) -> tuple[str, ...]:
        """What is beyond its bound, one line each; empty for a faithful merge."""
        # "not <=" and not ">": a NaN is beyond every bound.
        beyond = not self.logit_error <= self.logit_bound
        lines = [f"logit error {self.logit_error:.2e} > {self.logit_bound:.2e}"] if beyond else []
        if self.tolerance is not None:
            return tuple(lines)
        if bad := self.unfaithful_sites:
            worst = f"'{bad[0].path}' {bad[0].error:.2e} > {bad[0].bound:.2e}"
            lines.append(f"{len(bad)} of {len(self.sites)} modules, worst {worst}")
        if not self.kl_mean <= self.kl_bound:
            lines.append(f"mean KL {self.kl_mean:.2e} > {self.kl_bound:.2e}")
        if self.disagreements:
            lines.append(f"{self.disagreements} of {self.tokens} greedy tokens differ")
        return tuple(lines)

    @property
    def faithful(self) -> bool:
        """Whether everything that is judged keeps to its bound."""
        return not self.failures

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know although the merge is as good as the dtype allows."""
        if self.faithful and self.effect > 0 and self.logit_error > self.effect / 2:
            return (
                f"rounding to {_name(self.dtype)} changes the output by {self.logit_error:.1e}, the adapter by "
                f"{self.effect:.1e}: merge in float32, or keep the adapter beside the base",
            )
        if self.effect == 0:
            return ("the adapter changes no output on these probes",)
        return ()

    def __str__(self) -> str:
        """The numbers beside their bounds."""
        worst = max(self.sites, key=_excess, default=None)
        rows = [("logits, max error / max", f"{self.logit_error:.2e}", f"{self.logit_bound:.2e}")]
        if worst is not None:
            rows.insert(0, (f"module, worst: {worst.path}", f"{worst.error:.2e}", f"{worst.bound:.2e}"))
        rows.append((f"KL, mean (max {self.kl_max:.1e})", f"{self.kl_mean:.2e}", f"{self.kl_bound:.2e}"))
        agree = self.tokens - self.disagreements - self.undecided
        same = f"{agree} same, {self.undecided} within the error"
        rows.append(("greedy tokens that differ", str(self.disagreements), "0"))
        verdict = "faithful" if self.faithful else "NOT FAITHFUL: " + "; ".join(self.failures)
        head = f"merge in {_name(self.dtype)} against the adapter on, {self.tokens} tokens ({same}), "
        head += f"{len(self.sites)} modules; the adapter's own effect on the logits is {self.effect:.1e}"
        lines = [head, table(("", "measured", "bound"), rows), f"merge: {verdict}"]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    def require(self, where: str) -> None:
        """Refuse an unfaithful merge.

        Args:
            where: what was merged, for the message.

        Raises:
            FaithError: if anything is beyond its bound.
        """
        if not self.faithful:
            given = self.tolerance is not None
            raise FaithError(
                "the merged model does not reproduce the model with its adapter on",
                where=where,
                got="; ".join(self.failures),
                expected="within the given tolerance" if given else "within 4 x the error of a float64 merge",
                hint="try --dtype float32; if that fails too, the merge is wrong: keep the adapter beside the base",
            )


@dataclass(frozen=True, kw_only=True)
class _Site:
    """What was taken of one module: activations, the float64 output, and the bound on the relative error."""

    inputs: Tensor
    output: Tensor
    bound: float


@dataclass(kw_only=True)
class Reference:
    """What the model with its adapter on says; made by ``reference``, used by ``judge``.

    Args:
        probes: the inputs.
        dtype: of the merged weights.
        on: logits with the adapter on, shape (tokens, V), one entry per probe.
        ideal_error: logit error of the ideally rounded model.
        ideal_kl: its mean KL.
        effect: logit error of the base alone.
        sites: module path -> what was taken of it.
    """

    probes: Sequence[Probe]
    dtype: torch.dtype
    on: list[Tensor]
    ideal_error: float = 0.0
    ideal_kl: float = 0.0
    effect: float = 0.0
    sites: dict[str, _Site] = field(default_factory=dict)

    @torch.no_grad()
    def judge(self, model: nn.Module, *, tolerance: float | None = None) -> FidelityReport:
        """Compare a merged model.

        Args:
            model: the merged model, in eval mode; its modules stand at the paths they had.
            tolerance: judge only the logit error, against this; None judges everything by its bound.

        Returns:
            The report.
        """
        modules = dict(model.named_modules())
        sites = tuple(_judge_site(path, modules[path], site) for path, site in self.sites.items())
        merged = [_logits(model, probe) for probe in self.probes]
        found = _compare(self.on, merged)
        eps = torch.finfo(self.dtype).eps
        bound = FACTOR * (self.ideal_error + eps) if tolerance is None else tolerance
        return FidelityReport(
            dtype=self.dtype,
            sites=sites,
            logit_bound=bound,
            kl_bound=FACTOR**2 * (self.ideal_kl + eps**2),
            effect=self.effect,
            tolerance=tolerance,
            **found,
        )


@torch.no_grad()
def reference(model: nn.Module, probes: Sequence[Probe], *, dtype: torch.dtype | None = None) -> Reference:
    """Take the reference for judging a merge; the model is as it was afterwards.

    Costs three forward passes over the probes and one float64 copy of one weight at a time.

    Args:
        model: an attached, unmerged model; the active adapters are those that will be merged.
        probes: inputs, at least one.
        dtype: dtype of the merged weights, where it is not that of the adapted ones.

    Returns:
        The reference.

    Raises:
        StateError: if the model is merged, wears no active adapter, or there is no probe.
    """
    record = record_of(model, "judge a merge")
    record.require_unmerged("judge a merge")
    if not probes or not record.current():
        raise StateError(
            "a merge cannot be judged",
            where=type(model).__name__,
            got="no probe" if not probes else "no active adapter",
            expected="at least one probe and one active adapter",
            hint="pass token batches as probes, and activate an adapter.",
        )
    own = next((m.weight.dtype for m in record.modules.values() if isinstance(m.weight, Tensor)), torch.float32)
    with _evaluating(model):
        found = Reference(probes=probes, dtype=dtype or own, on=[_logits(model, probe) for probe in probes])
        with _ideal(record, found):
            ideal = [_logits(model, probe) for probe in probes]
        with disabled(model):
            base = [_logits(model, probe) for probe in probes]
            recast = _recast(model, probes, found.dtype) if found.dtype != own else base
    seen = _compare(found.on, ideal)
    found.ideal_error = seen["logit_error"] + _compare(base, recast)["logit_error"]
    found.ideal_kl = seen["kl_mean"] + _compare(base, recast)["kl_mean"]
    found.effect = _compare(found.on, base)["logit_error"]
    return found


def fidelity(model: nn.Module, probes: Sequence[Probe], *, tolerance: float | None = None) -> FidelityReport:
    """Merge the active adapters, judge, and unmerge: the model is as it was, bit for bit.

    Args:
        model: an attached, unmerged model.
        probes: inputs, at least one.
        tolerance: as for ``Reference.judge``.

    Returns:
        The report.

    Raises:
        StateError: as ``reference``, and if the model cannot be merged.
    """
    taken = reference(model, probes)
    merge(model)
    try:
        with _evaluating(model):
            return taken.judge(model, tolerance=tolerance)
    finally:
        unmerge(model)


def _judge_site(path: str, module: nn.Module, site: _Site) -> SiteFidelity:
    weight: Any = module.weight
    inputs = site.inputs.to(weight.device)
    inputs = inputs.to(weight.dtype) if inputs.is_floating_point() else inputs
    error = _relative(module(inputs).to(WIDE).cpu(), site.output)
    return SiteFidelity(path=path, error=error, bound=site.bound)


@contextmanager
def _ideal(record: Record, taken: Reference) -> Iterator[None]:
    """Run adapted modules with ideally rounded weights, taking their references on the way."""
    hooks = []
    for path, module in record.modules.items():
        kind = kind_of(module)
        worn = container_of(module).worn()
        entries = [(entry, weight) for entry, weight in worn if not isinstance(entry, FullCopy | Reader)]
        if entries:
            hook = _hook(path, kind, entries, taken)
            if container_of(module).raw:
                # such a weight answers whoever reads it with its updates added, which the ideal one has already
                hook = _bare(record, hook)
            hooks.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _hook(path: str, kind: Kind | None, entries: list[tuple[Any, float]], taken: Reference) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        # The class of a LoRA layer is a subclass of its own class, which stands next in its ancestry.
        forward = type(module).__mro__[1].forward  # type: ignore[attr-defined]
        exact = _exact(module, kind, entries)
        if path not in taken.sites and isinstance(out, Tensor):
            inputs = _some(kind, (args or tuple(kwargs.values()))[0])
            taken.sites[path] = _take(module, forward, exact, inputs, taken.dtype)
        # an attention gives its weights too; what it computes is judged with everything behind it
        number = (out if isinstance(out, Tensor) else out[0]).dtype
        rounded = {key: value.to(taken.dtype).to(number) for key, value in exact.items()}
        with _wearing(module, rounded):
            return forward(module, *args, **kwargs)

    return hook


def _bare(record: Record, hook: Callable[..., Any]) -> Callable[..., Any]:
    def quiet(*args: Any) -> Any:
        with record.override(()):
            return hook(*args)

    return quiet


def _exact(module: nn.Module, kind: Kind | None, entries: list[tuple[Any, float]]) -> dict[str, Tensor]:
    """The module's parameters as a float64 merge has them."""
    own = {key: value.detach().to(WIDE) for key, value in module._parameters.items() if value is not None}
    if kind is not None:
        base = own[kind.parameter]
        for entry, _ in entries:
            if entry.tokens is not None:
                base = base.index_copy(0, entry.tokens.index.to(base.device), entry.tokens.rows.detach().to(base))
        base = base if kind.bounded is None else kind.bounded(module, base)
        own[kind.parameter] = base
        for entry, weight in entries:
            if hasattr(entry, "parts"):
                own[kind.parameter] = own[kind.parameter] + dense_delta(kind, module, entry, base) * weight
    bias = bias_value(module, kind, entries)
    if bias is not None:
        own["bias" if kind is None else kind.bias] = bias.to(WIDE)
    return own


def _some(kind: Kind | None, inputs: Tensor) -> Tensor:
    """A few rows of a module's input, in a shape the module takes."""
    if not inputs.is_floating_point():
        return inputs.flatten()[:ROWS].clone()
    if kind is not None and kind.name in {"Linear", "Conv1D"}:
        return inputs.reshape(-1, inputs.shape[-1])[:ROWS].clone()
    return inputs[:1].clone()


def _take(
    module: nn.Module, forward: Callable[..., Tensor], exact: dict[str, Tensor], inputs: Tensor, dtype: torch.dtype
) -> _Site:
    base = {key: value.detach().to(WIDE) for key, value in module._parameters.items() if value is not None}

    def run(weights: dict[str, Tensor], number: torch.dtype) -> Tensor:
        with _wearing(module, {key: value.to(number) for key, value in weights.items()}):
            x = inputs.to(number) if inputs.is_floating_point() else inputs
            return forward(module, x).to(WIDE)

    output = run(exact, WIDE)
    ideal = {key: value.to(dtype) for key, value in exact.items()}
    rounded = run(ideal, WIDE)
    # Products in the dtype err by themselves, on the base's weights and on ideally merged ones, however few the rows.
    matmul = max(_relative(run(base, dtype), run(base, WIDE)), _relative(run(ideal, dtype), rounded))
    # The update is summed in fp32 before it is rounded, so a merge never errs by less than fp32 does.
    rounding = max(_relative(rounded, output), torch.finfo(compute_dtype(dtype)).eps)
    return _Site(inputs=inputs.cpu(), output=output.cpu(), bound=FACTOR * (rounding + matmul))


def _relative(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - exact).abs().max()) / (float(exact.abs().max()) or 1.0)


@contextmanager
def _wearing(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a module read other parameters for one forward; its own objects come back."""
    own = dict(module._parameters)
    module._parameters.update({key: nn.Parameter(value, requires_grad=False) for key, value in weights.items()})
    try:
        yield
    finally:
        module._parameters.update(own)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _recast(model: nn.Module, probes: Sequence[Probe], dtype: torch.dtype) -> list[Tensor]:
    """The base's logits after a cast of every weight: what the dtype alone costs."""
    import copy

    other = copy.deepcopy(model).to(dtype)
    with disabled(other):
        return [_logits(other, probe) for probe in probes]


def _logits(model: nn.Module, probe: Probe) -> Tensor:
    """Logits of every position that is no padding, shape (tokens, V), float32 or wider, on the CPU."""
    out = model(probe) if isinstance(probe, Tensor) else model(**probe)
    logits = out if isinstance(out, Tensor) else out.logits
    mask = None if isinstance(probe, Tensor) else probe.get("attention_mask")
    if mask is not None and logits.dim() == 3:
        logits = logits[mask.bool()]
    flat = logits.detach().reshape(-1, logits.shape[-1]).cpu()
    return flat if flat.dtype == WIDE else flat.float()


def _compare(on: Sequence[Tensor], other: Sequence[Tensor]) -> dict[str, Any]:
    scale = max(float(logits.abs().max()) for logits in on) or 1.0
    error, total, worst, tokens, differ, undecided = 0.0, 0.0, 0.0, 0, 0, 0
    for a, b in zip(on, other, strict=True):
        gap = (a - b).abs().amax(-1)
        error = max(error, float(gap.max()))
        tokens += len(a)
        if a.shape[-1] == 1:
            continue
        log_a, log_b = a.to(WIDE).log_softmax(-1), b.to(WIDE).log_softmax(-1)
        divergence = (log_a.exp() * (log_a - log_b)).sum(-1).clamp_min(0)
        total, worst = total + float(divergence.sum()), max(worst, float(divergence.max()))
        top = a.topk(2, dim=-1).values
        flips = a.argmax(-1) != b.argmax(-1)
        clear = top[:, 0] - top[:, 1] > gap
        differ, undecided = differ + int((flips & clear).sum()), undecided + int((flips & ~clear).sum())
    return {
        "logit_error": error / scale,
        "kl_mean": total / max(tokens, 1),
        "kl_max": worst,
        "tokens": tokens,
        "disagreements": differ,
        "undecided": undecided,
    }


def _excess(site: SiteFidelity) -> float:
    return site.error / site.bound if site.bound else float("inf") if site.error else 0.0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
