"""Everything before step 1: from settings to a job, saying at each turn what was found and chosen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import deltaw.train.defaults as defaults
from deltaw.reports import plural
from deltaw.train.baseline import add_settings
from deltaw.train.batches import BatchPlan, eval_batches
from deltaw.train.best import check_decider
from deltaw.train.callbacks import Callback
from deltaw.train.config import TrainConfig
from deltaw.train.defaults import Choices, Facts
from deltaw.train.dropping import settle_dropout
from deltaw.train.imprint import PromptForm, imprint
from deltaw.train.isolation import Isolation
from deltaw.train.job import Job
from deltaw.train.looking import Looking
from deltaw.train.loss import Losses
from deltaw.train.material import Material, Source, check_vocabulary, fingerprint, open_rows, tokenize
from deltaw.train.method_config import inserts, uses_lora
from deltaw.train.model import Loaded, base_config, load_model, load_tokenizer, pick_device, pick_dtype
from deltaw.train.newhead import frozen_pooler
from deltaw.train.packable import Packing, check_task, settle_packing
from deltaw.train.passes import check_passes, cutoff_of, rdrop_of
from deltaw.train.rng import seed_everything
from deltaw.train.vocabulary import NewTokens, add_tokens, grow, table_path, tokens_of
from deltaw.train.wear import NAME, Wearing, lora_config, parameters_per_rank, wear
from deltaw.tree import is_worn

__all__ = ["Ready", "prepare"]

EXAMPLE_LENGTH = 3000


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A job and what the reports say of it.

    Args:
        job: ready to run.
        choices: every setting that was settled.
        material: the examples.
        wearing: what is trained.
        notes: lines the user should see at the end too.
    """

    job: Job
    choices: Choices
    material: Material
    wearing: Wearing
    notes: tuple[str, ...]


def prepare(config: TrainConfig, callback: Callback) -> Ready:
    """Load, look, choose and attach; nothing is written.

    Args:
        config: the user's settings.
        callback: hears of data, one example, the model, the plan and the choices.

    Returns:
        The job.
    """
    # Before anything draws: the adapter's A and a classifier's new head come from this seed.
    seed_everything(config.run.seed)
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    choices = Choices()
    if uses_lora(config.adapter.method) and config.adapter.start is None:
        # refuses variants that do not combine before anything is read
        lora_config(config, config.adapter.rank or 2)
    declared = base_config(config.model.path)
    tokenizer, padding = load_tokenizer(config.model.path)
    new = add_tokens(tokenizer, _new_tokens(config))
    source = open_rows(config)
    check_task(config, source.task)
    positions = _positions(declared, tokenizer, inserts(config.adapter.method, config.baseline))
    max_length = defaults.choose_length(choices, config, positions)
    material = tokenize(config, source, tokenizer, max_length)
    _tell_data(callback, config, source, material, tokenizer)
    check_decider(config.run.best_by, source.task, material.labels, material.valid is not None)
    loaded = _load(config, source.task, tokenizer, material.labels)
    check_passes(config, loaded.model, source.task)
    grown = grow(loaded.model, new, config.model.path)
    check_vocabulary(material.train, loaded.model.get_input_embeddings().num_embeddings, config.data.path)  # type: ignore[operator]
    batching = _batching(config, loaded, source.task, material)
    wearing, facts = _wear(config, choices, loaded, material, positions, source.task, tokenizer, new, batching)
    imprint(
        loaded.model, NAME, labels=material.labels, form=_form(config, source), task=source.task, new_tokens=new.texts
    )
    job = _job(config, choices, loaded, source.task, material, wearing, tokenizer, facts, batching)
    job = dataclasses.replace(job, new_tokens=new.texts)
    notes = [
        *material.notes,
        *wearing.told,
        *([batching.packing.note] if batching.packing and batching.packing.note else []),
    ]
    pooler = frozen_pooler(loaded.model, wearing.parameters, loaded.heads)
    lines = [*loaded.notes, *grown, *notes, *wearing.notes, *pooler]
    callback.on_section("model", "\n".join([*_describe(config, loaded), padding, wearing.summary, *lines]))
    callback.on_section("settings", "\n".join(map(str, choices.made)))
    advice = defaults.advice(choices, facts, config, batching.total)
    if advice:
        callback.on_section("advice", "\n".join(advice))
    return Ready(job=job, choices=choices, material=material, wearing=wearing, notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class _Batching:
    """How the rows come in batches, settled before the adapter is put on, which may want to look at the first."""

    plan: BatchPlan
    total: int
    packing: Packing | None
    choices: Choices

    @property
    def isolation(self) -> Isolation | None:
        return self.packing.isolation if self.packing else None


def _batching(config: TrainConfig, loaded: Loaded, task: str, material: Material) -> _Batching:
    packing = settle_packing(config, task, loaded.model, material.train)
    choices = Choices()
    plan, total = defaults.choose_batches(
        choices, config, [int(length) for length in material.train.lengths], packing
    )  # fmt: skip
    return _Batching(plan=plan, total=total, packing=packing, choices=choices)


def _new_tokens(config: TrainConfig) -> tuple[str, ...]:
    """Tokens to add: those asked for, or those of the adapter that is continued."""
    if config.adapter.start is None:
        return config.adapter.new_tokens
    from deltaw.adapter import Adapter

    return tokens_of(Adapter.open(Path(config.adapter.start).expanduser()).metadata)


def _form(config: TrainConfig, source: Source) -> PromptForm | None:
    """How the rows' prompts are written; the adapter's file says it, for whoever generates with it."""
    data = config.data
    if source.task != "causal":
        return None
    return PromptForm(
        rows=source.format.name, template=data.template, template_options=dict(data.template_options),
        system=data.system, joiner=data.joiner,
    )  # fmt: skip


def _positions(declared: Any, tokenizer: Any, inserted: int) -> int | None:
    """The longest sequence that model and tokenizer take, less the positions that the method inserts."""
    text = declared.get_text_config()
    found = [getattr(text, "max_position_embeddings", None), tokenizer.model_max_length]
    # Tokenizers without a limit say 1e30.
    sane = [int(value) for value in found if value and value < 10**9]
    return max(1, min(sane) - inserted) if sane else None


def _tell_data(callback: Callback, config: TrainConfig, source: Source, material: Material, tokenizer: Any) -> None:
    from deltaw.train.data import show

    callback.on_section("data", f"{material.train.report}\n{material.reason}")
    example = material.train[0]
    if source.task == "causal":
        text = show(example, tokenizer)
        if len(text) > EXAMPLE_LENGTH:
            half = EXAMPLE_LENGTH // 2
            text = text[:half].append("\n(the middle of this example is not shown)\n", "dim").append(text[-half:])
        callback.on_section("example (trained tokens between [[ and ]])", text)
        return
    label = material.labels[int(example.label)] if material.labels else f"{example.label:g}"
    callback.on_section("example", f"{tokenizer.decode(example.ids)}\nlabel: {label}")


def _load(config: TrainConfig, task: str, tokenizer: Any, labels: tuple[str, ...]) -> Loaded:
    device, _ = pick_device(config.model.device)
    dtype, _ = pick_dtype(config.model.dtype, device, config.adapter.method)
    loaded = load_model(
        config.model, task=task, method=config.adapter.method, device=device, dtype=dtype,
        pad_id=tokenizer.pad_token_id, labels=labels,
    )  # fmt: skip
    return dataclasses.replace(loaded, notes=(*loaded.notes, *settle_dropout(loaded.model, config.model, task)))


def _describe(config: TrainConfig, loaded: Loaded) -> list[str]:
    device_why = pick_device(config.model.device)[1]
    dtype_why = pick_dtype(config.model.dtype, loaded.device, config.adapter.method)[1]
    dtype = str(loaded.dtype).removeprefix("torch.")
    count = sum(parameter.numel() for name, parameter in loaded.model.named_parameters() if not is_worn(name))
    threads = f", {plural(torch.get_num_threads(), 'thread')}" if loaded.device.type == "cpu" else ""
    return [
        f"{config.model.path}: {type(loaded.model).__name__}, {count:,} parameters",
        f"device {loaded.device} ({device_why}){threads}; {dtype} ({dtype_why})",
    ]


def _wear(
    config: TrainConfig, choices: Choices, loaded: Loaded, material: Material, positions: int | None, task: str,
    tokenizer: Any, new: NewTokens, batching: _Batching,
) -> tuple[Wearing, Facts]:  # fmt: skip
    """Settle the rank and put the adapter on."""
    text: Any = loaded.model.config.get_text_config()  # type: ignore[operator,union-attr]
    fresh = uses_lora(config.adapter.method) and config.adapter.start is None
    facts = Facts(
        family=text.model_type,
        hidden=int(getattr(text, "hidden_size", 0)),
        positions=positions,
        rows=len(material.train),
        trained_tokens=material.train.trained_tokens,
        per_rank=parameters_per_rank(loaded.model, config) if fresh else 0,
    )
    rank = defaults.choose_rank(choices, config, facts) if fresh else 0
    defaults.add_fixed(choices, config, adapter=fresh, task=task)
    add_settings(choices, config)
    looking = Looking(
        material.train, batching.plan, config.adapter.init_batches, tokenizer.pad_token_id, task, loaded.model,
        batching.isolation, config.optim.label_smoothing,
    )  # fmt: skip
    rows = {table_path(loaded.model): new.ids} if new.ids and fresh else None
    return wear(loaded.model, config, rank, loaded.heads, rows=rows, looking=looking), facts


def _job(
    config: TrainConfig, choices: Choices, loaded: Loaded, task: str, material: Material, wearing: Wearing,
    tokenizer: Any, facts: Facts, batching: _Batching,
) -> Job:  # fmt: skip
    """Settle the rate, and put everything together."""
    plan, total, valid = batching.plan, batching.total, material.valid
    choices.made += batching.choices.made
    defaults.choose_rest(choices, config, facts, total, len(valid) if valid is not None else 0, plan)
    values = choices.values()
    batches = () if valid is None else eval_batches(
        [int(length) for length in valid.lengths], plan.batch_size, plan.batch_tokens, config.run.eval_limit
    )  # fmt: skip
    isolation = batching.isolation
    return Job(
        config=config,
        model=loaded.model,
        tokenizer=tokenizer,
        task=task,
        losses=Losses(
            loaded.model,
            task,
            config.optim.label_smoothing,
            rdrop=rdrop_of(config),
            cutoff=cutoff_of(config, tokenizer),
        ),
        device=loaded.device,
        parameters=wearing.parameters,
        train=material.train,
        valid=valid,
        plan=plan,
        valid_batches=tuple(map(tuple, batches)),
        total=total if wearing.parameters else 0,
        lr=float(values["optim.lr"]),
        eval_every=int(values["run.eval_every"]),
        save_every=int(values["run.save_every"]),
        output=Path(config.run.output).expanduser(),
        labels=material.labels,
        identity=_identity(loaded, task, material, values) | ({"packing": str(isolation)} if isolation else {}),
        isolation=isolation,
    )


def _identity(loaded: Loaded, task: str, material: Material, values: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run must share with the run it continues."""
    from deltaw.train.identity import base_identity

    settled = {name: value for name, value in values.items() if name != "run.save_every"}
    return {
        "base": base_identity(loaded.model),
        "task": task,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "training examples": fingerprint(material.train),
        "validation examples": "none" if material.valid is None else fingerprint(material.valid),
        **settled,
    }
