"""Beam search against an enumeration of every answer, batches against single prompts, and the command on disk."""

from __future__ import annotations

import itertools
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaw.cli import main
from deltaw.errors import ConfigError, DataError
from deltaw.paper.answers import Store, write_e2e, write_numbered
from deltaw.paper.decode import Answer, Beam, GeneratedNgrams, Prompt, batches_of, beam_search, end_ids, fit_prompts

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from tiny_train import make_model, make_tokenizer, pairs

VOCABULARY, LENGTH = 5, 4


class Letters:
    """A tokenizer of five letters."""

    pad_token_id, eos_token_id = 0, 0

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join("abcde"[token] for token in ids)


def toy(kind: str, seed: int) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(
            GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=16, vocab_size=VOCABULARY, eos_token_id=0)
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=2, max_position_embeddings=16, eos_token_id=0,
            )
        )  # fmt: skip
    for parameter in model.parameters():
        parameter.data.mul_(6.0 if parameter.dim() > 1 else 1.0)
    return model.eval()


def allowed(tokens: tuple[int, ...], beam: Beam, ends: tuple[int, ...]) -> list[int]:
    """Tokens that may follow, from the definition: no n-gram twice, no end before the shortest length."""
    out = []
    for token in range(VOCABULARY):
        longer = (*tokens, token)
        grams = [longer[at : at + beam.no_repeat] for at in range(len(longer) - beam.no_repeat + 1)]
        if beam.no_repeat and len(grams) != len(set(grams)):
            continue
        if token in ends and len(tokens) < beam.min_tokens:
            continue
        out.append(token)
    return out


def best_by_enumeration(model: Any, prompt: tuple[int, ...], beam: Beam, ends: tuple[int, ...]) -> tuple[int, ...]:
    """Score every answer there is."""

    def scores(tokens: tuple[int, ...]) -> list[float]:
        with torch.no_grad():
            row = model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].double()
        free = allowed(tokens, beam, ends)
        total = torch.logsumexp(row[free], 0)
        return [float(row[token] - total) if token in free else -math.inf for token in range(VOCABULARY)]

    found, open_answers = [], [((), 0.0)]
    for length in range(1, beam.max_tokens + 1):
        longer = []
        for tokens, total in open_answers:
            for token, score in enumerate(scores(tokens)):
                if score > -math.inf:
                    longer.append(((*tokens, token), total + score))
        done = [(t, s) for t, s in longer if t[-1] in ends or length == beam.max_tokens]
        found += [(score / length**beam.length_penalty, tokens) for tokens, score in done]
        open_answers = [(t, s) for t, s in longer if t[-1] not in ends]
    return max(found)[1]


SETTINGS = [
    (Beam(length_penalty=0.8, no_repeat=2, max_tokens=LENGTH), (0, 1)),
    (Beam(length_penalty=2.0, no_repeat=0, max_tokens=LENGTH), (0,)),
    (Beam(length_penalty=0.0, no_repeat=1, max_tokens=LENGTH), (0, 3)),
    (Beam(length_penalty=0.9, no_repeat=2, max_tokens=LENGTH, min_tokens=3), (0, 1)),
]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_enough_beams_find_the_best_of_all_answers(kind: str, number: int) -> None:
    small, ends = SETTINGS[number]
    # as many beams as there are open prefixes: the search is then exhaustive, so it must find the best
    beam = Beam(**{**vars(small), "beams": VOCABULARY ** (LENGTH - 1), "batch_size": 3})
    prompts = [Prompt(id=n, context="", ids=ids) for n, ids in enumerate([(2,), (3, 4, 2), (4, 1, 1, 2, 3)])]
    lengths = set()
    for seed in range(2):
        model = toy(kind, seed)
        together = beam_search(model, Letters(), prompts, beam, ends)
        for prompt, answer in zip(prompts, together, strict=True):
            best = best_by_enumeration(model, prompt.ids, beam, ends)
            kept = best[:-1] if best[-1] in ends else best
            assert answer.prediction == Letters().decode(list(kept)), (seed, prompt, best)
            assert answer.truncated == (best[-1] not in ends) and answer.tokens == len(best)
            assert answer.tokens > beam.min_tokens or not beam.min_tokens
            lengths.add(len(best))
    if number == 2:
        assert min(lengths) < LENGTH, "without a length penalty some answers end early"


def test_each_option_changes_an_answer() -> None:
    """Over a few random models every option matters; a beam of 1 is greedy."""
    prompts = [Prompt(id=n, context="", ids=ids) for n, ids in enumerate(itertools.product((2, 3, 4), repeat=2))]
    plain: dict[str, Any] = {"beams": 4, "length_penalty": 0.0, "no_repeat": 0, "max_tokens": 6}
    changes = {"beams": 1, "length_penalty": 3.0, "no_repeat": 2, "max_tokens": 3, "min_tokens": 4}
    differ = dict.fromkeys(changes, 0)
    for seed in range(3):
        model = toy("gpt2", seed)
        first = beam_search(model, Letters(), prompts, Beam(**plain), (0,))
        for name, value in changes.items():
            other = beam_search(model, Letters(), prompts, Beam(**{**plain, name: value}), (0,))
            differ[name] += sum(a.prediction != b.prediction for a, b in zip(first, other, strict=True))
    assert all(differ.values()), differ


def test_only_the_generated_part_is_kept_from_repeating() -> None:
    beam = Beam(beams=3, no_repeat=1, max_tokens=3)
    model = toy("gpt2", 1)
    (answer,) = beam_search(model, Letters(), [Prompt(id=0, context="", ids=(1, 2, 3, 4))], beam, (0,))
    assert answer.prediction, "with the prompt counted too, nothing but the end could be said"
    assert len(set(answer.prediction)) == len(answer.prediction)
    assert GeneratedNgrams(4, 0).banned([1, 2, 3, 9, 1, 2, 3]) == [9]


def test_batches_answer_as_single_prompts_do() -> None:
    model, tokenizer = make_model(320).eval(), make_tokenizer()
    for parameter in model.parameters():
        parameter.data.mul_(4.0)
    prompts = [
        Prompt(id=n, context=row["prompt"], ids=tuple(tokenizer(row["prompt"][: 8 + 5 * n])["input_ids"]))
        for n, row in enumerate(pairs()[:5])
    ]
    assert len({len(prompt.ids) for prompt in prompts}) > 2
    beam = Beam(beams=3, max_tokens=12)
    alone = [beam_search(model, tokenizer, [prompt], beam, (1,))[0] for prompt in prompts]
    assert beam_search(model, tokenizer, prompts, beam, (1,)) == alone
    assert len({answer.prediction for answer in alone}) > 1


def test_ends_are_the_end_token_and_a_blank_line_of_one_token() -> None:
    class Blank(Letters):
        eos_token_id = 4

        def __init__(self, ids: list[int]) -> None:
            self.ids = ids

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": self.ids if text == "\n\n" else []}

    model = types.SimpleNamespace(generation_config=types.SimpleNamespace(eos_token_id=[4, 2]))
    assert end_ids(model, Blank([3])) == (4, 2, 3)
    assert end_ids(model, Blank([3, 3])) == (4, 2)
    nothing = Blank([])
    nothing.eos_token_id = None
    model.generation_config.eos_token_id = None
    with pytest.raises(DataError, match="nothing would end an answer"):
        end_ids(model, nothing)


@pytest.mark.shared
def test_the_end_ids_of_gpt2_are_the_references(shared: Path) -> None:
    place = shared / "tokenizers" / "gpt2"
    from transformers import AutoTokenizer

    model = types.SimpleNamespace(generation_config=types.SimpleNamespace(eos_token_id=50256))
    assert end_ids(model, AutoTokenizer.from_pretrained(place)) == (50256, 628)


def test_long_prompts_are_refused_or_cut_at_their_start() -> None:
    prompts = [Prompt(id=0, context="short", ids=(1,)), Prompt(id=1, context="long", ids=tuple(range(9)))]
    beam = Beam(max_tokens=4)
    assert fit_prompts(prompts, context=13, beam=beam, cut=False) == (prompts, 0)
    with pytest.raises(DataError, match=r"1 of 2 prompts leave no room for an answer(?s:.)*--cut-prompts"):
        fit_prompts(prompts, context=12, beam=beam, cut=False)
    kept, cut = fit_prompts(prompts, context=12, beam=beam, cut=True)
    assert cut == 1 and kept[1].ids == tuple(range(1, 9)) and kept[0] is prompts[0]
    with pytest.raises(DataError, match="lower --max-tokens"):
        fit_prompts(prompts, context=4, beam=beam, cut=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beams", 0),
        ("no_repeat", -1),
        ("max_tokens", 0),
        ("min_tokens", 64),
        ("batch_size", 0),
        ("length_penalty", 99.0),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} is out of range"):
        Beam(**{name: value})


def test_batches_hold_every_prompt_once_and_do_not_depend_on_their_order() -> None:
    prompts = [Prompt(id=n, context="", ids=(0,) * (n % 4 + 1)) for n in range(11)]
    batches = list(batches_of(prompts, 3))
    assert sorted(prompt.id for batch in batches for prompt in batch) == list(range(11))
    assert batches == list(batches_of(prompts[::-1], 3)) and max(map(len, batches)) == 3


def answer(id: int, text: str = "x") -> Answer:
    return Answer(id=id, context=f"c{id}", prediction=text, tokens=1, truncated=False)


def test_a_store_continues_and_heals_a_broken_line(tmp_path: Path) -> None:
    store = Store(tmp_path / "out", {"beams": 2})
    store.add([answer(1), answer(0)])
    with (tmp_path / "out" / "predictions.jsonl").open("a") as file:
        file.write('{"id": 2, "context": "c2", "predic')
    again = Store(tmp_path / "out", {"beams": 2})
    assert set(again.answers) == {0, 1} and again.resumed == 2
    again.add([answer(2, "y\u2028z"), answer(0, "not this")])
    assert [found.prediction for found in again.finish()] == ["x", "x", "y\u2028z"]
    assert set(Store(tmp_path / "out", {"beams": 2}).answers) == {0, 1, 2}
    with pytest.raises(ConfigError, match="the output is a file"):
        Store(tmp_path / "out" / "decode.json", {})


def test_layouts_are_those_of_the_public_scorers(tmp_path: Path) -> None:
    answers = [answer(0, "one\nline"), answer(1, "two")]
    references = [["a", "b"], ["c"]]
    assert write_e2e(tmp_path, answers, references) == ("predictions.txt", "references.txt")
    assert (tmp_path / "predictions.txt").read_text() == "one line\ntwo\n"
    assert (tmp_path / "references.txt").read_text() == "a\nb\n\nc\n"
    names = write_numbered(tmp_path, answers, references, 2)
    assert names == ("hypothesis", "reference0", "reference1")
    assert (tmp_path / "reference1").read_text() == "b\nc\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    tokenizer, model = make_tokenizer(), make_model(320)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def call(*words: object) -> int:
    return int(main(["paper", "decode", *map(str, words)]) or 0)


def test_the_command_answers_distinct_inputs_and_continues(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the hat is\nthe car\nthe hat is\nthe dog is red .\n")
    common = ["--model", base, "--prompts", prompts, "--max-tokens", 4, "--beams", 2, "--batch-size", 1]
    assert call(*common, "--output", tmp_path / "whole", "--layout", "e2e") == 0
    said = capsys.readouterr().out
    assert "4 inputs, 3 distinct to answer; ends: 1" in said and "TRUNCATED: " in said
    rows = [json.loads(line) for line in (tmp_path / "whole" / "predictions.jsonl").read_text().splitlines()]
    assert [row["context"] for row in rows] == ["the hat is", "the car", "the dog is red ."]
    assert [row["id"] for row in rows] == [0, 1, 2] and all(row["tokens"] <= 4 for row in rows)
    assert len((tmp_path / "whole" / "predictions.txt").read_text().splitlines()) == 3

    import deltaw.paper.decode as module

    original, calls = module.beam_search, []

    def stops(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, "beam_search", stops)
    assert call(*common, "--output", tmp_path / "parts") == 130
    capsys.readouterr()
    assert call(*common, "--output", tmp_path / "parts", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["resumed"], told["answered"], told["distinct"], len(calls)) == (2, 3, 3, 4)
    name = "predictions.jsonl"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    assert call(*common[:-2], "--output", tmp_path / "parts") == 5
    assert "batch_size: 8" in capsys.readouterr().err
    assert call(*common[:-2], "--output", tmp_path / "parts", "--overwrite", "-q") == 0


def test_a_task_brings_its_references(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def references(name: str, directory: Path, split: str) -> list[tuple[str, list[str]]]:
        assert (name, Path(directory), split) == ("e2e", tmp_path, "valid")
        return [("the hat", ["one", "two"]), ("the car", ["three"]), ("the hat", ["four"])]

    fake = types.ModuleType("deltaw.train.data.tasks")
    fake.references = references  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deltaw.train.data.tasks", fake)
    words = ["--model", base, "--task", "e2e", "--data", tmp_path, "--split", "valid", "--max-tokens", 2, "-q"]
    assert call(*words, "--output", tmp_path / "out", "--layout", "e2e") == 0
    assert (tmp_path / "out" / "references.txt").read_text() == "one\ntwo\nfour\n\nthree\n"
    assert call(*words, "--output", tmp_path / "out", "--layout", "numbered") == 0
    assert (tmp_path / "out" / "reference2").read_text() == "four\nthree\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "there are no inputs"),
        (["--task", "e2e"], 2, "no --data"),
        (["--task", "e2e", "--prompts", "x"], 2, "a task and a file of prompts are both given"),
        (["--prompts", "absent.txt"], 3, "the prompts cannot be read"),
        (["--prompts", "x", "--layout", "numbered"], 2, "--layout numbered cannot be used so"),
        (["--prompts", "x", "--merged"], 2, "--merged cannot be used so"),
        (["--prompts", "x", "--beams", "0"], 2, "beams is out of range"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--model", "base", "--output", tmp_path / "out", *words) == code
    err = capsys.readouterr().err
    assert said in err and "hint: " in err and not (tmp_path / "out").exists()
