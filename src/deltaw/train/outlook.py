"""What the run will cost: memory by part from shapes, then one real batch, the heaviest, to see that it fits."""

from __future__ import annotations

from deltaw.reports import plural, size
from deltaw.train.batches import longest_batch
from deltaw.train.job import Job
from deltaw.train.memory import Workload, memory_plan
from deltaw.train.method_config import is_baseline
from deltaw.train.packing import fill_share
from deltaw.train.passes import told
from deltaw.train.prepare import Ready
from deltaw.train.probe import probe
from deltaw.train.state import PREFIX

__all__ = ["outlook"]


def outlook(ready: Ready, *, trial: bool = True) -> str:
    """Work out the plan of a run, and try it.

    Args:
        ready: the run; left exactly as it was.
        trial: whether steps are left, so that a trial of the longest batch says something.

    Returns:
        Lines for the user.
    """
    job = ready.job
    # The short way through the head is checked on the shortest example: it is one forward more.
    shortest = min(range(len(job.plan.lengths)), key=lambda index: job.plan.lengths[index])
    job.losses.verify(job.batch([shortest]).to(job.device))
    per_epoch = job.plan.steps(1)
    lines = [f"{plural(job.total, 'step')}, {per_epoch:,} per epoch; {job.losses.note}", *_fill(job), _memory(ready)]
    if job.losses.label_smoothing:
        lines.append(f"label smoothing {job.losses.label_smoothing:g} in training; validation tells the plain loss")
    lines += told(job.config)
    if job.config.run.best_by != "loss":
        lines.append(f"the best validation is that with the best {job.config.run.best_by}")
    if job.save_every:
        often = "step" if job.save_every == 1 else f"{job.save_every:,} steps"
        lines.append(f"a state to resume from every {often}: {job.output}/{PREFIX}N")
    if job.config.run.probe and job.total and trial:
        lines.append(f"longest batch tried: {probe(job)}")
    return "\n".join(lines)


def _fill(job: Job) -> list[str]:
    """How full packed rows are, where rows are packed."""
    plan = job.plan
    if not plan.packing:
        return []
    assert plan.batch_tokens is not None
    rows = [batch for window in plan.windows(0) for batch in window]
    share = fill_share(rows, plan.lengths, plan.batch_tokens)
    line = f"packed: {len(plan.lengths):,} examples in {plural(len(rows), 'row')} of {plan.batch_tokens:,} tokens, "
    longer = sum(length > plan.batch_tokens for length in plan.lengths)
    alone = f"; {plural(longer, 'example')} longer than a row, alone and uncut" if longer else ""
    return [f"{line}{share:.1%} full{alone}; {job.isolation}"]


def _memory(ready: Ready) -> str:
    """Memory of the heaviest batch, by part."""
    job = ready.job
    method = job.config.adapter.method
    if is_baseline(method):
        return f"memory by part: not worked out for {method}; the trial of the longest batch measures it"
    batch = job.batch(longest_batch(job.plan))
    rows, width = batch.input_ids.shape
    passes = 1 if job.losses.rdrop is None else 2
    load = Workload(
        batch=passes * rows,
        length=width,
        dtype=next(job.model.parameters()).dtype,
        checkpointing=job.config.model.gradient_checkpointing,
        fused_attention=_fused(job),
        loss_tokens=passes * batch.trained if job.task == "causal" else None,
        chunked=job.losses.chunked,
        mask_bytes=passes * _mask_bytes(job, width) if len(batch.rows) > rows else 0,
    )
    extra = {name.partition(".lora.")[0] for name, _ in job.parameters if ".module." in name}
    try:
        found = memory_plan(
            job.model,
            sites=ready.wearing.sites,
            trained=sum(parameter.numel() for _, parameter in job.parameters),
            frozen=ready.wearing.frozen,
            extra=tuple(extra),
            workload=load,
        )
    except (AttributeError, TypeError, ZeroDivisionError):
        return "memory by part: not known for this architecture; the trial of the longest batch measures it"
    plan = found.full if method == "full" else found.lora
    parts = ("weights", "adapter", "gradients", "optimizer", "activations", "logits")
    shown = ", ".join(f"{part} {size(getattr(plan, part))}" for part in parts if getattr(plan, part))
    often = "" if passes == 1 else f"{passes} x "
    return (
        f"memory of the longest batch ({often}{rows} x {width} tokens), estimated: {shown}; together {size(plan.total)}"
    )


def _fused(job: Job) -> bool:
    """Whether attention avoids the (length, length) matrix."""
    return _attention(job) != "eager"


def _attention(job: Job) -> str:
    return str(getattr(job.model.config, "_attn_implementation", "sdpa"))


def _mask_bytes(job: Job, length: int) -> int:
    """What the masks of a packed row hold."""
    assert job.isolation is not None
    layers = int(getattr(job.model.config, "num_hidden_layers", 0))
    return job.isolation.mask_bytes(length, layers, _attention(job))
