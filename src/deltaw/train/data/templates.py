"""From a record to text in pieces, each with its weight: what is context, and what is trained.

Chat templates are programs, so the trained part is found by running them: an assistant turn is the difference between
the conversation rendered up to before it, with the generation prompt, and rendered up to its end. That is exactly what
the model is asked for when it is used. Where a template renders an earlier turn differently once later ones follow
(dropping its thinking, moving the system text), the conversation becomes one example per assistant turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltaw.errors import ConfigError, DataError, nearest
from deltaw.train.data.formats.base import Chat, Completion, Record, Text
from deltaw.train.data.sources.base import RowProblem

__all__ = ["DEFAULT_CHAT_TEMPLATE", "Rendered", "Renderer"]

# For tokenizers without a template: plain words as headings, because new special tokens would be untrained rows of a
# frozen embedding. The end token after each answer is the tokenizer's own.
_BOS = "{% if tokenizer_adds_bos %}{{ bos_token }}{% endif %}"
DEFAULT_CHAT_TEMPLATE = (
    _BOS + "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{{ (eos_token if message['role'] == 'assistant' else '') + '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """One example as text.

    Args:
        pieces: (text, loss weight), in order.
        begin: whether the tokenizer's own begin tokens are put in front.
        end: whether the end token follows, with the weight of the last piece.
        windows: whether a text over the maximum length is cut into windows, instead of truncated.
    """

    pieces: tuple[tuple[str, float], ...]
    begin: bool = False
    end: bool = False
    windows: bool = False

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(text for text, _ in self.pieces)


@dataclass
class Renderer:
    """Renders records for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        template: ``auto`` (the tokenizer's chat template where it has one), ``plain`` (never), ``default`` (the
            documented headings), or a Jinja chat template: its text, or the path of a file.
        options: variables for the chat template, such as ``{"enable_thinking": False}``.
        system: ``keep`` system turns, ``fold`` them into the first user turn, or ``drop`` them.
        joiner: what stands between a plain prompt and its completion; ``auto``: a line break unless either has a
            blank there.
        adds_bos: whether the tokenizer puts a begin token before plain text.
        unrolled: counts conversations that became one example per assistant turn.
        without_end: counts assistant turns that no special token follows.
        appends: whether any example needs the tokenizer's end token after it.
        ends: collects the special tokens that end assistant turns.
    """

    tokenizer: Any
    template: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    system: str = "keep"
    joiner: str = "auto"
    adds_bos: bool = False
    unrolled: int = 0
    without_end: int = 0
    appends: bool = False
    ends: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        own = getattr(self.tokenizer, "chat_template", None)
        own = own.get("default") if isinstance(own, dict) else own
        self._chat: str | None = None
        if self.template == "auto":
            self._chat = own
        elif self.template not in ("plain", "default"):
            self._chat = _template_text(self.template)
        self.is_default = self._chat is None
        self.chat_template: str = self._chat or DEFAULT_CHAT_TEMPLATE
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        specials = {str(token) for token in added.values() if token.special} | set(self.tokenizer.all_special_tokens)
        self.specials = tuple(sorted(token for token in specials if token))
        self.options = {name: _literal(value) for name, value in self.options.items()}
        self._own: dict[str, Any] = {"tokenizer_adds_bos": self.adds_bos, "eos_token": ""} if self.is_default else {}

    def set_end(self, text: str) -> None:
        """Say which token ends answers, for the default template.

        Args:
            text: the token; one that is not special would not be found again in a text, so it is left out.
        """
        if self.is_default and text in self.specials:
            self._own["eos_token"] = text

    @property
    def portable(self) -> str:
        """The chat template as other programs can use it, for a tokenizer that is saved beside a trained model."""
        bos = "{{ bos_token }}" if self.adds_bos else ""
        return self.chat_template.replace(_BOS, bos) if self.is_default else self.chat_template

    def describe(self, kinds: set[type]) -> str:
        """Say which template applies.

        Args:
            kinds: the types of the records that were rendered.

        Returns:
            One line for the report.
        """
        if kinds <= {Text}:
            return "none: running text, all tokens trained"
        if not self.is_default:
            whose = "the tokenizer's chat template" if self.template == "auto" else "the chat template given"
            return f"{whose}; trained: the assistant turns with their end token"
        if Chat in kinds or self.template == "default":
            return (
                "the tokenizer has no chat template: '### User:' and '### Assistant:' headings, end token after answers"
            )
        joint = {"auto": "a line break unless a blank stands there", "": "nothing"}.get(self.joiner, repr(self.joiner))
        return f"plain, for models without a chat template: prompt, then completion; between them {joint}"

    def render(self, record: Record) -> list[Rendered]:
        """Turn a record into examples.

        Args:
            record: any but a labelled one.

        Returns:
            One example; several where a template rewrites earlier turns.

        Raises:
            RowProblem: if the template refuses the conversation, loses part of it, or cannot be trained exactly.
        """
        if isinstance(record, Text):
            self.appends = True
            return [Rendered(pieces=((record.text, 1.0),), begin=True, end=True, windows=True)]
        if isinstance(record, Completion):
            if self.is_default and self.template != "default":
                pieces = (self._plain_prompt(record), 0.0), (record.completion, 1.0)
                self.appends = True
                return [Rendered(pieces=pieces, begin=True, end=True)]
            record = _as_chat(record)
        assert isinstance(record, Chat)
        return self._conversation(record)

    def prompt(self, record: Completion | Chat) -> Rendered:
        """Render what a model is given to answer: the same text that stood before the trained part.

        Args:
            record: the pair, its completion ignored, or the conversation so far.

        Returns:
            An example of one piece of context.

        Raises:
            RowProblem: if the template refuses the conversation.
        """
        if isinstance(record, Completion):
            if self.is_default and self.template != "default":
                return Rendered(pieces=((self._plain_prompt(record), 0.0),), begin=True)
            chat = _as_chat(record)
            record = Chat(messages=chat.messages[:-1], weights=chat.weights[:-1])
        messages = self._fold(record.messages)
        return Rendered(pieces=((self._apply(messages, record.tools, True), 0.0),))

    def _plain_prompt(self, record: Completion) -> str:
        system = f"{record.system}\n\n" if record.system else ""
        given = record.given if record.given.strip() else ""
        if record.headed:
            given = f"\n\n### Input:\n{given}" if given else ""
            return f"{system}### Instruction:\n{record.prompt}{given}\n\n### Response:\n"
        prompt = f"{system}{record.prompt}"
        if self.joiner != "auto":
            return prompt + self.joiner
        seam = prompt[-1:].isspace() or record.completion[:1].isspace() or not prompt
        return prompt if seam else prompt + "\n"

    def _fold(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.system == "keep" or not any(message["role"] == "system" for message in messages):
            return messages
        text = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
        rest = [message for message in messages if message["role"] != "system"]
        first = next((place for place, message in enumerate(rest) if message["role"] == "user"), None)
        if self.system == "fold" and first is not None:
            rest[first] = {**rest[first], "content": f"{text}\n\n{rest[first]['content']}"}
        return rest

    def _apply(self, messages: list[dict[str, Any]], tools: list[Any] | None, generation: bool) -> str:
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self.chat_template,
                add_generation_prompt=generation,
                tokenize=False,
                **self._own,
                **self.options,
            )
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                "the chat template is not valid Jinja",
                where=f"template line {error.lineno}",
                got=str(error.message),
                expected="a Jinja template that renders messages",
                hint="correct the template, or leave it out to use the tokenizer's own.",
            ) from error
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise RowProblem(f"the chat template refuses the conversation: {' '.join(str(error).split())}") from error
        return str(text)

    def _conversation(self, chat: Chat) -> list[Rendered]:
        weights = list(chat.weights)
        last = max(place for place, weight in enumerate(weights) if weight)
        kept = [dict(message, _weight=weight) for message, weight in zip(chat.messages, weights, strict=True)]
        kept = self._fold(kept[: last + 1])
        weights = [message.pop("_weight") for message in kept]
        full = self._apply(kept, chat.tools, False)
        self._complete(kept, chat, full)
        spans: list[tuple[str, str, float]] = []
        for place in [place for place, weight in enumerate(weights) if weight]:
            before = self._apply(kept[:place], chat.tools, True)
            until = full if place == len(kept) - 1 else self._apply(kept[: place + 1], chat.tools, False)
            if not until.startswith(before):
                raise RowProblem(_diverges(place, before, until))
            self._answer(kept[place], place, until[len(before) :])
            spans.append((before, self._trim(until, len(before)), weights[place]))
        if all(full.startswith(before) and full.startswith(until) for before, until, _ in spans):
            return [self._one(_cut(full, spans))]
        self.unrolled += 1
        return [self._one([(before, 0.0), (until[len(before) :], weight)]) for before, until, weight in spans]

    def _trim(self, until: str, start: int) -> str:
        """Leave out the blanks after an end token: generation stops at the token, so they are never asked for."""
        bare = until.rstrip()
        return bare if len(bare) > start and bare.endswith(self.specials) else until

    def _one(self, pieces: Sequence[tuple[str, float]]) -> Rendered:
        ended = pieces[-1][0].endswith(self.specials)
        if ended:
            self.ends.add(max((token for token in self.specials if pieces[-1][0].endswith(token)), key=len))
        self.appends |= not ended
        self.without_end += sum(1 for text, weight in pieces[:-1] if weight and not text.endswith(self.specials))
        return Rendered(pieces=tuple(pieces), end=not ended)

    def _complete(self, messages: list[dict[str, Any]], chat: Chat, full: str) -> None:
        """Refuse a template that leaves out what the user wrote."""
        for number, message in enumerate(messages, 1):
            if message["role"] in ("user", "system") and message["content"].strip() not in full:
                raise RowProblem(f"the chat template leaves out message {number} ({message['role']})")
        if chat.tools and self._apply(messages, None, False) == full:
            raise RowProblem("the chat template leaves out the tools")

    def _answer(self, message: dict[str, Any], place: int, span: str) -> None:
        content = message["content"].rpartition("</think>")[2].strip()
        if content not in span:
            raise RowProblem(f"the chat template changes or leaves out message {place + 1} (assistant)")
        for call in message.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, dict) else {}
            if str(function.get("name")) not in span:
                raise RowProblem(f"the chat template leaves out the tool calls of message {place + 1}")


def _cut(full: str, spans: list[tuple[str, str, float]]) -> list[tuple[str, float]]:
    pieces: list[tuple[str, float]] = []
    at = 0
    for before, until, weight in spans:
        if len(before) > at:
            pieces.append((full[at : len(before)], 0.0))
        pieces.append((full[max(at, len(before)) : len(until)], weight))
        at = len(until)
    return pieces


def _diverges(place: int, before: str, until: str) -> str:
    at = next((i for i, (x, y) in enumerate(zip(before, until, strict=False)) if x != y), min(len(before), len(until)))
    return (
        f"the chat template's prompt for message {place + 1} is not how it renders that turn: "
        f"prompt {before[at:][:40]!r}, turn {until[at:][:40]!r}"
    )


def _template_text(value: str) -> str:
    """Read a template; what holds no brace is a path."""
    if "{" in value:
        return value
    try:
        return Path(value).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the chat template cannot be read",
            where=value,
            got=f"{type(error).__name__}",
            expected="auto, plain, default, the path of a Jinja file, or a template's text",
            hint=f"check the path; closest choice: {nearest(value, ('auto', 'plain', 'default'), 1)}.",
        ) from error


def _literal(value: Any) -> Any:
    """Read a variable typed as text: for a template, the text "false" would be true."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _as_chat(record: Completion) -> Chat:
    """Read a prompt and its completion as one exchange."""
    user = f"{record.prompt}\n\n{record.given}" if record.given.strip() else record.prompt
    system = [{"role": "system", "content": record.system}] if record.system else []
    messages = [*system, {"role": "user", "content": user}, {"role": "assistant", "content": record.completion}]
    return Chat(messages=messages, weights=[0.0] * (len(messages) - 1) + [1.0])
