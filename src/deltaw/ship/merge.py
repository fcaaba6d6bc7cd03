"""Writing base and adapter as one plain model directory, and proving that it says what the adapted model says."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapter import Adapter
from deltaw.errors import ConfigError, DataError, ModelError
from deltaw.merge import MergeReport, merge
from deltaw.reports import size
from deltaw.ship.fidelity import FidelityReport, Probe, Reference, fidelity, reference
from deltaw.ship.ondisk import Unstreamable
from deltaw.ship.opening import MERGED, ModelChoice, Opened, base_of, open_model, stored_dtype
from deltaw.ship.room import free_memory, needed
from deltaw.ship.stream import Streaming, prepare
from deltaw.train.files import replace_directory
from deltaw.train.imprint import FORM
from deltaw.train.model import hushed, load_tokenizer, pick_device

__all__ = ["MERGED", "WrittenMerge", "default_probes", "fidelity", "merge_directory", "text_probes"]

# Everything beside weights and configuration that belongs to a model directory.
COPIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken",
    "chat_template*", "generation_config.json", "preprocessor_config.json", "processor_config.json", "LICENSE*",
    "NOTICE*",
)  # fmt: skip

SENTENCES = (
    "Once upon a time there was a small house at the edge of the sea.",
    "The answer to the question is as follows: first, measure twice; then cut once.",
    "name: The Mill | food: Italian | price: moderate | near: the river",
    "In 1969, 3 men flew 384,400 km, and two of them walked where nobody had walked before.",
)
RANDOM_TOKENS = 48


@dataclass(frozen=True, kw_only=True)
class WrittenMerge:
    """What ``merge_directory`` wrote; ``str`` is what ``deltaw merge`` prints.

    Args:
        path: the directory.
        files: names of its files.
        bytes: their size together.
        base: where the base came from.
        adapter: where the adapter came from.
        adapter_hash: identity of the adapter's content.
        merged: what the merge itself said.
        streamed: the base was merged shard by shard and never held in memory for it.
        fidelity: the written model against the model with its adapter on; None where that was not looked at.
        notes: what a reader should know.
    """

    path: Path
    files: tuple[str, ...]
    bytes: int
    base: str
    adapter: str
    adapter_hash: str
    merged: MergeReport
    streamed: bool
    fidelity: FidelityReport | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What was merged, its fidelity, and the files."""
        road = ", shard by shard" if self.streamed else ""
        lines = [f"merged {self.adapter} into {self.merged.sites} weights of {self.base}{road}"]
        lines += [f"note: no bit changed in {', '.join(self.merged.unchanged)}"] if self.merged.unchanged else []
        lines += [] if self.fidelity is None else [str(self.fidelity)]
        lines += [f"note: {note}" for note in self.notes]
        wrote = f"wrote {len(self.files)} files, {size(self.bytes)}, to {self.path}: {', '.join(self.files)}"
        return "\n".join([*lines, wrote])


def merge_directory(
    choice: ModelChoice,
    output: str | Path,
    *,
    probes: Sequence[Probe] | None = None,
    texts: Sequence[str] | None = None,
    tolerance: float | None = None,
    verify: bool | None = None,
) -> WrittenMerge:
    """Merge an adapter into its base and write a directory that plain transformers loads.

    The base's safetensors files are copied one by one, with the touched tensors replaced; the model is never held for
    that. Where files and parameters do not match one to one, or another dtype is asked for, it is merged in memory, and
    the report says why. The files are written under a temporary name, read back by transformers, compared with the
    model with its adapter on, and only then given their name: an unfaithful merge leaves nothing behind.

    Args:
        choice: base and adapter; its dtype is that of the files ("auto": the base's own).
        output: the directory to make; it must not exist.
        probes: inputs to compare on; None means ``texts``.
        texts: texts to compare on; None means built-in sentences and some random tokens.
        tolerance: accept this relative logit error instead of judging by what the dtype allows.
        verify: load the model and compare; None does so where the model fits into memory.

    Returns:
        The report.

    Raises:
        ConfigError: if there is no adapter, the output exists, the tolerance is negative, or there is something to
            compare on and no comparison.
        ModelError: if the base cannot be loaded or written.
        CheckpointError: if the adapter cannot be read or does not fit.
        FaithError: if the written model is not faithful.
    """
    place = Path(output).expanduser()
    _check(choice, place, tolerance)
    _check_wanted(verify, tolerance, probes is not None or texts is not None)
    device, _ = pick_device(choice.device)
    source = base_of(choice)
    dtype = stored_dtype(source) if choice.dtype == "auto" else getattr(torch, choice.dtype)
    work: Streaming | Opened
    notes = []
    try:
        work = prepare(choice, source, dtype)
        unseen = _unseen(verify, work, device)
    except Unstreamable as reason:
        notes.append(f"the whole model was held in memory: {reason}")
        work = open_model(_widest(choice, source, dtype))
        unseen = _NOT_WANTED if verify is False else None
    notes += [] if unseen is None else [unseen]
    compare = None
    if unseen is None:
        compare = _Comparison.start(work, choice, source, dtype, probes=probes, texts=texts, tolerance=tolerance)
    merged = merge(work.model) if isinstance(work, Opened) else None
    judged: list[FidelityReport] = []

    def fill(temporary: Path) -> None:
        _write(work, temporary, dtype, source)
        judged.extend([] if compare is None else [compare.judge(temporary, f"{choice.adapter} merged into {source}")])
        _write_record(temporary, source, choice, dtype, judged[0] if judged else None)

    try:
        _require_space(place, work)
        replace_directory(place, fill)
    except OSError as error:
        raise _not_written(place, error) from None
    files = sorted(entry for entry in place.iterdir() if entry.is_file())
    return WrittenMerge(
        path=place,
        files=tuple(entry.name for entry in files),
        bytes=sum(entry.stat().st_size for entry in files),
        base=source,
        adapter=str(choice.adapter),
        adapter_hash=Adapter.open(Path(str(choice.adapter)).expanduser()).hash,
        merged=work.report if isinstance(work, Streaming) else merged,  # type: ignore[arg-type]
        streamed=isinstance(work, Streaming),
        fidelity=judged[0] if judged else None,
        notes=tuple(notes),
    )


_NOT_WANTED = "not verified, as asked: nothing was compared with the model with its adapter on"


def _unseen(verify: bool | None, work: Streaming, device: torch.device) -> str | None:
    """Why the written model will not be compared, or None where it will."""
    if verify is not None:
        return None if verify else _NOT_WANTED
    wanted, free = needed(work.bytes), free_memory(device)
    if free is None or wanted <= free:
        return None
    return (
        f"not verified: to compare with the model with its adapter on takes about {size(wanted)} of memory, and "
        f"{size(free)} is free; --verify compares anyway"
    )


def _require_space(place: Path, work: Streaming | Opened) -> None:
    """Notice a disk that is too full before it is filled."""
    if isinstance(work, Streaming) and (free := shutil.disk_usage(place.parent).free) < work.bytes:
        raise OSError(errno.ENOSPC, f"{size(work.bytes)} to write, {size(free)} free")


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """What the model with its adapter on said, and how to load what was written."""

    taken: Reference
    task: str
    device: torch.device
    tolerance: float | None

    @classmethod
    def start(
        cls, work: Streaming | Opened, choice: ModelChoice, source: str, dtype: torch.dtype, *,
        probes: Sequence[Probe] | None, texts: Sequence[str] | None, tolerance: float | None,
    ) -> _Comparison:  # fmt: skip
        """Ask the model with its adapter on; a model that is loaded for this alone is gone afterwards."""
        opened = work if isinstance(work, Opened) else open_model(_widest(choice, source, dtype))
        if probes is None:
            probes = text_probes(opened, texts) if texts else default_probes(opened)
        taken = reference(opened.model, probes, dtype=dtype)
        device = next(opened.model.parameters()).device
        return cls(taken=taken, task=opened.task, device=device, tolerance=tolerance)

    def judge(self, place: Path, what: str) -> FidelityReport:
        """Judge what was written, and refuse it where it is not faithful."""
        report = self.taken.judge(_reload(self.task, self.device, place), tolerance=self.tolerance)
        report.require(what)
        return report


def _check_wanted(verify: bool | None, tolerance: float | None, given: bool) -> None:
    if verify is False and (tolerance is not None or given):
        raise ConfigError(
            "there is nothing to judge without a comparison",
            where="--no-verify",
            got="--tolerance" if tolerance is not None else "--probes",
            expected="one of the two",
            hint="drop --no-verify, or what it leaves without effect",
        )


def _check(choice: ModelChoice, place: Path, tolerance: float | None) -> None:
    if choice.adapter is None:
        raise ConfigError(
            "there is no adapter to merge",
            where="--adapter",
            got="nothing",
            expected="an adapter directory",
            hint="add --adapter DIR",
        )
    if place.exists():
        raise ConfigError(
            "the output exists already",
            where=str(place),
            got="a directory" if place.is_dir() else "a file",
            expected="a path that does not exist: an older model is never overwritten",
            hint="choose another --output, or move the old one away",
        )
    if not place.parent.is_dir():
        raise ConfigError(
            "the output's parent directory does not exist",
            where=str(place.parent),
            got="nothing at this path",
            expected="a directory",
            hint=f"mkdir -p {place.parent}",
        )
    if tolerance is not None and not tolerance >= 0:
        raise ConfigError(
            "the tolerance is out of range",
            where="--tolerance",
            got=str(tolerance),
            expected="a number from 0 up: max |logit difference| / max |logit|",
            hint="leave it out to judge by what the dtype allows",
        )


def _widest(choice: ModelChoice, source: str, dtype: torch.dtype) -> ModelChoice:
    """Load in the wider of the stored and the written dtype, so that nothing is rounded but the sum."""
    stored = stored_dtype(source)
    wide = stored if stored.itemsize > dtype.itemsize else dtype
    wide = torch.float32 if stored.itemsize == dtype.itemsize and stored != dtype else wide
    name = str(wide).removeprefix("torch.")
    return ModelChoice(
        model=source,
        adapter=choice.adapter,
        device=choice.device,
        dtype=name,
        allow_other_base=choice.allow_other_base,
    )


def _write(work: Streaming | Opened, place: Path, dtype: torch.dtype, source: str) -> None:
    """Write weights, configuration, tokenizer and what else belongs to a model's directory."""
    if isinstance(work, Streaming):
        work.write(place, source)
    else:
        _save(work.model, place, dtype)
    home = _directory(source)
    found = [file for pattern in COPIED for file in sorted(home.glob(pattern)) if file.is_file()]
    for file in dict.fromkeys(found):
        shutil.copyfile(file, place / file.name)
    if (isinstance(work, Opened) and work.new_tokens) or not any(place.glob("tokenizer*")):
        tokenizer = work.tokenizer if isinstance(work, Opened) else load_tokenizer(source)[0]
        with hushed():
            tokenizer.save_pretrained(place)


def _save(model: Any, place: Path, dtype: torch.dtype) -> None:
    """Write a merged model the way transformers does."""
    seen: dict[int, Tensor] = {}

    def cast(tensor: Tensor) -> Tensor:
        # Tied weights stay one tensor, so that they are written once.
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        return seen.setdefault(tensor.data_ptr(), tensor.to(dtype))

    state = {key: cast(value) for key, value in model.state_dict().items()}
    model.config.dtype = dtype
    with hushed():
        model.save_pretrained(place, state_dict=state)


def _directory(source: str) -> Path:
    """Where a model's files lie: its directory, or the hub's cache."""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    from transformers.utils import cached_file

    return Path(str(cached_file(source, "config.json"))).parent


def _reload(task: str, device: torch.device, place: Path) -> nn.Module:
    """Read the written files the way any user of transformers would."""
    import transformers

    family = transformers.AutoModelForCausalLM if task == "causal" else transformers.AutoModelForSequenceClassification
    with hushed():
        model, info = family.from_pretrained(place, dtype="auto", output_loading_info=True)
        transformers.AutoTokenizer.from_pretrained(place)
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise ModelError(
            "the written model does not load completely",
            where=str(place.name),
            got=f"{len(wrong)} keys do not fit: {', '.join(map(str, wrong[:4]))}",
            expected="every weight once",
            hint="this architecture needs its own way of saving: keep the adapter beside the base",
        )
    plain: nn.Module = model.to(device).eval()
    return plain


def _write_record(
    place: Path, source: str, choice: ModelChoice, dtype: torch.dtype, report: FidelityReport | None
) -> None:
    adapter = Adapter.open(Path(str(choice.adapter)).expanduser())
    content: dict[str, Any] = {
        "base": source,
        "adapter": str(choice.adapter),
        "adapter_hash": adapter.hash,
        "dtype": str(dtype).removeprefix("torch."),
        "faithful": None if report is None else report.faithful,
        "fidelity": None,
    }
    if report is not None:
        content["fidelity"] = {key: v for key, v in asdict(report).items() if key not in {"sites", "dtype"}}
    if FORM in adapter.metadata:
        content[FORM] = adapter.metadata[FORM]
    (place / MERGED).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _not_written(place: Path, error: OSError) -> ModelError:
    return ModelError(
        "the merged model cannot be written",
        where=str(place),
        got=error.strerror or str(error),
        expected="a writable place with enough free space",
        hint="free some space, or choose another --output; nothing was left behind",
    )


def text_probes(opened: Opened, texts: Sequence[str]) -> list[Probe]:
    """Turn texts into probes, cut to the model's context.

    Args:
        opened: the model and its tokenizer.
        texts: the texts.

    Returns:
        One probe per text that has a token.

    Raises:
        DataError: if none has.
    """
    device = next(opened.model.parameters()).device
    context = getattr(opened.model.config, "max_position_embeddings", None) or 1 << 30
    rows = [opened.tokenizer(text)["input_ids"][:context] for text in texts]
    probes: list[Probe] = [torch.tensor([row], device=device) for row in rows if row]
    if not probes:
        raise DataError(
            "there is nothing to compare on",
            where="probes",
            got=f"{len(texts)} texts without a token",
            expected="at least one text",
            hint="leave the probes out to use built-in ones",
        )
    return probes


def default_probes(opened: Opened) -> list[Probe]:
    """Built-in sentences and a row of random tokens, the same on every run.

    Args:
        opened: the model and its tokenizer.

    Returns:
        The probes.
    """
    count = int(opened.model.get_input_embeddings().num_embeddings)
    length = min(RANDOM_TOKENS, getattr(opened.model.config, "max_position_embeddings", None) or RANDOM_TOKENS)
    drawn = torch.randint(0, count, (1, length - 2), generator=torch.Generator().manual_seed(0))
    return [*text_probes(opened, SENTENCES), drawn.to(next(opened.model.parameters()).device)]
