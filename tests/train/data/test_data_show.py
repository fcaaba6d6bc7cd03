from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from templates_for_tests import CHATML

from deltaw.errors import ModelError
from deltaw.train.data import Example, context_length, load_tokenizer, marked, show
from deltaw.train.data.formats.base import Completion
from deltaw.train.data.templates import Renderer
from deltaw.train.data.tokens import affixes, encode


def example(tokenizer: Any, template: str, prompt: str, completion: str) -> Example:
    rendered = Renderer(tokenizer, template=template).render(Completion(prompt=prompt, completion=completion))
    (found,) = encode(tokenizer, rendered, affixes(tokenizer), tokenizer.eos_token_id)
    return Example(ids=found.ids, weights=found.weights)


def test_trained_tokens_stand_between_marks(byte_base: Any) -> None:
    text = marked(example(byte_base, CHATML, "Q [[1]]?", "é 🦊"), byte_base)
    assert text == "<|im_start|>user\nQ [[1]]?<|im_end|>\n<|im_start|>assistant\n[[é 🦊<|im_end|>]]"


def test_blanks_at_the_border_are_kept(piece_base: Any) -> None:
    assert marked(example(piece_base, "plain", "A:", " Paris"), piece_base).endswith("A:[[ Paris</s>]]")
    assert marked(example(piece_base, "plain", "A: ", "Paris"), piece_base).endswith("A: [[Paris</s>]]")


def test_colour_only_adds_to_the_marks(byte_base: Any) -> None:
    text = show(example(byte_base, CHATML, "Q", "A"), byte_base)
    console = Console(force_terminal=True, color_system="standard", width=200)
    with console.capture() as capture:
        console.print(text)
    assert "\x1b[" in capture.get()
    assert text.plain == marked(example(byte_base, CHATML, "Q", "A"), byte_base)


def test_tokenizer_loading(tmp_path: Path, byte_base: Any) -> None:
    byte_base.save_pretrained(tmp_path / "whole")
    assert load_tokenizer(tmp_path / "whole").eos_token == "</s>"
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "tokenizer.json").write_bytes((tmp_path / "whole" / "tokenizer.json").read_bytes())
    assert load_tokenizer(tmp_path / "bare")("the fox")["input_ids"] == byte_base("the fox")["input_ids"]
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_tokenizer(tmp_path / "nothing")


def test_context_length_is_the_smallest_that_is_known(tmp_path: Path, byte_base: Any) -> None:
    assert context_length(tmp_path, byte_base) == (2048, "the default ceiling")
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 96}')
    assert context_length(tmp_path, byte_base) == (96, "the model's max_position_embeddings")
