"""Six shapes of chat template, each with what it must train for a conversation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, Any]]


def _plain_answer(end: str, trim: bool) -> Callable[[Messages, int], str]:
    def answer(messages: Messages, place: int) -> str:
        content = messages[place]["content"]
        return (content.strip() if trim else content) + end

    return answer


@dataclass(frozen=True)
class Shape:
    """A template and the trained text it must give for an assistant turn."""

    name: str
    template: str
    end: str
    answer: Callable[[Messages, int], str]
    system: bool = True
    rewrites: bool = False


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# The begin token is part of the template, there is no generation prompt, and system text is refused.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('Only user and assistant roles, no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages and messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Thinking is rendered only after the last user turn; earlier turns lose it once the conversation goes on.
QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set thought = thought if '</think>' in m.content else '' %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def _mistral(messages: Messages, place: int) -> str:
    return " " + messages[place]["content"] + "</s>"


def _qwen3(messages: Messages, place: int) -> str:
    # Every turn is trained as it is generated: thinking first, even when there is none.
    return "<think>\n\n</think>\n\n" + messages[place]["content"].lstrip("\n") + "<|im_end|>"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("chatml", CHATML, "<|im_end|>", _plain_answer("<|im_end|>", False)),
        Shape("llama3", LLAMA3, "<|eot_id|>", _plain_answer("<|eot_id|>", True)),
        Shape("mistral", MISTRAL, "</s>", _mistral, system=False),
        Shape("gemma", GEMMA, "<end_of_turn>", _plain_answer("<end_of_turn>", True), system=False),
        Shape("qwen3", QWEN3, "<|im_end|>", _qwen3, rewrites=True),
        Shape("zephyr", ZEPHYR, "</s>", _plain_answer("</s>", False)),
    )
}

SPECIALS = [
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
]
