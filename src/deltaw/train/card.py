"""README.md beside the adapter: what it is, how it was made, how it is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from deltaw.reports import plural
from deltaw.train.config import TrainConfig
from deltaw.train.method_config import is_baseline, uses_lora
from deltaw.train.report import metric, shell
from deltaw.train.settings import to_toml
from deltaw.train.tasked import is_task

__all__ = ["CardFacts", "model_card"]


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card says.

    Args:
        config: the user's settings.
        task: ``causal``, ``classification`` or ``regression``.
        summary: what was trained, one line.
        choices: every setting used, by configuration key.
        steps: steps behind what was saved.
        before: validation before.
        after: validation of what was saved.
        rows: (training, validation) examples.
        labels: class names.
        versions: library -> version.
    """

    config: TrainConfig
    task: str
    summary: str
    choices: dict[str, Any]
    steps: int
    before: dict[str, float]
    after: dict[str, float]
    rows: tuple[int, int]
    labels: tuple[str, ...]
    versions: dict[str, str]


def model_card(facts: CardFacts) -> str:
    """Write the card.

    Args:
        facts: what it says.

    Returns:
        Markdown with the front matter that model hubs read.
    """
    config = facts.config
    method = config.adapter.method
    full, baseline = method == "full", is_baseline(method)
    data = f"`{config.data.path}`" + (f" (task {config.model.task})" if is_task(config.model.task) else "")
    kind = "text-generation" if facts.task == "causal" else "text-classification"
    front = [
        "---",
        f"base_model: {json.dumps(config.model.path)}",
        f"library_name: {'transformers' if full else 'deltaw' if baseline else 'peft'}",
        f"pipeline_tag: {kind}",
        "tags:",
        *(f"- {tag}" for tag in (("deltaw",) if not uses_lora(method) else ("lora", "deltaw"))),
        "---",
        "",
    ]
    what = "A fine-tuned model" if full else f"A baseline of LoRA ({method})" if baseline else "A LoRA adapter"
    body = [
        f"# {what} for {config.model.path}",
        "",
        f"{facts.summary}; {plural(facts.steps, 'step')} on {facts.rows[0]:,} examples of {data}, "
        f"{facts.rows[1]:,} held out.",
        "",
    ]
    if facts.before and facts.after:
        names = list(facts.after)
        body += ["| held out | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for title, metrics in (("before", facts.before), ("after", facts.after)):
            body.append(
                f"| {title} | " + " | ".join(metric(name, metrics.get(name, float("nan"))) for name in names) + " |"
            )
        body.append("")
    if facts.labels:
        body += ["Labels: " + ", ".join(f"{index} = {label}" for index, label in enumerate(facts.labels)), ""]
    body += ["## Use", "", "```", *_use(config, full, facts.task), "```", ""]
    body += ["## Settings", "", "| setting | value |", "|---|---|"]
    body += [f"| {name} | {value} |" for name, value in sorted(facts.choices.items())]
    body += ["", "The run again, as `deltaw train --config run.toml`:", ""]
    body += ["```toml", to_toml(config).rstrip(), "```", ""]
    body += ["Made with " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + ".", ""]
    return "\n".join(front + body)


def _use(config: TrainConfig, full: bool, task: str) -> list[str]:
    """Command lines that use the result."""
    if full:
        model = shell(config.run.output)
        verb = f"generate --model {model} --prompt TEXT" if task == "causal" else f"eval --model {model} --data FILE"
        return [f"deltaw {verb}"]
    model, adapter = shell(config.model.path), shell(config.run.output)
    lines = [f"deltaw merge --model {model} --adapter {adapter} --output merged"]
    if is_baseline(config.adapter.method):
        lines = [f"deltaw eval --model {model} --adapter {adapter} --data FILE"]
    if task == "causal":
        lines.insert(0, f"deltaw generate --model {model} --adapter {adapter} --prompt TEXT")
    return lines
