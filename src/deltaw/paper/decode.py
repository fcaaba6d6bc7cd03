"""Beam search as the paper decodes its GPT-2 tasks, through transformers' ``generate``.

Hypotheses are ranked by ``sum of log-probabilities / length ** penalty``, the length being that of the generated part
with its end token: transformers and microsoft/LoRA (examples/NLG/src/gpt2_beam.py at c4593f0) agree in this, and in
letting answers that reach the limit compete unfinished. Three things of the reference are not ``generate``'s own habit
and are asked of it here: no n-gram is repeated within the *generated* part, where transformers also counts the
prompt's; probabilities are normalized again over what is not banned; and the search never stops before no better
answer is possible. One thing differs: the reference keeps as many candidates as beams, so that a beam that ends leaves
a gap for one step, while transformers keeps enough candidates to go on with all beams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltaw.errors import ConfigError, DataError

__all__ = [
    "Answer",
    "Beam",
    "GeneratedNgrams",
    "Prompt",
    "batches_of",
    "beam_search",
    "distinct",
    "end_ids",
    "fit_prompts",
]


@dataclass(frozen=True, kw_only=True)
class Beam:
    """How answers are searched.

    Args:
        beams: hypotheses kept; 1 is greedy.
        length_penalty: exponent of the length that a hypothesis' log-probability is divided by.
        no_repeat: no n-gram of this size occurs twice in an answer; 0 allows all.
        max_tokens: longest answer, its end token included.
        min_tokens: tokens before an answer may end.
        batch_size: prompts searched together.

    Raises:
        ConfigError: for values out of range.

    Example:
        >>> Beam(length_penalty=0.9).beams
        10
    """

    beams: int = 10
    length_penalty: float = 0.8
    no_repeat: int = 4
    max_tokens: int = 64
    min_tokens: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name, fine, expected in (
            ("beams", self.beams >= 1, "at least 1"),
            ("length_penalty", abs(self.length_penalty) <= 10, "a number from -10 to 10"),
            ("no_repeat", self.no_repeat >= 0, "at least 0, which allows repetition"),
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("min_tokens", 0 <= self.min_tokens < self.max_tokens, f"from 0 to below max_tokens, {self.max_tokens}"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
        ):
            if not fine:
                raise ConfigError(
                    f"{name} is out of range",
                    where=f"--{name.replace('_', '-')}",
                    got=f"{getattr(self, name):g}",
                    expected=expected,
                    hint="the paper uses 10 beams, a length penalty of 0.8 or 0.9 and no repeated 4-gram",
                )


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A distinct input.

    Args:
        id: its place among the distinct inputs, from 0.
        context: its text.
        ids: its tokens, as training had them before the answer.
    """

    id: int
    context: str
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was found for one input.

    Args:
        id: the input's place.
        context: its text.
        prediction: the answer, without end token and outer blanks.
        tokens: tokens generated, the end token included.
        truncated: whether it reached the longest length without an end token.
    """

    id: int
    context: str
    prediction: str
    tokens: int
    truncated: bool


class GeneratedNgrams:
    """A logits processor that bans n-grams which the generated part holds already; the prompt's may be repeated.

    Args:
        size: tokens of an n-gram, at least 1.
        start: width of the prompts, padding included.
    """

    def __init__(self, size: int, start: int) -> None:
        self.size, self.start = size, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Ban in every row what would complete an n-gram for the second time.

        Args:
            input_ids: shape (N, T), int64, prompts and what was generated.
            scores: shape (N, V), log-probabilities of the next token.

        Returns:
            Shape (N, V), minus infinity on banned tokens.
        """
        for row, tokens in enumerate(input_ids[:, self.start :].tolist()):
            banned = self.banned(tokens)
            if banned:
                scores[row, banned] = -torch.inf
        return scores

    def banned(self, tokens: Sequence[int]) -> list[int]:
        """List the tokens that may not follow.

        Args:
            tokens: what was generated.

        Returns:
            Token ids.

        Example:
            >>> GeneratedNgrams(3, 0).banned([5, 6, 7, 8, 5, 6]), GeneratedNgrams(3, 0).banned([5, 6])
            ([7], [])
        """
        keep = self.size - 1
        last = tuple(tokens[len(tokens) - keep :]) if keep else ()
        return [tokens[at + keep] for at in range(len(tokens) - keep) if tuple(tokens[at : at + keep]) == last]


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Find what ends an answer: the end tokens, and a blank line where the tokenizer has one token for it.

    GPT-2's are 50256 and 628, as in the reference.

    Args:
        model: a transformers causal model.
        tokenizer: its tokenizer.

    Returns:
        Token ids, each once.

    Raises:
        DataError: if nothing would ever end an answer.
    """
    own = model.generation_config.eos_token_id
    found = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    blank = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
    found += blank if len(blank) == 1 else []
    ends = tuple(dict.fromkeys(int(token) for token in found if token is not None))
    if not ends:
        raise DataError(
            "nothing would end an answer",
            where="tokenizer",
            got="no end token, and no single token for a blank line",
            expected="an end token",
            hint='add "eos_token" to tokenizer_config.json, naming the token that ends answers',
        )
    return ends


def distinct(contexts: Sequence[str]) -> list[str]:
    """Keep every input once, in the order of first appearance: references are many, answers need not be.

    Args:
        contexts: one per line of a test file.

    Returns:
        The distinct ones.

    Example:
        >>> distinct(["b", "a", "b"])
        ['b', 'a']
    """
    return list(dict.fromkeys(contexts))


def fit_prompts(prompts: Sequence[Prompt], *, context: int | None, beam: Beam, cut: bool) -> tuple[list[Prompt], int]:
    """See that every prompt leaves room for an answer.

    Args:
        prompts: all of them.
        context: tokens that the model takes, or None for any number.
        beam: whose ``max_tokens`` need room.
        cut: cut long prompts at their start, as the reference does, instead of refusing them.

    Returns:
        The prompts, and how many were cut.

    Raises:
        DataError: if a prompt is too long and may not be cut, or there is no room at all.
    """
    room = None if context is None else context - beam.max_tokens
    long = [] if room is None else [prompt for prompt in prompts if len(prompt.ids) > room]
    if room is None or not long:
        return list(prompts), 0
    if room < 1 or not cut:
        raise DataError(
            f"{len(long)} of {len(prompts)} prompts leave no room for an answer",
            where=f"prompt {long[0].id}: {long[0].context[:60]!r}",
            got=f"{len(long[0].ids)} tokens and an answer of up to {beam.max_tokens}",
            expected=f"together at most {context}, the model's context",
            hint="lower --max-tokens" if room < 1 else "add --cut-prompts to cut their start, or lower --max-tokens",
        )
    kept = {prompt.id for prompt in long}
    return [
        Prompt(id=prompt.id, context=prompt.context, ids=prompt.ids[-room:]) if prompt.id in kept else prompt
        for prompt in prompts
    ], len(long)


def batches_of(prompts: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Group prompts of similar length; the groups depend on the prompts alone, so that a resumed run forms the same.

    Args:
        prompts: all of them.
        size: of a group.

    Yields:
        list[Prompt]: at most ``size``.
    """
    order = sorted(prompts, key=lambda prompt: (len(prompt.ids), prompt.id))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def beam_search(model: Any, tokenizer: Any, prompts: Sequence[Prompt], beam: Beam, ends: Sequence[int]) -> list[Answer]:
    """Answer one batch of prompts.

    Args:
        model: a transformers causal model, in eval mode.
        tokenizer: its tokenizer.
        prompts: padded on the left to one width.
        beam: how to search.
        ends: token ids that end an answer.

    Returns:
        One answer for each prompt, in their order.
    """
    width = max(len(prompt.ids) for prompt in prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    ids = torch.full((len(prompts), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, width - len(prompt.ids) :] = 1
    device = next(model.parameters()).device
    many = {"length_penalty": beam.length_penalty, "early_stopping": "never"} if beam.beams > 1 else {}
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=beam.max_tokens,
            min_new_tokens=beam.min_tokens or None,
            num_beams=beam.beams,
            do_sample=False,
            eos_token_id=list(ends),
            pad_token_id=pad,
            # what the model's own generation_config may hold
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            **dict.fromkeys(("temperature", "top_p", "top_k")),
            renormalize_logits=True,
            logits_processor=[GeneratedNgrams(beam.no_repeat, width)] if beam.no_repeat else [],
            **many,
        )
    return [_answer(tokenizer, prompt, row, ends) for prompt, row in zip(prompts, out[:, width:].tolist(), strict=True)]


def _answer(tokenizer: Any, prompt: Prompt, tokens: list[int], ends: Sequence[int]) -> Answer:
    stop = next((at for at, token in enumerate(tokens) if token in ends), None)
    kept = tokens[:stop]
    return Answer(
        id=prompt.id,
        context=prompt.context,
        prediction=str(tokenizer.decode(kept, skip_special_tokens=True)).strip(),
        tokens=len(kept) + (stop is not None),
        truncated=stop is None,
    )
