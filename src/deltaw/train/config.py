"""What a training run is told: six groups of fields, the same from Python, TOML and flags.

A field left at None is chosen by ``defaults.py``, which gives its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltaw.errors import ConfigError
from deltaw.train.best import DECIDERS
from deltaw.train.fields import FieldSpec, check_group, option, specs
from deltaw.train.method_config import METHODS, READS, BaselineConfig, inserts, is_baseline, uses_lora

__all__ = [
    "SECTIONS",
    "TASK_NAMES",
    "AdapterConfig",
    "BaselineConfig",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TrainConfig",
]

# The core's registries, which load torch: the command line reads its flags without it. A test keeps them equal.
VARIANTS = ("lora", "dora", "lora_fa", "lora_bias", "vera")
TASK_NAMES = (
    "e2e", "webnlg", "dart", "sst2", "cola", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "mnli_9k", "qnli_9k",
    "qqp_9k", "mnli_100", "mnli_1k", "mnli_10k", "mnli_9k_100", "mnli_9k_1k", "sst2_100", "sst2_1k", "wikisql",
    "samsum",
)  # fmt: skip
INITS = ("kaiming", "gaussian", "orthogonal", "pissa", "pissa_fast", "olora", "eva", "lora_ga")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The base model and how it is loaded."""

    path: str = option("", "base model: a local directory or a hub name", flag="--model")
    task: str = option(
        "auto",
        "what the model is trained for, or a task of the paper, whose directory is --data; auto looks at the data",
        choices=("auto", "causal", "classification", "regression", *TASK_NAMES),
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps; auto takes a GPU where there is one")
    dtype: str = option(
        "auto",
        "number format of the base; auto is float32 on CPU, bfloat16 on GPU (float32 for full fine-tuning)",
        choices=("auto", "float32", "bfloat16"),
    )
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: slower, less memory")
    base_dropout: bool = option(True, "keep the base's own dropout in training; without it only the adapter's is left")
    head_dropout: float | None = option(
        None, "dropout before a classifier's head; default: the base's own", low=0.0, high=0.99
    )

    def __post_init__(self) -> None:
        check_group(self, "model")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The rows, how they are read and which tokens are trained."""

    path: str = option(
        "",
        "training rows: jsonl, json, csv, tsv, parquet (.gz too) or a datasets directory; a task's directory",
        flag="--data",
    )
    valid: str | None = option(
        None, "validation rows, same kinds of file; default: a fraction of the training rows, or a task's own split"
    )
    valid_fraction: float | None = option(
        None, "fraction of the rows held out for validation; 0 holds out none", low=0.0, high=0.9
    )
    format: str = option("auto", "row format; auto looks at the rows")
    separator: str | None = option(None, "in .txt files: what stands between prompt and completion, such as ||")
    columns: Mapping[str, str] = option({}, "which column plays a role, as role=column (repeatable)", flag="--column")
    max_length: int | None = option(None, "longest example in tokens", low=2)
    loss_on: str = option("completion", "train on completions only, or on all tokens", choices=("completion", "all"))
    truncation: str = option(
        "refuse",
        "for rows over --max-length: refuse the file above --max-truncated, cut the end, cut-prompt, or drop them",
        choices=("refuse", "cut", "cut-prompt", "drop"),
    )
    max_truncated: float = option(0.05, "share of rows that truncation refuse lets be cut", low=0.0, high=1.0)
    template: str = option("auto", "auto, plain, default, or the text of a chat template")
    template_options: Mapping[str, str] = option({}, "variables of the chat template, as name=value (repeatable)")
    system: str = option("keep", "what happens to system turns", choices=("keep", "fold", "drop"))
    joiner: str = option("auto", "text between a plain prompt and its completion")
    end_token: str = option("auto", "what ends an answer: auto, none, or the text of a token")
    bad_rows: str = option("refuse", "refuse a file with broken rows, or drop them", choices=("refuse", "drop"))
    limit: int | None = option(None, "read only the first N rows", low=1)
    shuffle_pairs: bool = option(False, "control: permute the completions (labels) among the prompts")
    cache_dir: str | None = option(None, "where tokenized rows are cached")

    def __post_init__(self) -> None:
        check_group(self, "data")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What is trained: the adapter's place, size and start."""

    method: str = option(
        "lora", "what is trained: LoRA, every weight, or another of the paper's baselines", choices=METHODS
    )
    start: str | None = option(None, "continue from this adapter directory", flag="--adapter")
    new_head: bool = option(False, "with --adapter: leave its head behind and train a new one, for other labels")
    rank: int | None = option(None, "inner dimension of the adapter; 0 trains nothing (control)", low=0)
    alpha: float = option(32.0, "numerator of the scaling alpha / rank", above=0.0)
    targets: tuple[str, ...] = option(("all-linear",), "what is adapted (repeatable)", flag="--target")
    exclude: tuple[str, ...] = option((), "what is not adapted although it is targeted (repeatable)")
    layers: str | None = option(None, "which blocks are adapted: 0-7, 3,5 or last:4")
    rank_pattern: Mapping[str, int] = option({}, "rank of some modules, as pattern=rank (repeatable)")
    alpha_pattern: Mapping[str, float] = option({}, "alpha of some modules, as pattern=alpha (repeatable)")
    rank_stabilized: bool = option(False, "scale by alpha / sqrt(rank)")
    dropout: float = option(0.0, "dropout on the adapter's input", low=0.0, high=0.99)
    variant: tuple[str, ...] = option(
        ("lora",), "kind of update, alone or together: dora,lora_bias", choices=VARIANTS, commas=True
    )
    init: str = option(
        "kaiming",
        "how A and B start; pissa, pissa_fast and olora read the weights, eva and lora_ga the first batches",
        choices=INITS,
    )
    init_batches: int = option(8, "batches that eva and lora_ga look at", low=1)
    bias: str = option("none", "which biases are trained too", choices=("none", "all", "lora_only"))
    train_also: tuple[str, ...] = option((), "modules trained in full and saved with the adapter (repeatable)")
    train_rows: Mapping[str, tuple[int, ...]] = option(
        {}, "rows of token tables that are trained, as embed_tokens=32000,32005-32007 (repeatable)"
    )
    new_tokens: tuple[str, ...] = option(
        (), "tokens added to the vocabulary, whose rows are trained: '<tool>,</tool>'", commas=True
    )
    ties: str = option(
        "refuse", "what to do with a target whose weight is shared", choices=("refuse", "share", "separate")
    )

    def __post_init__(self) -> None:
        check_group(self, "adapter")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How long and how fast it is trained."""

    lr: float | None = option(None, "peak learning rate", above=0.0, high=10.0)
    schedule: str = option("linear", "learning rate after the warm-up", choices=("constant", "linear", "cosine"))
    warmup: float = option(0.0, "warm-up: a number of steps, or a fraction of them where below 1", low=0.0)
    warmup_tokens: int | None = option(None, "instead: warm-up in tokens of the run, padding left out", low=1)
    batch_size: int | None = option(None, "sequences per batch", low=1)
    batch_tokens: int | None = option(None, "instead: tokens per batch, padding included", low=1)
    packing: bool | None = option(
        None, "pack examples into rows of --batch-tokens, each kept apart exactly; off where it is not asked for"
    )
    accumulate: int = option(1, "batches whose gradients make one step", low=1)
    epochs: float | None = option(None, "passes over the training rows", above=0.0)
    steps: int | None = option(None, "instead: number of optimizer steps", low=1)
    beta1: float = option(0.9, "AdamW's first beta", low=0.0, high=0.99999)
    beta2: float = option(0.999, "AdamW's second beta", low=0.0, high=0.9999999)
    eps: float = option(1e-8, "AdamW's epsilon", above=0.0)
    weight_decay: float = option(0.0, "AdamW's weight decay", low=0.0)
    decay: str = option("matrices", "what the weight decay applies to", choices=("matrices", "all"))
    optimizer: str = option(
        "adamw",
        "torch's AdamW, or that of the LoRA paper's scripts: epsilon before the bias correction, decay after the step",
        choices=("adamw", "adamw_reference"),
    )
    correct_bias: bool = option(True, "Adam's bias correction; adamw_reference can go without")
    lora_plus: float = option(1.0, "learning rate of B over that of A (LoRA+); 1 is one rate for both", low=1e-3)
    clip: float = option(1.0, "largest gradient norm; 0 clips nothing", low=0.0)
    label_smoothing: float = option(
        0.0, "share of each target spread over the vocabulary; validation keeps the plain loss", low=0.0, high=0.99
    )
    rdrop: float = option(
        0.0, "R-drop: weight of the divergence between two passes with other dropout; 0 makes one pass", low=0.0
    )
    rdrop_form: str = option(
        "pair",
        "what --rdrop weighs: KL both ways (pair), or to the mean of both, per class (mean: the LoRA paper's scripts)",
        choices=("pair", "mean"),
    )
    cutoff: float = option(
        0.0,
        "share of the input taken away in training: of --rdrop's second pass, or of the only one",
        low=0.0,
        high=0.99,
    )
    cutoff_kind: str = option(
        "token",
        "what --cutoff zeroes: embeddings of tokens, of a span, or features; unknown (the scripts): tokens become that",
        choices=("token", "span", "feature", "unknown"),
    )

    def __post_init__(self) -> None:
        check_group(self, "optim")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run writes, how often, and how it is repeated."""

    output: str = option("deltaw-out", "directory of the adapter, metrics and states")
    seed: int = option(0, "seed of the initialization, the order of the rows and all dropout", low=0)
    threads: int | None = option(None, "CPU threads; results are bit-identical only at equal counts", low=1)
    eval_every: int | None = option(None, "validate every N steps; 0 only before and after", low=0)
    eval_epochs: bool = option(False, "instead: validate at the end of every epoch")
    eval_limit: int | None = option(None, "validate on at most N rows", low=1)
    save_every: int | None = option(None, "save a state to resume from every N steps; 0 saves none", low=0)
    keep: int = option(2, "how many states are kept", low=1)
    patience: int = option(0, "stop after N validations without improvement; 0 never stops early", low=0)
    best: bool = option(True, "save the adapter of the best validation instead of the last")
    best_by: str = option(
        "loss", "what makes a validation the best: its loss, or a metric that the task has", choices=DECIDERS
    )
    sample_tokens: int = option(48, "length of the samples shown before and after; 0 shows none", low=0)
    probe: bool = option(True, "try the longest batch before step 1")
    plot: bool = option(True, "write loss.png")
    tensorboard: bool = option(False, "write tensorboard events too")
    resume: str | None = option(None, "continue: a state, an output directory, or auto (the output's newest, if any)")
    overwrite: bool = option(False, "delete what an earlier run left in the output directory")

    def __post_init__(self) -> None:
        check_group(self, "run")


SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "data": DataConfig,
    "adapter": AdapterConfig,
    "baseline": BaselineConfig,
    "optim": OptimConfig,
    "run": RunConfig,
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything a training run is told.

    Args:
        model: the base model.
        data: the rows.
        adapter: what is trained.
        baseline: settings of the methods that are no LoRA adapter.
        optim: how long and how fast.
        run: where it writes and how it is repeated.
        given: dotted names of the fields that were set, which a resumed run must not contradict; by default those
            that differ from their defaults.

    Raises:
        ConfigError: for fields that are wrong alone or together.

    Example:
        >>> TrainConfig(model=ModelConfig(path="base"), data=DataConfig(path="rows.jsonl")).optim.clip
        1.0
    """

    model: ModelConfig
    data: DataConfig
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    baseline: BaselineConfig = dataclasses.field(default_factory=BaselineConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    given: frozenset[str] | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.given is None:
            object.__setattr__(self, "given", frozenset(_changed(self)))
        # A resumed run reads the rest from its state.
        if self.run.resume is None:
            self.require()
        self._check_pairs()

    def require(self) -> None:
        """Refuse a configuration that names no model or no data.

        Raises:
            ConfigError: naming the flag.
        """
        for spec, value in ((spec_of("model.path"), self.model.path), (spec_of("data.path"), self.data.path)):
            if not value:
                raise ConfigError(
                    f"no {spec.section} is given",
                    where=f"{spec.flag} or [{spec.section}] {spec.name}",
                    got="nothing",
                    expected=spec.help,
                    hint=f"add {spec.flag} PATH",
                )

    def _check_pairs(self) -> None:
        adapter, optim, run = self.adapter, self.optim, self.run
        _exclusive("optim.epochs", optim.epochs, "optim.steps", optim.steps)
        _exclusive("optim.batch_size", optim.batch_size, "optim.batch_tokens", optim.batch_tokens)
        _exclusive("optim.batch_size", optim.batch_size, "optim.packing", optim.packing or None)
        _exclusive("data.valid", self.data.valid, "data.valid_fraction", self.data.valid_fraction)
        _exclusive("run.resume", run.resume, "run.overwrite", run.overwrite or None)
        _exclusive("optim.warmup", optim.warmup or None, "optim.warmup_tokens", optim.warmup_tokens)
        _exclusive("run.eval_every", run.eval_every, "run.eval_epochs", run.eval_epochs or None)
        if optim.optimizer == "adamw":
            self._unread("optim.correct_bias", "means nothing with --optimizer adamw", _CORRECTS, _REFERENCE)
        if adapter.method == "full":
            for key in ("adapter.start", "adapter.new_head", *_FRESH_ONLY, "optim.lora_plus"):
                self._unread(key, "means nothing with --method full", _NO_ADAPTER, "or use --method lora")
        self._check_method()
        self._check_passes()
        if not run.best and not run.patience:
            self._unread("run.best_by", "means nothing with --no-best and no --patience", _LAST, _PATIENCE)
        if adapter.start is not None:
            for key in _FRESH_ONLY:
                self._unread(key, "cannot be changed when continuing from an adapter", _STORED, _DROP_START)
        else:
            self._unread("adapter.new_head", "means nothing without --adapter", _FRESH_HEAD, "or add --adapter DIR")
        if adapter.init not in _LOOK_AT_DATA and run.resume is None:
            self._unread("adapter.init_batches", f"means nothing with --init {adapter.init}", _NO_DATA, _LOOKING)

    def _check_method(self) -> None:
        """Refuse what the chosen method does not read, or cannot go with."""
        method = self.adapter.method
        for spec in specs(BaselineConfig, "baseline"):
            if spec.name not in READS[method]:
                readers = ", ".join(name for name, read in READS.items() if spec.name in read)
                what = f"means nothing with --method {method}"
                self._unread(spec.key, what, f"a method that reads it: {readers}", "or choose one of these methods")
        if is_baseline(method):
            unread = [key for key in _FRESH_ONLY if key != "adapter.train_also"] if not uses_lora(method) else []
            for key in ("adapter.start", *unread, *([] if uses_lora(method) else ["optim.lora_plus"])):
                self._unread(key, f"means nothing with --method {method}", _NO_LORA, "or use --method lora")
            if uses_lora(method) and self.adapter.init in _LOOK_AT_DATA:
                what = f"needs batches before the prefix stands: it does not go with --method {method}"
                self._unread("adapter.init", what, "a start that looks at no data", "or use --init kaiming")
        if inserts(method, self.baseline):
            what = f"does not go with --method {method}"
            self._unread("optim.packing", what, _ALONE, "or use another method")
        if method.endswith("prefix-layer"):
            what = f"does not go with --method {method}"
            self._unread("model.gradient_checkpointing", what, "blocks that run once", "or use prefix-embedding")

    def _check_passes(self) -> None:
        """Refuse what R-drop and cut-off do not read, or cannot go with."""
        optim, method = self.optim, self.adapter.method
        if not optim.rdrop:
            self._unread("optim.rdrop_form", "means nothing without --rdrop", _ONE_PASS, "or add --rdrop 1")
        if not optim.cutoff:
            self._unread("optim.cutoff_kind", "means nothing without --cutoff", _WHOLE, "or add --cutoff 0.1")
        if optim.packing:
            self._unread("optim.cutoff", "does not go with --packing", _OWN_ROW, "or drop --packing")
        if inserts(method, self.baseline):
            self._unread("optim.cutoff", f"does not go with --method {method}", _NO_PREFIX, "or use another method")

    def _unread(self, key: str, what: str, expected: str, otherwise: str) -> None:
        """Refuse a field that would not be read."""
        spec = spec_of(key)
        value = getattr(getattr(self, spec.section), spec.name)
        # what is on by default was switched off
        flag = f"--no-{spec.flag[2:]}" if spec.default is True else spec.flag
        if value != spec.default:
            raise ConfigError(
                f"{flag} {what}",
                where=spec.key,
                got=repr(value),
                expected=expected,
                hint=f"drop {flag}, {otherwise}",
            )

    def values(self) -> dict[str, dict[str, Any]]:
        """Turn the configuration into plain sections, as a TOML file would hold them.

        Returns:
            section -> key -> value; tuples as lists.
        """
        return {
            section: {
                name: _plain(value)
                for name, value in ((item.name, getattr(getattr(self, section), item.name)) for item in specs(group))
            }
            for section, group in SECTIONS.items()
        }


def _plain(value: Any) -> Any:
    """A value as TOML and JSON hold it."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _changed(config: TrainConfig) -> list[str]:
    """Dotted names of the fields that differ from their defaults."""
    return [
        spec.key
        for section, group in SECTIONS.items()
        for spec in specs(group, section)
        if getattr(getattr(config, section), spec.name) != spec.default
    ]


_FRESH_ONLY = tuple(f"adapter.{name}" for name in (
    "rank", "alpha", "targets", "exclude", "layers", "rank_pattern", "alpha_pattern", "rank_stabilized", "dropout",
    "variant", "init", "init_batches", "bias", "train_also", "train_rows", "new_tokens", "ties",
))  # fmt: skip
_NO_ADAPTER = "no adapter fields: full fine-tuning trains every weight"
_ALONE = "rows of one example each, into which positions can be inserted"
_NO_LORA = "the settings of that method: its own, and --train-also"
_STORED, _DROP_START = "the value stored with the adapter", "or drop --adapter to start a fresh one"
_CORRECTS, _REFERENCE = "true: torch's AdamW always corrects", "or use --optimizer adamw_reference"
_LAST, _PATIENCE = "loss: the last step is saved whatever is measured", "--no-best, or add --patience N"
_ONE_PASS, _WHOLE = "pair: there is one pass", "token: nothing is cut off"
_OWN_ROW = "0: a row of several examples has no start and length that a cut could be a share of"
_NO_PREFIX = "0: trained positions stand between those that would be cut"
_FRESH_HEAD = "a fresh adapter, which has a new head wherever the base lacks one"
_LOOK_AT_DATA = ("eva", "lora_ga")
_NO_DATA, _LOOKING = "an initialization that looks at the data", "or use --init eva or --init lora_ga"


def spec_of(key: str) -> FieldSpec:
    """Find the description of a field by its dotted name.

    Args:
        key: as in ``optim.lr``.

    Returns:
        The field's description.
    """
    section, name = key.split(".")
    return next(spec for spec in specs(SECTIONS[section], section) if spec.name == name)


def _exclusive(key: str, value: Any, other_key: str, other: Any) -> None:
    """Refuse two fields that say the same thing twice."""
    if value is None or other is None:
        return
    flag, other_flag = spec_of(key).flag, spec_of(other_key).flag
    raise ConfigError(
        f"{flag} and {other_flag} are both given",
        where=f"{key} and {other_key}",
        got=f"{key} = {value!r}, {other_key} = {other!r}",
        expected="one of the two",
        hint=f"drop {flag} or {other_flag}",
    )
