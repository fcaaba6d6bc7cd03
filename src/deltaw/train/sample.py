"""A sample before and after: what the model says to a held-out prompt, or which label it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from deltaw.baselines.verbs import inserted_positions
from deltaw.train.job import Examples, Job
from deltaw.train.model import hushed

__all__ = ["Sample", "sample"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt and its answers.

    Args:
        prompt: what the model was given.
        expected: what the row says.
        answer: what the model said.
    """

    prompt: str
    expected: str
    answer: str

    def __str__(self) -> str:
        """The three on a line each, the middle of a long one left out."""
        parts = (("prompt:   ", self.prompt), ("expected: ", self.expected), ("answer:   ", self.answer))
        return "\n".join(name + quoted(text) for name, text in parts)


def quoted(text: str, most: int = 600) -> str:
    """Quote a text for one line of a report.

    Args:
        text: any text.
        most: longer ones lose their middle.

    Returns:
        The text with its line breaks escaped.

    Example:
        >>> quoted("a" * 8 + "b" * 8, most=8)
        "'aaaa' ... 'bbbb'"
    """
    if len(text) <= most:
        return repr(text)
    return f"{text[: most // 2]!r} ... {text[-(most // 2) :]!r}"


def sample(job: Job, examples: Examples, index: int = 0) -> Sample | None:
    """Let the model answer one example, greedily, drawing from no random stream.

    Args:
        job: the model.
        examples: where the prompt comes from.
        index: which one.

    Returns:
        The sample; None where samples are switched off or the example has no prompt.
    """
    if not job.config.run.sample_tokens or not len(examples):
        return None
    example: Any = examples[index]
    was_training = job.model.training
    job.model.eval()
    try:
        with torch.no_grad(), hushed():
            return _label(job, example) if example.label is not None else _text(job, example)
    finally:
        job.model.train(was_training)


def _label(job: Job, example: Any) -> Sample:
    inputs = {"input_ids": torch.tensor([example.ids], device=job.device)}
    if example.types is not None:
        inputs["token_type_ids"] = torch.tensor([example.types], device=job.device)
    logits = job.model(**inputs).logits[0].float()
    if job.task == "regression":
        answer, expected = f"{float(logits[0]):.3f}", f"{example.label:g}"
    else:
        answer, expected = job.labels[int(logits.argmax())], job.labels[int(example.label)]
    return Sample(prompt=job.tokenizer.decode(example.ids), expected=expected, answer=answer)


def _text(job: Job, example: Any) -> Sample | None:
    cut = next((position for position, weight in enumerate(example.weights) if weight), len(example.ids))
    # A row of plain text is trained from its start: the first quarter is its prompt.
    cut = cut if cut > 1 else max(1, len(example.ids) // 4)
    room = (getattr(job.model.config, "max_position_embeddings", None) or 10**9) - cut - inserted_positions(job.model)
    count = min(job.config.run.sample_tokens, room)
    if count < 1:
        return None
    ids = torch.tensor([example.ids[:cut]], device=job.device)
    model: Any = job.model
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, num_beams=1,
        pad_token_id=job.tokenizer.pad_token_id,
    )[0, cut:]  # fmt: skip
    decode = job.tokenizer.decode
    return Sample(
        prompt=decode(example.ids[:cut]),
        expected=decode(example.ids[cut:], skip_special_tokens=True),
        answer=decode(out, skip_special_tokens=True),
    )
