"""Continuing a prompt, token by token, with the text handed out as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import click

from deltaw.errors import ConfigError, DataError

__all__ = ["Sampling", "complete", "encode", "room_for", "sampling_options", "take_sampling"]

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Args:
        max_tokens: new tokens at most.
        temperature: 0 takes the likeliest token; above, logits are divided by it and a token is drawn.
        top_p: draw among the likeliest tokens that together have this probability.
        top_k: draw among this many likeliest tokens; 0 means all.
        seed: seed of the draws.
        stop: texts that end the answer; they are not part of it.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = (
            ("max_tokens", self.max_tokens >= 1, "a whole number from 1 up"),
            ("temperature", self.temperature >= 0, "a number from 0 up"),
            ("top_p", 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "a whole number from 0 up"),
        )
        for name, fine, expected in checks:
            if not fine:
                raise ConfigError(
                    f"{name} is out of range",
                    where=f"--{name.replace('_', '-')}",
                    got=str(getattr(self, name)),
                    expected=expected,
                    hint="temperature 0 is greedy; 0.7 with top-p 0.9 is a common draw",
                )
        if self.temperature == 0 and (self.top_p < 1 or self.top_k > 0):
            raise ConfigError(
                "top-p and top-k choose among draws, and temperature 0 draws nothing",
                where="--temperature",
                got=f"temperature 0 with top-p {self.top_p}, top-k {self.top_k}",
                expected="a temperature above 0, or neither of the two",
                hint="add --temperature 0.7",
            )


def sampling_options(function: F) -> F:
    """Give a command the flags of ``Sampling``, one for each of its fields.

    Args:
        function: the function under ``click.command``.

    Returns:
        The same function, with the options added.
    """
    for option in (
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer where it says this (repeatable)."),
        click.option("--seed", default=0, show_default=True, help="Seed of the draws."),
        click.option("--top-k", default=0, show_default=True, help="Draw among the K likeliest tokens; 0: all."),
        click.option("--top-p", default=1.0, show_default=True, help="Draw among tokens of this total probability."),
        click.option("--temperature", default=0.0, show_default=True, help="0 is greedy; higher is freer."),
        click.option("--max-tokens", default=128, show_default=True, help="New tokens at most."),
    ):
        function = option(function)
    return function


def take_sampling(flags: dict[str, Any]) -> Sampling:
    """Take the flags of ``sampling_options`` out of a command's flags.

    Args:
        flags: all flags of the command; those of ``Sampling`` are removed.

    Returns:
        The checked sampling.
    """
    return Sampling(**{field.name: flags.pop(field.name) for field in fields(Sampling)})


def encode(tokenizer: Any, prompt: str) -> list[int]:
    """Turn a prompt into ids: the tokenizer's own special tokens, but no end token, which would close the text.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: the text to continue.

    Returns:
        Token ids, at least one.

    Raises:
        DataError: if the prompt gives no token.
    """
    ids = list(tokenizer(prompt)["input_ids"])
    plain = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    while ids and ids[-1] == tokenizer.eos_token_id and len(ids) > len(plain):
        ids.pop()
    if not ids:
        raise DataError(
            "the prompt has no token",
            where="prompt",
            got=repr(prompt),
            expected="some text, for this tokenizer has no start token to begin from",
            hint="write at least one word",
        )
    return ids


def complete(
    model: Any,
    tokenizer: Any,
    ids: Sequence[int],
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """Continue ``ids`` until an end token, ``max_tokens``, or the end of the model's context.

    The global random state is the same before and after.

    Args:
        model: a transformers causal model.
        tokenizer: its tokenizer.
        ids: token ids of the prompt.
        sampling: how tokens are chosen.
        on_text: called with each piece of text as it comes.

    Returns:
        The new text, without special tokens.

    Raises:
        DataError: if the prompt fills the context.
    """
    import torch

    room = room_for(model, len(ids))
    device = next(model.parameters()).device
    prompt = torch.tensor([list(ids)], device=device)
    draws = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    pieces = _Pieces(tokenizer, sampling.stop, on_text or (lambda piece: None))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.inference_mode():
        torch.manual_seed(sampling.seed)
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=min(sampling.max_tokens, room),
            do_sample=sampling.temperature > 0,
            pad_token_id=_pad(model, tokenizer),
            streamer=pieces,
            stopping_criteria=[lambda ids, scores: torch.full((len(ids),), pieces.stopped, device=device)],
            **(draws if sampling.temperature > 0 else dict.fromkeys(draws)),
        )
    return "".join(pieces.said)


def room_for(model: Any, used: int) -> int:
    """How many tokens still fit behind a prompt.

    Args:
        model: a transformers causal model.
        used: tokens of the prompt.

    Returns:
        At least 1.

    Raises:
        DataError: if the prompt fills the context.
    """
    from deltaw.baselines.verbs import inserted_positions

    context = (getattr(model.config, "max_position_embeddings", None) or 1 << 30) - inserted_positions(model)
    if used >= context:
        raise DataError(
            "the prompt fills the model's context",
            where="prompt",
            got=f"{used} tokens",
            expected=f"fewer than {context}",
            hint="shorten the prompt",
        )
    return int(context) - used


def _pad(model: Any, tokenizer: Any) -> int | None:
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    end = model.generation_config.eos_token_id
    return int(end[0] if isinstance(end, list) else end) if end is not None else None


class _Pieces:
    """What ``generate`` streams to: decodes as tokens come, each token in the light of those before it.

    A tokenizer that marks word starts drops the first space of whatever it decodes, so that new tokens are never
    decoded alone; a piece that ends inside a character waits for the next token.
    """

    LOOK_BACK = 6

    def __init__(self, tokenizer: Any, stop: Sequence[str], on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.stop, self.on_text = tokenizer, tuple(filter(None, stop)), on_text
        self.ids: list[int] = []
        self.start = self.done = 0
        self.said: list[str] = []
        self.held = ""
        self.stopped = False

    def put(self, value: Any) -> None:
        """Take the prompt (first call) or the next token.

        Args:
            value: tensor of ids, shape (1, T) or (1,).
        """
        self.ids.extend(value.flatten().tolist())
        if self.done == 0:
            self.start, self.done = max(0, len(self.ids) - self.LOOK_BACK), len(self.ids)
            return
        self._speak(final=False)

    def end(self) -> None:
        """Say what still waits."""
        self._speak(final=True)
        self._say(self.held)

    def _speak(self, *, final: bool) -> None:
        before = self._decode(self.ids[self.start : self.done])
        now = self._decode(self.ids[self.start :])
        if not now.startswith(before) or len(now) == len(before) or (now.endswith("\ufffd") and not final):
            return
        self.start, self.done = self.done, len(self.ids)
        self._sift(now[len(before) :])

    def _sift(self, piece: str) -> None:
        """Pass a piece on up to a stop text; an end that could begin one is held back until the next piece decides."""
        if self.stopped:
            return
        text, self.held = self.held + piece, ""
        found = [at for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._say(text[: min(found)])
            return
        held = max((n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - held :]
        self._say(text[: len(text) - held])

    def _say(self, text: str) -> None:
        if text:
            self.said.append(text)
            self.on_text(text)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
