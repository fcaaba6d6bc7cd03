from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from templates_for_tests import CHATML, SHAPES, SPECIALS, Shape

from deltaw.train.data.formats.base import Chat, Completion, Text
from deltaw.train.data.formats.messages import chat
from deltaw.train.data.sources.base import RowProblem
from deltaw.train.data.templates import Renderer
from deltaw.train.data.tokens import affixes, encode

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

_words = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\n\t ab:[]<>|#"), max_size=30)
_content = _words.filter(lambda text: text.strip() and not any(token in text for token in SPECIALS))


@st.composite
def conversations(draw: st.DrawFn, system: bool) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": draw(_content)}] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "content": draw(_content)})
        messages.append({"role": "assistant", "content": draw(_content)})
    return messages


def decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def encoded(
    tokenizer: Any, template: str, messages: list[dict[str, Any]], **options: Any
) -> tuple[Renderer, list[Any]]:
    added = affixes(tokenizer)
    renderer = Renderer(tokenizer, template=template, adds_bos=bool(added.prefix), **options)
    renderer.set_end(tokenizer.eos_token)
    rendered = renderer.render(chat(messages, "messages"))
    return renderer, encode(tokenizer, rendered, added, tokenizer.eos_token_id)


def trained_text(tokenizer: Any, example: Any) -> str:
    """Decode the trained tokens where they stand, so that blanks at the seams are seen."""
    text, parts = "", []
    for end in range(1, len(example.ids) + 1):
        if end < len(example.ids) and (example.weights[end] > 0) == (example.weights[end - 1] > 0):
            continue
        grown = decode(tokenizer, example.ids[:end])
        if example.weights[end - 1] > 0:
            parts.append(grown[len(text) :])
        text = grown
    return "".join(parts)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@quick
@given(data=st.data())
def test_trained_tokens_are_the_answers_and_their_ends(byte_base: Any, shape: Shape, data: st.DataObject) -> None:
    messages = data.draw(conversations(shape.system))
    renderer, examples = encoded(byte_base, shape.template, messages)
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    wanted = [shape.answer(messages, place) for place in places]
    assert "".join(trained_text(byte_base, example) for example in examples) == "".join(wanted)
    assert len(examples) == (len(places) if shape.rewrites and len(places) > 1 else 1)
    for example in examples:
        assert len(example.ids) == len(example.weights)
        assert example.weights[0] == 0 and set(example.weights) <= {0.0, 1.0}
        assert decode(byte_base, example.ids[-1:]) == shape.end and example.weights[-1] == 1
        assert example.ids.count(byte_base.bos_token_id) == ("bos_token" in shape.template)
    assert not renderer.without_end


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@quick
@given(data=st.data())
def test_context_is_what_the_model_is_given_in_use(byte_base: Any, shape: Shape, data: st.DataObject) -> None:
    """Up to each answer of the first turn, the tokens are those of the rendered prompt tokenized alone."""
    messages = data.draw(conversations(shape.system))
    _, examples = encoded(byte_base, shape.template, messages)
    first = next(place for place, message in enumerate(messages) if message["role"] == "assistant")
    prompt = byte_base.apply_chat_template(
        messages[:first], chat_template=shape.template, add_generation_prompt=True, return_dict=False
    )
    start = next(at for at, weight in enumerate(examples[0].weights) if weight)
    assert examples[0].ids[:start] == prompt


@quick
@given(data=st.data())
def test_default_template_needs_no_special_tokens_but_the_end(tokenizer: Any, data: st.DataObject) -> None:
    messages = data.draw(conversations(True))
    renderer, (example,) = encoded(tokenizer, "auto", messages)
    whole = decode(tokenizer, example.ids).replace("�", "")
    assert example.ids.count(tokenizer.eos_token_id) == sum(m["role"] == "assistant" for m in messages)
    assert (example.ids[0] == tokenizer.bos_token_id) == bool(affixes(tokenizer).prefix)
    assert example.ids.count(tokenizer.bos_token_id) == bool(affixes(tokenizer).prefix)
    answers = "".join(m["content"] + "</s>" for m in messages if m["role"] == "assistant")
    assert example.across or trained_text(tokenizer, example) == answers, whole
    assert "headings" in renderer.describe({Chat})


def test_a_turn_of_weight_zero_is_context(byte_base: Any) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "wrong", "weight": 0},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "right", "weight": 0.5},
    ]
    _, (example,) = encoded(byte_base, CHATML, messages)
    assert trained_text(byte_base, example) == "right<|im_end|>"
    assert set(example.weights) == {0.0, 0.5}


def test_turns_after_the_last_answer_are_left_out(byte_base: Any) -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "unanswered"},
    ]
    _, (example,) = encoded(byte_base, CHATML, messages)
    assert "unanswered" not in decode(byte_base, example.ids)


def test_earlier_thinking_is_trained_in_the_turn_that_had_it(byte_base: Any) -> None:
    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\neasy\n</think>\n\n2"},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>\nhmm\n</think>\n\n4"},
    ]
    renderer, examples = encoded(byte_base, SHAPES["qwen3"].template, messages)
    assert renderer.unrolled == 1
    assert [trained_text(byte_base, example) for example in examples] == [
        "<think>\neasy\n</think>\n\n2<|im_end|>",
        "<think>\nhmm\n</think>\n\n4<|im_end|>",
    ]
    assert "easy" not in decode(byte_base, examples[1].ids)


def test_template_options_reach_the_template(byte_base: Any) -> None:
    messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    _, (example,) = encoded(byte_base, SHAPES["qwen3"].template, messages, options={"enable_thinking": False})
    assert trained_text(byte_base, example) == "2<|im_end|>"


SYSTEM = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
]


def test_system_text_is_refused_folded_or_dropped(byte_base: Any) -> None:
    gemma = SHAPES["gemma"].template
    with pytest.raises(RowProblem, match="System role not supported"):
        encoded(byte_base, gemma, SYSTEM)
    _, (folded,) = encoded(byte_base, gemma, SYSTEM, system="fold")
    assert "be brief\n\nhi" in decode(byte_base, folded.ids)
    _, (dropped,) = encoded(byte_base, gemma, SYSTEM, system="drop")
    assert "be brief" not in decode(byte_base, dropped.ids)
    assert trained_text(byte_base, dropped) == trained_text(byte_base, folded) == "yo<end_of_turn>"


REFUSED = {
    "loses the system turn": (
        CHATML.replace("{{ '<|im_start|>'", "{% if m.role != 'system' %}{{ '<|im_start|>'", 1).replace(
            "<|im_end|>\n' }}", "<|im_end|>\n' }}{% endif %}", 1
        ),
        SYSTEM,
        "leaves out message 1",
    ),
    "prompt differs from the turn": (CHATML + "{% if add_generation_prompt %}<think>{% endif %}", SYSTEM, "is not how"),
    "changes answers": (CHATML.replace("m.content", "m.content | upper"), SYSTEM, "leaves out message 1"),
    "roles must alternate": (SHAPES["mistral"].template, SYSTEM[1:2] * 2 + SYSTEM[2:], "must alternate"),
    "answer first": (SHAPES["mistral"].template, SYSTEM[2:], "must alternate"),
    "undefined": ("{{ messages[0].missing.deeper }}", SYSTEM, "refuses the conversation"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inexact_templates_are_refused(byte_base: Any, case: str) -> None:
    template, messages, match = REFUSED[case]
    with pytest.raises(RowProblem, match=match):
        encoded(byte_base, template, messages)


TOOLS = CHATML.replace("{% for m", "{% if tools %}{{ tools | tojson }}{% endif %}{% for m").replace(
    "m.content +", "m.content + (m.tool_calls | tojson if m.tool_calls else '') +"
)
CALL = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "sky", "arguments": {"at": "x"}}}]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]


def test_tool_calls_are_trained_and_their_results_are_not(byte_base: Any) -> None:
    renderer = Renderer(byte_base, template=TOOLS)
    rendered = renderer.render(chat(CALL, "messages", tools=[{"name": "sky"}]))
    (example,) = encode(byte_base, rendered, affixes(byte_base), byte_base.eos_token_id)
    text = trained_text(byte_base, example)
    assert '"name": "sky"' in text and "It is sunny." in text and "sunny<|im_end|>" not in text.replace("sunny.", "")


@pytest.mark.parametrize(("tools", "match"), [([{"name": "sky"}], "leaves out the tools"), (None, "tool calls")])
def test_templates_that_ignore_tools_are_refused(byte_base: Any, tools: Any, match: str) -> None:
    with pytest.raises(RowProblem, match=match):
        Renderer(byte_base, template=CHATML).render(chat(CALL, "messages", tools=tools))


def test_a_template_without_end_tokens_gets_the_last_one(byte_base: Any) -> None:
    bare = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}" + (
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    renderer, (example,) = encoded(byte_base, bare, [*SYSTEM[1:], *SYSTEM[1:]])
    assert example.ids[-1] == byte_base.eos_token_id and example.weights[-1] == 1
    assert renderer.without_end == 1


def test_pairs_use_the_chat_template_where_there_is_one(byte_base: Any) -> None:
    record = Completion(prompt="Translate.", given="cat", completion="chat", system="s", headed=True)
    (rendered,) = Renderer(byte_base, template=CHATML).render(record)
    assert [text for text, weight in rendered.pieces if weight] == ["chat<|im_end|>"]
    assert "user\nTranslate.\n\ncat<|im_end|>" in rendered.text and "system\ns" in rendered.text
    (plain,) = Renderer(byte_base).render(record)
    assert plain.text == "s\n\n### Instruction:\nTranslate.\n\n### Input:\ncat\n\n### Response:\nchat"


@pytest.mark.parametrize(
    ("prompt", "completion", "joiner", "text"),
    [
        ("Q", "A", "auto", "Q\nA"),
        ("Q ", "A", "auto", "Q A"),
        ("Q", " A", "auto", "Q A"),
        ("Q", "A", " => ", "Q => A"),
        ("Q", "A", "", "QA"),
        ("", "A", "auto", "A"),
    ],
)
def test_joiner(byte_base: Any, prompt: str, completion: str, joiner: str, text: str) -> None:
    renderer = Renderer(byte_base, joiner=joiner)
    record = Completion(prompt=prompt, completion=completion)
    (rendered,) = renderer.render(record)
    assert rendered.text == text
    assert text.startswith(renderer.prompt(record).text)


def test_prompt_is_the_untrained_start(byte_base: Any) -> None:
    renderer = Renderer(byte_base, template=CHATML)
    record = chat(SYSTEM, "messages")
    (rendered,) = renderer.render(record)
    asked = renderer.prompt(Chat(messages=record.messages[:-1], weights=record.weights[:-1]))
    assert rendered.pieces[0] == asked.pieces[0]
    assert renderer.describe({Text}).startswith("none")
