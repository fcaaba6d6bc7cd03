"""``deltaw chat``: talk to a model; lines in, answers out, on a terminal or through a pipe."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click

from deltaw.cli._common import Output, common_options
from deltaw.cli._models import model_options, open_causal, take_model
from deltaw.cli._prompts import conversation_ids, form_used, prompt_to_ids
from deltaw.cli._sampling import Sampling, complete, room_for, sampling_options, take_sampling
from deltaw.errors import DataError, nearest

if TYPE_CHECKING:
    from deltaw.ship.opening import Opened

__all__ = ["Conversation", "command"]

COMMANDS = {
    "/reset": "forget the conversation",
    "/system": "set the system turn: /system TEXT (no text: none)",
    "/base": "answer with the base alone",
    "/adapter": "answer with the adapter",
    "/help": "list these",
    "/quit": "leave",
}

PLAIN_FORM = "the model has no chat template: turns stand under the headings '### User:' and '### Assistant:'"
SINGLE_FORM = "the adapter was trained on single prompts: every line is answered as one, without what came before"
STOPS = ("\n### User:", "\n### System:", "\n### Assistant:")


@click.command("chat")
@model_options
@click.option("--system", metavar="TEXT", help="System turn to begin with.")
@sampling_options
@common_options
def command(*, system: str | None, quiet: bool, as_json: bool, **rest: Any) -> None:
    """Talk to a model; switch its adapter on and off on the way.

    Lines that begin with / are commands: /reset, /system TEXT, /base, /adapter, /help, /quit. Input may be piped. With
    --json the conversation is printed as one object at the end.
    """
    out = Output(quiet=quiet, as_json=as_json)
    sampling = take_sampling(rest)
    opened = open_causal(take_model(rest))
    talk = Conversation(opened=opened, sampling=sampling, out=out, system=system)
    out.say(*([opened.report] if opened.report is not None else []))
    out.say(f"{opened.source}{' with ' + opened.adapter if opened.adapter else ''}; /help lists the commands")
    if not opened.tokenizer.chat_template:
        out.say(SINGLE_FORM if talk.single else PLAIN_FORM)
    while (line := _read(out)) is not None:
        if not talk.take(line):
            break
    out.finish({"model": opened.source, "adapter": opened.adapter, "turns": talk.turns})


@dataclass(kw_only=True)
class Conversation:
    """A conversation under way.

    Args:
        opened: the model.
        sampling: how tokens are chosen.
        out: where words go.
        system: the system turn, or None.
        turns: what was said, each with its role, content and, for answers, the side that gave it.
        base: whether the base alone answers.
    """

    opened: Opened
    sampling: Sampling
    out: Output
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)
    base: bool = False

    def take(self, line: str) -> bool:
        """Carry out one line: a command, or a turn to answer.

        Args:
            line: what was typed.

        Returns:
            False where the conversation ends.
        """
        line = line.strip()
        if not line:
            return True
        if not line.startswith("/"):
            self._answer(line)
            return True
        name, _, rest = line.partition(" ")
        if name == "/quit":
            return False
        self.out.say(self._command(name, rest.strip()))
        return True

    def _command(self, name: str, rest: str) -> str:
        if name == "/reset":
            self.turns.clear()
            return "the conversation is forgotten"
        if name == "/system":
            self.system = rest or None
            self.turns.clear()
            return "system turn set; the conversation begins anew" if rest else "no system turn; it begins anew"
        if name in {"/base", "/adapter"}:
            if self.opened.adapter is None:
                return "there is no adapter: start with --adapter DIR"
            self.base = name == "/base"
            return "the base answers" if self.base else "the adapter answers"
        if name == "/help":
            return "\n".join(f"{command:<9} {what}" for command, what in COMMANDS.items())
        return f"there is no command {name}; closest: {nearest(name, COMMANDS, 2)}"

    def _answer(self, line: str) -> None:
        from deltaw.ship.opening import base_alone

        self.turns.append({"role": "user", "content": line})
        side = "base" if self.base or self.opened.adapter is None else "adapter"
        write = _write if self.out.talks else None
        try:
            ids = self._ids()
            room_for(self.opened.model, len(ids))
            if write:
                write(f"[{side}] ")
            off = self.base and self.opened.adapter is not None
            with base_alone(self.opened) if off else nullcontext():
                answer = complete(self.opened.model, self.opened.tokenizer, ids, self._sampling(), write)
        except DataError as error:
            self.turns.pop()
            self.out.say(f"{error.what}: {error.got}; /reset begins anew")
            return
        self.out.say("")
        self.turns.append({"role": "assistant", "content": answer.strip(), "side": side})

    def _messages(self) -> list[dict[str, str]]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        return first + [{"role": turn["role"], "content": turn["content"]} for turn in self.turns]

    @property
    def single(self) -> bool:
        """Whether each line stands alone: the adapter was trained on single prompts, without a chat template."""
        return not self.opened.tokenizer.chat_template and form_used(self.opened, "auto") == "prompt"

    def _ids(self) -> list[int]:
        if self.single:
            return prompt_to_ids(self.opened, "prompt", self.turns[-1]["content"])
        return conversation_ids(self.opened, self._messages())

    def _sampling(self) -> Sampling:
        if self.opened.tokenizer.chat_template or self.single:
            return self.sampling
        return replace(self.sampling, stop=(*self.sampling.stop, *STOPS))


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _read(out: Output) -> str | None:
    try:
        return input("> " if out.talks and sys.stdin.isatty() else "")
    except EOFError:
        return None
