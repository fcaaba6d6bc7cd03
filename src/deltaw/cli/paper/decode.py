"""``deltaw paper decode``: answers to the distinct inputs of a task, by beam search."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._common import Output, as_path, common_options, stops_as_interrupts
from deltaw.cli._models import model_options, open_causal, take_model
from deltaw.cli._prompts import FORMS, form_used, prompt_to_ids
from deltaw.cli.generate import read_prompts
from deltaw.errors import ConfigError
from deltaw.reports import count, plural

if TYPE_CHECKING:
    from deltaw.paper.answers import Store
    from deltaw.paper.decode import Answer, Beam, Prompt
    from deltaw.paper.queries import Question, Written
    from deltaw.ship.opening import ModelChoice, Opened

__all__ = ["command"]

LAYOUTS = ("none", "e2e", "numbered", "wikisql")
NUMBERED = 6
BEAM = (
    ("--beams", 10, "Hypotheses kept; 1 is greedy."),
    ("--length-penalty", 0.8, "Answers are ranked by log-probability / length to this power."),
    ("--no-repeat", 4, "No n-gram of this size twice in an answer; 0 allows all."),
    ("--max-tokens", 64, "Longest answer, in tokens."),
    ("--min-tokens", 0, "Tokens before an answer may end."),
    ("--batch-size", 8, "Prompts searched together."),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What is to be answered, and what the layouts say beside the answers.

    Args:
        contexts: of every input.
        references: of every input, where texts are read from a task.
        questions: of every input, where answers are queries.
        notes: what the reader of the files wants to be known.
    """

    contexts: list[str]
    references: list[list[str]] = dataclasses.field(default_factory=list)
    questions: list[Question] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def _beam_options(function: Any) -> Any:
    for flag, default, text in reversed(BEAM):
        function = click.option(flag, default=default, show_default=True, help=text)(function)
    return function


@click.command("decode")
@model_options
@click.option("--task", metavar="NAME", help="A task of the paper, such as e2e, webnlg or dart.")
@click.option("--data", metavar="DIR", help="Where the task's files are.")
@click.option("--split", default="test", show_default=True, help="Which part of the task.")
@click.option("--prompts", "file", metavar="FILE", help="Instead of a task: one prompt a line, or jsonl.")
@click.option("-o", "--output", required=True, metavar="DIR", help="Where answers go; a run there is continued.")
@click.option(
    "--form",
    type=click.Choice(list(FORMS)),
    default="auto",
    show_default=True,
    help="How prompts are written, as in deltaw generate.",
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    default="none",
    show_default=True,
    help="Write files for scorers too: e2e-metrics' blocks, numbered references, or WikiSQL's queries.",
)
@click.option("--merged", is_flag=True, help="Fold the adapter into the weights first.")
@click.option("--cut-prompts", is_flag=True, help="Cut the start of prompts that leave no room for an answer.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N distinct inputs.")
@click.option("--overwrite", is_flag=True, help="Decode anew what is answered already.")
@_beam_options
@common_options
def command(*, quiet: bool, as_json: bool, **flags: Any) -> None:  # fmt: skip
    """Answer the distinct inputs of a task by beam search.

    Every input is answered once, however many references it has. Answers are written as they come; the same command
    again continues where it was stopped.
    """
    from deltaw.paper.decode import Beam

    out = Output(quiet=quiet, as_json=as_json)
    beam = Beam(**{field.name: flags.pop(field.name) for field in dataclasses.fields(Beam)})
    choice = take_model(flags)
    if flags["merged"] and choice.adapter is None:
        raise _misused("--merged", "no --adapter", "--adapter DIR", "add --adapter DIR, or leave --merged out")
    inputs = _inputs(flags)
    with stops_as_interrupts():
        _run(out, beam, choice, inputs, flags)


def _misused(flag: str, got: str, expected: str, hint: str) -> ConfigError:
    return ConfigError(f"{flag} cannot be used so", where=flag, got=got, expected=expected, hint=hint)


def _inputs(flags: dict[str, Any]) -> _Inputs:
    """The contexts, and where a task is read what its answers are compared with."""
    task, data, file, layout = flags["task"], flags["data"], flags["file"], flags["layout"]
    if (task is None) == (file is None):
        raise ConfigError(
            "there are no inputs" if task is None else "a task and a file of prompts are both given",
            where="--task or --prompts",
            got="neither" if task is None else "both",
            expected="one of the two",
            hint="add --task e2e --data DIR, or --prompts FILE",
        )
    if layout == "wikisql" and task != layout:
        got = "--prompts" if task is None else f"--task {task}"
        hint = "leave --layout wikisql out, or take --layout e2e for texts"
        raise _misused("--layout wikisql", got, "--task wikisql, whose answers are queries", hint)
    if file is not None:
        if layout == "numbered" or data is not None:
            flag = "--data" if data is not None else "--layout numbered"
            raise _misused(flag, "--prompts", "--task NAME, whose files hold references", f"leave {flag} out")
        contexts = read_prompts(file)
        if not contexts:
            raise _misused("--prompts", f"no prompt in {file}", "at least one prompt", "check the file")
        return _Inputs(contexts=contexts)
    if data is None:
        raise _misused("--task", "no --data", "--data DIR", "add --data DIR, where the task's files are")
    if layout == "wikisql":
        return _queried(data, flags["split"])
    from deltaw.train.data.tasks import references

    pairs = references(task, as_path(data), flags["split"])
    return _Inputs(contexts=[context for context, _ in pairs], references=[list(texts) for _, texts in pairs])


def _queried(data: str, split: str) -> _Inputs:
    """Every row of WikiSQL with its table and its query."""
    from deltaw.paper.queries import questions_of
    from deltaw.train.data.tasks import read_task

    rows = read_task("wikisql", as_path(data), split)
    questions = questions_of(rows)
    return _Inputs(contexts=[item.context for item in questions], questions=questions, notes=rows.notes)


def _run(out: Output, beam: Beam, choice: ModelChoice, inputs: _Inputs, flags: dict[str, Any]) -> None:
    from deltaw.paper.answers import ANSWERS, SETTINGS, Store, fingerprint
    from deltaw.paper.decode import end_ids, fit_prompts

    contexts, told = _distinct(inputs.contexts, inputs.references)
    contexts = contexts[: flags["limit"]]
    opened = open_causal(choice)
    out.say(*([opened.report] if opened.report is not None else []))
    if flags["merged"]:
        import deltaw as dw

        out.say(dw.merge(opened.model))
    # a task's inputs are prompts, also of a model that does not say how it was trained
    known = flags["task"] is None or opened.form is not None or flags["form"] != "auto"
    form = form_used(opened, flags["form"] if known else "prompt")
    ends = end_ids(opened.model, opened.tokenizer)
    prompts, cut = fit_prompts(
        _prompts(opened, form, contexts),
        context=getattr(opened.model.config, "max_position_embeddings", None),
        beam=beam,
        cut=flags["cut_prompts"],
    )
    settings = {
        "model": opened.source, "adapter": _hash(choice), "merged": flags["merged"], "form": form,
        "dtype": str(opened.model.dtype), "inputs": len(contexts), "contexts": fingerprint(contexts),
        "end_ids": list(ends), "cut_prompts": cut, **dataclasses.asdict(beam),
    }  # fmt: skip
    store = Store(as_path(flags["output"]), settings, overwrite=flags["overwrite"])
    out.say(
        f"{count(len(inputs.contexts))} inputs, {count(len(contexts))} distinct to answer; "
        f"ends: {', '.join(map(str, ends))}",
        *inputs.notes,
        *_cautions(beam, flags),
        *([f"{plural(cut, 'prompt')} cut at the start to leave room for an answer"] if cut else []),
        *([f"{count(store.resumed)} answered already"] if store.resumed else []),
    )
    begin = time.perf_counter()
    _decode(out, opened, prompts, beam, ends, store)
    answers = store.finish()
    blocks = [told[context] for context in contexts] if inputs.references else []
    written = _written(store, answers, inputs.questions) if flags["layout"] == "wikisql" else None
    files = _layout(flags, store, answers, blocks) if written is None else [ANSWERS, *written.files]
    _report(out, store, answers, files, time.perf_counter() - begin)
    out.say(*([written] if written is not None else []))
    out.finish(
        {
            "output": store.directory, "inputs": len(inputs.contexts), "distinct": len(contexts),
            "answered": len(answers), "resumed": store.resumed,
            "truncated": sum(answer.truncated for answer in answers), "cut_prompts": cut,
            "settings": settings, "files": [*files, SETTINGS],
            **({} if written is None else {"rows": written.rows, "no_query": len(written.no_query)}),
        }
    )  # fmt: skip


def _cautions(beam: Beam, flags: dict[str, Any]) -> list[str]:
    """What a search for texts does to queries."""
    if flags["task"] != "wikisql" or not beam.no_repeat:
        return []
    return [
        f"no {beam.no_repeat} tokens come twice in an answer, so some queries that name a column twice cannot be "
        "found; --no-repeat 0 allows them"
    ]


def _distinct(given: list[str], references: list[list[str]]) -> tuple[list[str], dict[str, list[str]]]:
    """The distinct contexts, and all references of each."""
    from deltaw.paper.decode import distinct

    told: dict[str, list[str]] = {}
    for context, texts in zip(given, references, strict=False):
        told.setdefault(context, []).extend(texts)
    return distinct(given), told


def _prompts(opened: Opened, form: str, contexts: Sequence[str]) -> list[Prompt]:
    from deltaw.paper.decode import Prompt

    return [
        Prompt(id=number, context=context, ids=tuple(prompt_to_ids(opened, form, context)))
        for number, context in enumerate(contexts)
    ]


def _hash(choice: ModelChoice) -> str | None:
    """What the adapter is, wherever it lies."""
    if choice.adapter is None:
        return None
    from deltaw.adapter import Adapter
    from deltaw.baselines import is_baseline
    from deltaw.paper.reproduce.records import hash_of

    place = as_path(choice.adapter)
    if not is_baseline(place):
        return Adapter.open(place).hash[:16]
    own = sorted(file for kind in ("*.safetensors", "*_config.json") for file in place.rglob(kind))
    return "-".join(hash_of(file)[:8] for file in own)


def _decode(
    out: Output, opened: Opened, prompts: Sequence[Prompt], beam: Beam, ends: Sequence[int], store: Store
) -> None:
    """Answer what is not answered yet, batch by batch."""
    from deltaw.paper.decode import batches_of, beam_search

    told = 0
    for batch in batches_of(prompts, beam.batch_size):
        if all(prompt.id in store.answers for prompt in batch):
            continue
        store.add(beam_search(opened.model, opened.tokenizer, batch, beam, ends))
        tenth = 10 * len(store.answers) // len(prompts)
        if tenth > told:
            told = tenth
            out.say(f"answered {count(len(store.answers))} of {count(len(prompts))}")


def _layout(flags: dict[str, Any], store: Store, answers: Sequence[Answer], blocks: list[list[str]]) -> list[str]:
    from deltaw.paper.answers import ANSWERS, write_e2e, write_numbered

    if flags["layout"] == "e2e":
        return [ANSWERS, *filter(None, write_e2e(store.directory, answers, blocks))]
    if flags["layout"] == "numbered":
        return [ANSWERS, *write_numbered(store.directory, answers, blocks, NUMBERED)]
    return [ANSWERS]


def _written(store: Store, answers: Sequence[Answer], questions: Sequence[Question]) -> Written:
    """The rows whose input is answered; --limit leaves others out."""
    from deltaw.paper.queries import write_queries

    known = {answer.context for answer in answers}
    return write_queries(store.directory, answers, [item for item in questions if item.context in known])


def _report(out: Output, store: Store, answers: Sequence[Answer], files: list[str], seconds: float) -> None:
    cut = [answer for answer in answers if answer.truncated]
    fresh = len(answers) - store.resumed
    out.say(
        f"{plural(len(answers), 'answer')} in {store.directory} ({fresh} new in {seconds:.1f} s): {', '.join(files)}"
    )
    if cut:
        shown = ", ".join(str(answer.id) for answer in cut[:5]) + (", ..." if len(cut) > 5 else "")
        out.say(
            f"TRUNCATED: {plural(len(cut), 'answer')} reached the longest length without an end token (ids {shown}); "
            "raise --max-tokens, or train longer"
        )
    empty = sum(not answer.prediction for answer in answers)
    if empty:
        out.say(f"EMPTY: {plural(empty, 'answer')} without a word; --min-tokens 1 forbids them")
