from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from templates_for_tests import SPECIALS
from tokenizers_for_tests import CORPUS, byte_tokenizer

from deltaw.errors import DataError
from deltaw.train.data.build import Options
from deltaw.train.data.report import DataReport
from deltaw.train.data.templates import Rendered
from deltaw.train.data.tokens import Affixes, Encoded, affixes, encode, encode_labelled, end_token_id
from deltaw.train.data.truncate import fit

quick = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_text = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("\n aA:▁"), max_size=25).filter(
    lambda text: not any(token in text for token in SPECIALS)
)


def decode(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def one(tokenizer: Any, *pieces: tuple[str, float], end: bool = True, begin: bool = True) -> Encoded:
    item = Rendered(pieces=pieces, begin=begin, end=end)
    return encode(tokenizer, [item], affixes(tokenizer), tokenizer.eos_token_id)[0]


@quick
@given(prompt=_text, answer=_text.filter(str.strip))
def test_prompt_and_answer_meet_exactly(tokenizer: Any, prompt: str, answer: str) -> None:
    """The text survives, the answer is trained with its end, and the prompt's tokens are those it has alone."""
    result = one(tokenizer, (prompt, 0.0), (answer, 1.0))
    prefix = list(affixes(tokenizer).prefix)
    whole = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    assert len(result.ids) == len(result.weights) and result.ids[-1] == tokenizer.eos_token_id
    assert decode(tokenizer, result.ids[len(prefix) : -1]) == decode(tokenizer, whole)
    assert result.weights[0] == 0
    if result.across:
        return
    start = next(at for at, weight in enumerate(result.weights) if weight)
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    # Without a begin token and without a prompt, the first token of the answer cannot be predicted.
    assert result.ids[:start] == prefix + alone or (start == 1 and not prefix and not alone)
    assert all(result.weights[start:])


def across(tokenizer: Any) -> tuple[str, str]:
    """Divide a known text where a token lies across the border."""
    text = CORPUS[1]
    for at in range(1, len(text)):
        alone = tokenizer(text[:at], add_special_tokens=False)["input_ids"]
        if tokenizer(text, add_special_tokens=False)["input_ids"][: len(alone)] != alone:
            return text[:at], text[at:]
    raise AssertionError("every border of this vocabulary is exact")


def test_a_token_across_the_border_is_cut_there(tokenizer: Any) -> None:
    prompt, answer = across(tokenizer)
    result = one(tokenizer, (prompt, 0.0), (answer, 1.0))
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    context = [token for token, weight in zip(result.ids, result.weights, strict=True) if not weight]
    assert not result.across and context[-len(alone) :] == alone
    assert (
        decode(tokenizer, [token for token in result.ids if token != tokenizer.bos_token_id])
        == prompt + answer + "</s>"
    )


def test_where_no_cut_decodes_the_token_across_is_trained_and_counted(byte_base: Any) -> None:
    class Stubborn:
        """Knows 'ab' as one token, and loses a lone 'a'."""

        eos_token_id = 9

        def __call__(self, texts: Any, **options: Any) -> dict[str, list[Any]]:
            known = {"xa": [1, 2], "xab": [1, 3], "b": [4], "": []}
            return {"input_ids": [known.get(text, [5] * len(text)) for text in texts]}

        def decode(self, ids: list[int], **options: Any) -> str:
            return " ".join(map(str, ids))

    item = Rendered(pieces=(("xa", 0.0), ("b", 1.0)), end=True)
    (result,) = encode(Stubborn(), [item], Affixes(), 9)
    assert (result.ids, result.weights, result.across) == ([1, 3, 9], [0.0, 1.0, 1.0], 1)


def test_begin_token_is_put_once(piece_base: Any) -> None:
    plain = one(piece_base, ("Hi", 0.0), (" you", 1.0))
    typed = one(piece_base, ("<s>Hi", 0.0), (" you", 1.0))
    assert plain.ids[0] == piece_base.bos_token_id and not plain.begun
    assert typed.ids.count(piece_base.bos_token_id) == 1 and typed.begun


def test_end_token_is_put_once(byte_base: Any) -> None:
    assert one(byte_base, ("a", 0.0), ("b</s>", 1.0)).ids.count(byte_base.eos_token_id) == 1
    (bare,) = encode(byte_base, [Rendered(pieces=(("a", 0.0), ("b", 1.0)), end=True)], Affixes(), None)
    assert byte_base.eos_token_id not in bare.ids


def test_end_token_choices(byte_base: Any) -> None:
    assert end_token_id(byte_base, "auto") == byte_base.eos_token_id
    assert end_token_id(byte_base, "none") is None
    assert end_token_id(byte_base, "<|im_end|>") == byte_base.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(DataError, match="no end token"):
        end_token_id(byte_tokenizer(), "auto")


def test_affixes(byte_base: Any, piece_base: Any) -> None:
    assert affixes(byte_base) == Affixes(joins_pairs=True)
    assert affixes(piece_base) == Affixes(prefix=(piece_base.bos_token_id,), joins_pairs=True)


def test_pairs_without_a_separator_are_joined_by_a_line_break(piece_base: Any) -> None:
    ((encoded, length),) = encode_labelled(piece_base, [("It rains.", "It is wet.")], affixes(piece_base), 99)
    assert encoded.ids == piece_base("It rains.\nIt is wet.")["input_ids"] and length == len(encoded.ids)
    ((cut, length),) = encode_labelled(piece_base, [("It rains.", "It is wet.")], affixes(piece_base), 5)
    assert len(cut.ids) == 5 and length == len(encoded.ids)


@pytest.fixture(scope="module")
def bert() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "a", "b", "c"]
    backend = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, unk_token="[UNK]")


def test_pairs_of_an_encoder_keep_separators_and_types(bert: Any) -> None:
    added = affixes(bert)
    assert added == Affixes(prefix=(1,), suffix=(2,))
    (pair, length), (cut, over) = encode_labelled(bert, [("a b", "c"), ("a b c a b", "c")], added, 6)
    assert (pair.ids, pair.types, length) == ([1, 4, 5, 2, 6, 2], [0, 0, 0, 0, 1, 1], 6)
    assert (cut.ids, cut.types, over) == ([1, 4, 5, 2, 6, 2], [0, 0, 0, 0, 1, 1], 9)
    ((single, _),) = encode_labelled(bert, [("a b", None)], added, 6)
    assert (single.ids, single.types) == ([1, 4, 5, 2], None)


def fitted(ids: int, trained: list[int], limit: int, mode: str, *, prefix: int = 1, windows: bool = False) -> Any:
    report = DataReport(path="", kind="", rows=1, format="", reason="", task="causal")
    encoded = Encoded(list(range(ids)), [float(at in trained) for at in range(ids)], windows=windows)
    options = Options(max_length=limit, truncation=mode)
    found = list(fit(encoded, options, Affixes(prefix=tuple(range(prefix))), report, "line 1"))
    return found, report


def test_cut_at_the_end_counts_answers_cut_and_lost() -> None:
    found, report = fitted(10, [7, 8, 9], 8, "cut")
    assert found == [(list(range(8)), [0.0] * 7 + [1.0])] and report.cut.first == ["line 1"]
    found, report = fitted(10, [8, 9], 8, "refuse")
    assert not found and report.lost.count == 1 and not report.cut.count
    found, report = fitted(10, [3], 8, "cut")
    assert len(found) == 1 and not report.cut.count and not report.lost.count


def test_cut_prompt_keeps_begin_and_answer() -> None:
    found, report = fitted(10, [7, 8, 9], 6, "cut-prompt")
    assert found == [([0, 5, 6, 7, 8, 9], [0.0] * 3 + [1.0] * 3)]
    assert report.cut_prompts.count == 1 and not report.cut.count
    found, report = fitted(10, list(range(2, 10)), 6, "cut-prompt")
    assert found == [([0, 2, 3, 4, 5, 6], [0.0] + [1.0] * 5)] and report.cut.count == 1
    found, report = fitted(10, list(range(1, 10)), 6, "cut-prompt", prefix=0)
    assert found[0][0] == [0, 1, 2, 3, 4, 5]


def test_drop_and_nothing_trained() -> None:
    found, report = fitted(10, [9], 8, "drop")
    assert not found and report.too_long.count == 1
    found, report = fitted(3, [], 8, "cut")
    assert not found and report.untrained.count == 1


@given(ids=st.integers(2, 60), limit=st.integers(2, 20))
def test_windows_train_every_token_but_the_first_once(ids: int, limit: int) -> None:
    found, report = fitted(ids, list(range(1, ids)), limit, "cut", windows=True)
    trained = [token for tokens, weights in found for token, weight in zip(tokens, weights, strict=True) if weight]
    assert trained == list(range(1, ids))
    assert all(len(tokens) <= limit and weights[0] == 0 for tokens, weights in found)
    assert report.windows.count == (ids > limit)


@given(
    ids=st.integers(2, 40),
    limit=st.integers(2, 30),
    mode=st.sampled_from(["refuse", "cut", "cut-prompt", "drop"]),
    data=st.data(),
)
def test_fit_never_loses_an_answer_uncounted(ids: int, limit: int, mode: str, data: st.DataObject) -> None:
    trained = data.draw(st.lists(st.integers(1, ids - 1), min_size=1, unique=True))
    found, report = fitted(ids, trained, limit, mode, prefix=data.draw(st.integers(0, 1)))
    kept = [token for tokens, weights in found for token, weight in zip(tokens, weights, strict=True) if weight]
    counted = report.cut.count + report.lost.count + report.too_long.count
    assert (sorted(kept) == sorted(trained)) == (counted == 0)
    for tokens, weights in found:
        assert len(tokens) == len(weights) <= limit and weights[0] == 0 and any(weights)
        assert tokens == sorted(tokens)
