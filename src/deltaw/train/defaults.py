"""What is chosen where the user chose nothing, each choice with its reason.

The numbers come from public evidence on LoRA defaults: "LoRA Without Regret" (Schulman et al. 2025, doi
10.64434/tml.20250929), the learning-rate formula and the sweep of tinker-cookbook (``hyperparam_utils.py``,
``sft_sweep.md``), and "Learning Rate Matters" (arXiv:2602.04998).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaw.reports import plural
from deltaw.train.baseline import RATES
from deltaw.train.batches import BatchPlan
from deltaw.train.config import TrainConfig, spec_of
from deltaw.train.habits import INIT_HABITS, OURS, VARIANT_HABITS, Habit
from deltaw.train.method_config import uses_lora
from deltaw.train.schedule import token_warmup

if TYPE_CHECKING:
    from deltaw.train.packable import Packing

__all__ = ["Choice", "Choices", "Facts", "choose_batches", "choose_length", "choose_rank", "choose_rest"]

LLAMA_POWER, QWEN_POWER = 0.781, 0.0775
UNKNOWN_LR = 3e-4
# The formula was fitted on hidden sizes of 2048 and up; below this one it would run past 1e-3, from where on the
# cookbook's sweep saw runs diverge.
SMALLEST_HIDDEN = 768
FULL_SHARE = 0.1
SHORT_RUN, SHORT_FACTOR = 100, 1.5
AIM_STEPS, MOST_EPOCHS = 100, 10
LENGTH_CAP = 2048
RANK, MOST_RANK, LEAST_RANK = 32, 256, 4
MOST_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One setting and why it has its value.

    Args:
        name: the dotted configuration key.
        value: what is used.
        reason: one line; ``given`` where the user set it.
    """

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = f"{self.value:.3g}" if isinstance(self.value, float) else str(self.value)
        return f"{self.name} = {value}  ({self.reason})"


class Choices:
    """The settings of a run, collected in the order they are made."""

    def __init__(self) -> None:
        self.made: list[Choice] = []

    def add(self, name: str, given: Any, chosen: Any, reason: str) -> Any:
        """Settle one setting.

        Args:
            name: the dotted configuration key.
            given: what the user set, or None.
            chosen: what is used otherwise.
            reason: why.

        Returns:
            The value used.
        """
        value, reason = (chosen, reason) if given is None else (given, "given")
        self.made.append(Choice(name=name, value=value, reason=reason))
        return value

    def values(self) -> dict[str, Any]:
        """List what was settled.

        Returns:
            Configuration key -> value.
        """
        return {choice.name: choice.value for choice in self.made}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the choices depend on.

    Args:
        family: the model's type, as in ``llama``.
        hidden: its hidden size.
        positions: the longest sequence it takes, or None.
        rows: training examples.
        trained_tokens: tokens (or labels) with a loss, over one epoch.
        per_rank: adapter parameters per unit of rank.
    """

    family: str
    hidden: int
    positions: int | None
    rows: int = 0
    trained_tokens: int = 0
    per_rank: int = 0


def choose_length(choices: Choices, config: TrainConfig, positions: int | None) -> int:
    """Settle the longest example.

    Args:
        choices: receives the choice.
        config: the user's settings.
        positions: the longest sequence the model takes, or None.

    Returns:
        Number of tokens.
    """
    if positions is None or positions > LENGTH_CAP:
        chosen, reason = LENGTH_CAP, f"memory grows with it; the model takes {positions or 'any length'}"
    else:
        chosen, reason = positions, "the longest sequence the model takes"
    return int(choices.add("data.max_length", config.data.max_length, chosen, reason))


def choose_rank(choices: Choices, config: TrainConfig, facts: Facts) -> int:
    """Settle the rank: 32, more where the data hold more than it can store, less where the model is small.

    Args:
        choices: receives the choice.
        config: the user's settings.
        facts: sizes of model and data.

    Returns:
        The rank.
    """
    own = next((habit for habit in _habits(config) if habit.rank), None)
    if own is not None:
        chosen = min(own.rank, facts.hidden) or own.rank
        why = own.rank_reason if chosen == own.rank else f"{own.rank_reason}; at most the hidden size"
        return int(choices.add("adapter.rank", config.adapter.rank, chosen, why))
    ceiling = max(LEAST_RANK, 1 << max(0, (facts.hidden // 4)).bit_length() - 1)
    rank, reason = RANK, "enough for most data; the learning rate matters more"
    while facts.per_rank and rank < MOST_RANK and rank * facts.per_rank < facts.trained_tokens:
        rank, reason = rank * 2, f"parameters should reach the {facts.trained_tokens:,} trained tokens"
    if rank > ceiling:
        rank, reason = ceiling, f"at most a quarter of the hidden size {facts.hidden}: beyond, it is no low rank"
    return int(choices.add("adapter.rank", config.adapter.rank, rank, reason))


def _habits(config: TrainConfig) -> list[Habit]:
    """What the chosen variants and the initialization ask for."""
    adapter = config.adapter
    found = [VARIANT_HABITS[name] for name in adapter.variant if name in VARIANT_HABITS]
    return found + ([INIT_HABITS[adapter.init]] if adapter.init in INIT_HABITS else [])


# Defaults that need no look at model or data, with their reasons.
FIXED = {
    "adapter.targets": "attention and MLP: adapting attention alone loses even at equal size",
    "adapter.alpha": "fixed, so that the best learning rate hardly depends on the rank",
    "adapter.dropout": "none: it costs memory and did not help in published sweeps",
    "adapter.init": "A uniform by its width, B zero: the first step starts from the base itself",
    "data.loss_on": "answers with their end token; prompts are context",
    "optim.schedule": "decay to zero settles small batches",
    "optim.clip": "one bad batch cannot undo the run",
    "optim.weight_decay": "an adapter is small already",
}


ALWAYS_RARE = (
    "optim.lora_plus", "optim.label_smoothing", "optim.optimizer", "optim.correct_bias", "optim.decay",
    "model.base_dropout", "model.head_dropout", "optim.rdrop", "optim.rdrop_form", "optim.cutoff", "optim.cutoff_kind",
    "run.best_by",
)  # fmt: skip
RARE = ("adapter.variant", "adapter.train_rows", "adapter.new_tokens", *ALWAYS_RARE)
LOOKING = "the leading directions settle early, and LoRA-GA's paper takes 64 rows (arXiv:2407.05000)"


def add_fixed(choices: Choices, config: TrainConfig, *, adapter: bool, task: str) -> None:
    """Record the defaults that depend on nothing.

    Args:
        choices: receives them.
        config: the user's settings; what differs from its default was given.
        adapter: whether a fresh adapter is made, so that its settings are read.
        task: labels have no tokens with a loss.
    """
    habits = _habits(config) if adapter else []
    unread = {"adapter.alpha", "adapter.init"} if any(not habit.scaled for habit in habits) else set()
    for key, reason in FIXED.items():
        section, name = key.split(".")
        if (section == "adapter" and not adapter) or (section == "data" and task != "causal") or key in unread:
            continue
        value = getattr(getattr(config, section), name)
        given = key in (config.given or ())
        shown = ", ".join(value) if isinstance(value, tuple) else value
        choices.add(key, shown if given else None, shown, reason)
    if any(habit.looks for habit in habits):
        given = "adapter.init_batches" in (config.given or ())
        count = config.adapter.init_batches
        choices.add("adapter.init_batches", count if given else None, count, LOOKING)
    # what is off unless it is asked for needs no reason; said nowhere else
    for key in RARE if adapter else ALWAYS_RARE:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value != spec_of(key).default:
            choices.add(key, _shown(value), None, "")


def _shown(value: Any) -> Any:
    """A list or a table as one line."""
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, dict):
        return "; ".join(f"{key}={','.join(map(str, ids))}" for key, ids in value.items())
    return value


def choose_batches(
    choices: Choices, config: TrainConfig, lengths: list[int], packing: Packing | None = None
) -> tuple[BatchPlan, int]:
    """Settle the batches and the number of steps.

    Args:
        choices: receives the choices.
        config: the user's settings.
        lengths: tokens of each training example.
        packing: what came of that setting; None where the task knows none.

    Returns:
        The batches, and the optimizer steps of the whole run.
    """
    optim = config.optim
    size, tokens, packed = None, optim.batch_tokens, packing is not None and packing.isolation is not None
    per_step = len(lengths) * 3 / AIM_STEPS / optim.accumulate
    chosen = 16 if per_step >= 16 else 8 if per_step >= 8 else 4
    if packed:
        mean = sum(lengths) / max(1, len(lengths))
        room, reason = math.ceil(chosen * mean), f"a row of about {chosen} examples of {mean:.0f} tokens"
        if max(lengths) > room:
            room, reason = max(lengths), "the longest example"
        tokens = int(choices.add("optim.batch_tokens", tokens, room, reason))
    elif tokens is not None:
        choices.add("optim.batch_tokens", tokens, None, "")
    else:
        reason = "LoRA loses more than full fine-tuning on large batches"
        if chosen < 16:
            reason = f"few rows: smaller batches give more steps out of {len(lengths):,}"
        size = choices.add("optim.batch_size", optim.batch_size, chosen, reason)
    plan = BatchPlan(
        lengths=lengths, batch_size=size, batch_tokens=tokens, accumulate=optim.accumulate, seed=config.run.seed,
        packing=packed,
    )  # fmt: skip
    if packing is not None:
        reason = _why_packed(packing, plan) if packing.asked is not False else ""
        choices.add("optim.packing", packing.asked if packing.asked is False else None, packed, reason)
    return plan, _choose_steps(choices, config, plan)


def _why_packed(packing: Packing, plan: BatchPlan) -> str:
    """Why rows are packed or not, in one line."""
    if packing.asked:
        return f"given; {packing.reason}" if packing.isolation else f"asked for and not done: {packing.reason}"
    return (
        f"batches of similar length are padded by {plan.padding():.1%}; attention over a packed row reads a mask of "
        "its length squared"
    )


def _choose_steps(choices: Choices, config: TrainConfig, plan: BatchPlan) -> int:
    """Settle the length of the run: the steps given, or whole epochs."""
    optim = config.optim
    if optim.steps is not None:
        return int(choices.add("optim.steps", optim.steps, None, ""))
    per_epoch = plan.steps(1)
    chosen, reason = 3, "passes enough to learn a format without learning rows by heart"
    if per_epoch * 3 < AIM_STEPS:
        chosen = min(MOST_EPOCHS, -(-AIM_STEPS // per_epoch))
        reason = f"only {plural(per_epoch, 'step')} each: aims at {AIM_STEPS} steps, at most {MOST_EPOCHS} epochs"
    epochs = float(choices.add("optim.epochs", optim.epochs, chosen, reason))
    return plan.steps(epochs)


def choose_rest(
    choices: Choices, config: TrainConfig, facts: Facts, total: int, valid_rows: int, plan: BatchPlan | None = None
) -> None:
    """Settle the learning rate, its warm-up in tokens, and how often the run validates and saves.

    Args:
        choices: receives the choices.
        config: the user's settings.
        facts: sizes of model and data.
        total: optimizer steps.
        valid_rows: validation examples.
        plan: the batches, which a warm-up in tokens and validation by epochs are read from.
    """
    lr, reason = learning_rate_for(facts, total, config.adapter.method)
    for habit in _habits(config) if uses_lora(config.adapter.method) else []:
        lr, reason = (lr * habit.rate, f"{reason}; {habit.rate_reason}") if habit.rate_reason else (lr, reason)
    ratio = config.optim.lora_plus
    if ratio != 1:  # refused for methods without LoRA
        lr, reason = lr / math.sqrt(ratio), f"{reason}; over the root of lora_plus {ratio:g}: A is below it, B above"
    choices.add("optim.lr", config.optim.lr, lr, reason)
    tokens = config.optim.warmup_tokens
    if tokens is not None and plan is not None:
        steps, seen = token_warmup(plan, total, tokens)
        short = f"ALL steps: the run sees {seen:,} of the {tokens:,} tokens of its warm-up, and ends at its peak"
        choices.add("optim.warmup", None, steps, f"steps for {tokens:,} tokens" if seen >= tokens else short)
    often = max(1, -(-total // 10))
    if valid_rows and config.run.eval_epochs and plan is not None:
        choices.add("run.eval_every", None, plan.steps(1), "the end of every epoch, as asked for")
    elif valid_rows:
        choices.add("run.eval_every", config.run.eval_every, often, "ten validations in the run")
    else:
        choices.add("run.eval_every", None, 0, "there are no validation rows")
    choices.add("run.save_every", config.run.save_every, often, "a kill loses at most a tenth of the run")


def learning_rate_for(facts: Facts, total: int, method: str) -> tuple[float, str]:
    """Choose a peak learning rate.

    Args:
        facts: family and hidden size.
        total: optimizer steps.
        method: as in ``--method``.

    Returns:
        The rate and its reason.

    Example:
        >>> facts = Facts(family="llama", hidden=4096, positions=None)
        >>> f"{learning_rate_for(facts, 1000, 'lora')[0]:.2g}"
        '0.00029'
    """
    power = LLAMA_POWER if facts.family == "llama" else QWEN_POWER if facts.family.startswith("qwen") else None
    if power is None:
        lr, reason = UNKNOWN_LR, "best or near it for most models of a public sweep"
    else:
        lr = 5e-5 * 10 * (2000 / max(facts.hidden, SMALLEST_HIDDEN)) ** power
        reason = f"10x full fine-tuning's, by hidden size {facts.hidden} ({facts.family})"
        if facts.hidden < SMALLEST_HIDDEN:
            reason += f", as if it were {SMALLEST_HIDDEN}"
    if method == "full":
        return lr * FULL_SHARE, "a tenth of LoRA's rate"
    if method in RATES:
        factor, why = RATES[method]
        return lr * factor, why
    if total < SHORT_RUN:
        return lr * SHORT_FACTOR, f"{reason}; {SHORT_FACTOR}x, the run has under {SHORT_RUN} steps"
    return lr, reason


def advice(choices: Choices, facts: Facts, config: TrainConfig, total: int) -> list[str]:
    """Say what the evidence warns of in these settings.

    Args:
        choices: what is used.
        facts: sizes of model and data.
        config: the user's settings.
        total: optimizer steps.

    Returns:
        One line each, none where there is nothing to say.
    """
    values, lines = choices.values(), []
    size = values.get("optim.batch_size")
    if uses_lora(config.adapter.method) and size is not None and size * config.optim.accumulate > MOST_BATCH:
        lines.append(
            f"{size * config.optim.accumulate} sequences per step: LoRA learns less from large batches; "
            f"{MOST_BATCH} or fewer is the safer start (lower --batch-size or --accumulate)"
        )
    rank = values.get("adapter.rank")
    habits = _habits(config) if uses_lora(config.adapter.method) and config.adapter.start is None else []
    lines += [habit.remark for habit in habits if habit.remark]
    if habits and set(config.adapter.variant) >= OURS:
        lines.append(f"{' with '.join(sorted(OURS))}: deltaw reads and merges such an adapter, PEFT refuses it")
    vectors = any(habit.rank for habit in habits)
    if rank and facts.per_rank and rank * facts.per_rank < facts.trained_tokens and not vectors:
        lines.append(
            f"capacity is short: {rank * facts.per_rank:,} adapter parameters for {facts.trained_tokens:,} trained "
            "tokens (a higher --rank may help)"
        )
    if total < SHORT_RUN:
        how = "raise --steps" if config.optim.steps is not None else "raise --epochs or lower --batch-size"
        few = "step is" if total == 1 else "steps are"
        lines.append(f"{total} {few} few: {SHORT_RUN} learn reliably ({how})")
    return lines
