"""The verbs that use a model: generate, chat, eval, merge, inspect, on tiny directories."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import deltaw as dw
from deltaw.cli import main
from deltaw.cli._sampling import Sampling, _Pieces, complete, encode
from deltaw.errors import ConfigError, DataError
from deltaw.train.imprint import FORM, LABELS, PromptForm, imprint
from verb_models import adapter_dir, base_dir, bend_merges

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain base, one with a chat template, an adapter for both, and rows."""
    root = tmp_path_factory.mktemp("verbs")
    base_dir(root / "base")
    base_dir(root / "chatty", chat=True)
    adapter_dir(root / "base", root / "adapter", scale=1.0)
    rows = [{"prompt": f"the {word} fox", "completion": f"jumps {word}"} for word in ("quick", "brown", "lazy", "big")]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object) -> Any:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out) if "--json" in words else captured.out

    return call


def test_generate_base_adapter_and_merged(place: Path, run: Run) -> None:
    words = ("generate", "--adapter", place / "adapter", "--model", place / "base", "-p", "the fox", "--max-tokens", 12)
    both = run(*words, "--base", "--json")["outputs"][0]
    assert both["base"] != both["adapter"] and both["prompt"] == "the fox"
    merged = run(*words, "--merged", "--json")
    assert merged["merged"] and merged["outputs"][0]["merged"] == both["adapter"]
    alone = run("generate", "--model", place / "base", "-p", "the fox", "--max-tokens", 12, "--json")
    assert alone["outputs"][0]["base"] == both["base"] and alone["adapter"] is None
    text = run(*words, "--base")
    assert f"[base] the fox{both['base']}" in text and f"[adapter] the fox{both['adapter']}" in text
    assert run(*words, "--quiet") == ""


def test_generate_takes_the_base_that_the_adapter_names(place: Path, run: Run) -> None:
    found = run("generate", "--adapter", place / "adapter", "-p", "a", "--max-tokens", 2, "--json")
    assert found["model"] == str(place / "base")


def test_generate_is_transformers_greedy_choice(place: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    ids = encode(tokenizer, "the fox")
    pieces: list[str] = []
    text = complete(model, tokenizer, ids, Sampling(max_tokens=10), pieces.append)
    prompt = torch.tensor([ids])
    plain = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False)
    assert text == "".join(pieces) == tokenizer.decode(plain[0, len(ids) :], skip_special_tokens=True)


def test_draws_follow_the_seed_and_leave_the_global_state(place: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    ids = encode(tokenizer, "the")
    state = torch.get_rng_state()

    def draw(**values: Any) -> str:
        return complete(model, tokenizer, ids, Sampling(**{"max_tokens": 16, "temperature": 3.0, **values}))

    assert draw(seed=1) == draw(seed=1) != draw(seed=2)
    assert draw(seed=1, top_k=1) == draw(seed=2, top_p=1e-6) == draw(temperature=0.0)
    assert torch.equal(state, torch.get_rng_state())


def test_generation_ends_with_the_context(place: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "base").eval()
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    long = list(range(10, 100))
    assert len(tokenizer.encode(complete(model, tokenizer, long, Sampling(max_tokens=500)))) <= 12
    with pytest.raises(DataError, match="fills the model's context"):
        complete(model, tokenizer, list(range(10, 106)), Sampling())


class Letters:
    """A tokenizer of single characters."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(ids).decode(errors="replace")


def test_a_stop_text_is_cut_off_and_never_shown_in_part() -> None:
    said: list[str] = []
    pieces = _Pieces(Letters(), ("END",), said.append)
    pieces.put(torch.tensor([[65]]))
    for byte in b"an E and EN ENDless":
        pieces.put(torch.tensor([byte]))
    pieces.end()
    assert "".join(said) == "an E and EN " and pieces.stopped
    assert not any(text.endswith(("E", "EN")) for text in said[-1:])


def test_a_character_of_several_tokens_is_shown_whole() -> None:
    said: list[str] = []
    pieces = _Pieces(Letters(), (), said.append)
    pieces.put(torch.tensor([[65]]))
    for byte in "é!".encode():
        pieces.put(torch.tensor([byte]))
    pieces.end()
    assert said == ["é", "!"]


def test_prompts_from_files(place: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.txt").write_text("the fox\n\nthe dog\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "the fox"}\n"the dog"\n')
    for file in ("p.txt", "p.jsonl"):
        found = run("generate", "--model", place / "base", "--prompts", tmp_path / file, "--max-tokens", 1, "--json")
        assert [row["prompt"] for row in found["outputs"]] == ["the fox", "the dog"]
    monkeypatch.setattr("sys.stdin", io.StringIO("the fox\n"))
    found = run("generate", "--model", place / "base", "--prompts", "-", "--max-tokens", 1, "--json")
    assert [row["prompt"] for row in found["outputs"]] == ["the fox"]


def test_generate_in_the_chat_template(place: Path, run: Run) -> None:
    words = ("generate", "-p", "hello", "--max-tokens", 4, "--form", "chat")
    assert "hello" in run(*words, "--model", place / "chatty")
    assert main([str(word) for word in (*words, "--model", place / "base")]) == 3


def trained_on(rows: str, place: Path, target: Path, **form: Any) -> Path:
    """The adapter, saying that it was trained on rows of some format."""
    found = dw.Adapter.open(place / "adapter")
    text = PromptForm(rows=rows, **form).dumps()
    dw.Adapter(tensors=found.tensors, raw=found.raw, metadata={**found.metadata, FORM: text}).save(target)
    return target


FORM_CASES = [
    ("text", {}, "text", "the fox"),
    ("prompt_completion", {}, "prompt", "the fox\n"),
    ("prompt_completion", {"joiner": " => "}, "prompt", "the fox => "),
    ("alpaca", {}, "prompt", "### Instruction:\nthe fox\n\n### Response:\n"),
    ("messages", {}, "chat", "### User:\nthe fox\n\n### Assistant:\n"),
]


@pytest.mark.parametrize(("rows", "form", "used", "written"), FORM_CASES)
def test_prompts_are_written_as_the_adapter_was_trained(
    rows: str, form: dict[str, Any], used: str, written: str, place: Path, run: Run, tmp_path: Path
) -> None:
    adapter = trained_on(rows, place, tmp_path / "adapter", **form)
    words = ("generate", "--max-tokens", 4, "--json")
    trained = run(*words, "--adapter", adapter, "-p", "the fox")
    assert trained["form"] == used
    plain = run(*words, "--adapter", adapter, "-p", written, "--form", "text")
    assert trained["outputs"][0]["adapter"] == plain["outputs"][0]["adapter"]
    merged = tmp_path / "merged"
    run("merge", "--adapter", adapter, "-o", merged)
    after = run(*words, "--model", merged, "-p", "the fox")
    assert after["form"] == used and after["outputs"][0]["base"] == trained["outputs"][0]["adapter"]


def test_eval_writes_rows_as_the_adapter_was_trained(place: Path, run: Run, tmp_path: Path) -> None:
    adapter = trained_on("prompt_completion", place, tmp_path / "adapter", joiner=" => ")
    words = ("eval", "--data", place / "rows.jsonl", "--cache-dir", tmp_path, "--json", "--adapter")
    recorded = run(*words, adapter)["adapter"]["loss"]
    assert recorded == run(*words, place / "adapter", "--joiner", " => ")["adapter"]["loss"]
    assert recorded != run(*words, adapter, "--joiner", " -> ")["adapter"]["loss"]


def test_chat_with_an_adapter_of_single_prompts(
    place: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained_on("prompt_completion", place, tmp_path / "adapter")
    single = run("generate", "--adapter", adapter, "-p", "the fox", "--max-tokens", 6, "--json")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\nthe fox\n"))
    turns = run("chat", "--adapter", adapter, "--max-tokens", 6, "--json")["turns"]
    assert turns[-1]["content"] == single["outputs"][0]["adapter"].strip()
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "single prompts" in run("chat", "--adapter", adapter)


def test_training_notes_the_form_and_the_labels(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_dir(tmp_path / "base"))
    imprint(model, "default", labels=["a"])
    dw.attach(model, dw.LoRAConfig(targets=["q_proj"], rank=2))
    form = PromptForm(rows="messages", template_options={"thinking": False})
    imprint(model, "default", labels=["bad", "good"], form=form)
    dw.save(model, tmp_path / "adapter")
    metadata = dw.Adapter.open(tmp_path / "adapter").metadata
    assert json.loads(metadata[LABELS]) == ["bad", "good"] and PromptForm.loads(metadata[FORM]) == form
    assert PromptForm.loads("") is None and PromptForm.loads('{"other": 1}') is None


CHAT = "hello\n/base\nhello\n/adapter\n/what\n\n/reset\n/system be short\n/help\nagain\n/quit\nnever read\n"


@pytest.mark.parametrize("model", ["base", "chatty"])
def test_chat_through_a_pipe(
    model: str, place: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ("chat", "--model", place / model, "--adapter", place / "adapter", "--max-tokens", 6, "--allow-other-base")
    monkeypatch.setattr("sys.stdin", io.StringIO(CHAT))
    text = run(*words)
    assert ("no chat template" in text) == (model == "base")
    assert text.count("[adapter]") == 2 and text.count("[base]") == 1
    assert "closest: " in text and "/reset" in text and "forgotten" in text
    monkeypatch.setattr("sys.stdin", io.StringIO(CHAT))
    turns = run(*words, "--json")["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] and turns[0]["content"] == "again"
    assert turns[1]["side"] == "adapter"


def test_chat_without_an_adapter_says_so(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/adapter\n/system\n"))
    text = run("chat", "--model", place / "base")
    assert "start with --adapter DIR" in text and "no system turn" in text


def test_chat_survives_a_full_context(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n" + "word " * 200 + "\n/reset\nhi\n"))
    assert "/reset begins anew" in run("chat", "--model", place / "base", "--max-tokens", 3)


def test_eval_shows_base_and_adapter(place: Path, run: Run, tmp_path: Path) -> None:
    words = ("eval", "--adapter", place / "adapter", "--data", place / "rows.jsonl", "--cache-dir", tmp_path)
    found = run(*words, "--json", "--rows", tmp_path / "scores.jsonl")
    assert found["examples"] == 4 and found["base"]["loss"] != found["adapter"]["loss"]
    assert set(found["base"]) == {"loss", "perplexity", "token_accuracy", "exact_answers"}
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3]
    for side in ("base", "adapter"):
        total = sum(line[side]["loss"] * line[side]["weight"] for line in lines)
        assert found[side]["loss"] == pytest.approx(total / sum(line[side]["weight"] for line in lines))
    small = run(*words, "--json", "--batch-tokens", 1)
    assert small["adapter"]["loss"] == pytest.approx(found["adapter"]["loss"], rel=1e-5)
    text = run(*words, "--limit", 2)
    assert "change" in text and "2 examples" in text


def test_eval_of_the_loss_by_hand(place: Path, run: Run, tmp_path: Path) -> None:
    words = ("eval", "--model", place / "base", "--data", place / "rows.jsonl", "--cache-dir", tmp_path, "--json")
    found = run(*words, "--loss-on", "all", "--limit", 1)
    from deltaw.train.data import build, detect, load_rows

    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    rows = load_rows(place / "rows.jsonl", limit=1)
    example = build(rows, detect(rows), tokenizer, max_length=96, loss_on="all", cache_dir=tmp_path)[0]
    model = AutoModelForCausalLM.from_pretrained(place / "base").eval()
    with torch.no_grad():
        logits = model(torch.tensor([example.ids])).logits[0, :-1].log_softmax(-1)
    expected = -logits.gather(1, torch.tensor(example.ids[1:])[:, None]).mean()
    assert found["base"]["loss"] == pytest.approx(float(expected), rel=1e-5)


def labelled(path: Path, labels: list[Any]) -> Path:
    rows = [{"text": f"the {word} fox {i}", "label": label} for i, (word, label) in enumerate(zip("abcdefgh", labels))]  # noqa: B905
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_eval_of_a_classifier(run: Run, tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base", "bert", num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"})
    adapter = adapter_dir(base, tmp_path / "adapter", targets=["query"], train_also=["classifier"], scale=1.0)
    data = labelled(tmp_path / "rows.jsonl", ["good", "bad", "good", "bad"])
    words = ("eval", "--model", base, "--adapter", adapter, "--cache-dir", tmp_path, "--json")
    found = run(*words, "--data", data, "--rows", tmp_path / "scores.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["adapter"]["label"] for line in lines] == ["good", "bad", "good", "bad"]
    right = sum(line["adapter"]["label"] == line["adapter"]["predicted"] for line in lines)
    assert found["adapter"]["accuracy"] == right / 4 and "matthews" in found["base"]


def test_eval_reads_positions_where_the_model_has_no_class_names(run: Run, tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base", "bert", num_labels=3)
    words = ["eval", "--model", base, "--cache-dir", tmp_path]
    numbers = labelled(tmp_path / "numbers.jsonl", [2, 0, 2, 0])
    assert run(*words, "--data", numbers, "--task", "classification", "--json")["examples"] == 4
    names = labelled(tmp_path / "names.jsonl", ["good", "bad", "good", "bad"])
    assert main([str(word) for word in (*words, "--data", names)]) == 3


def test_eval_of_a_regression(run: Run, tmp_path: Path) -> None:
    base = base_dir(tmp_path / "base", "bert", num_labels=1)
    data = labelled(tmp_path / "rows.jsonl", [0.5, 1.25, 3.75, 2.5])
    found = run("eval", "--model", base, "--data", data, "--task", "regression", "--cache-dir", tmp_path, "--json")
    assert set(found["base"]) == {"loss", "pearson", "spearman"}


def test_a_head_that_was_never_trained_is_refused(tmp_path: Path) -> None:
    base_dir(tmp_path / "base")
    data = labelled(tmp_path / "rows.jsonl", ["good", "bad", "good", "bad"])
    assert main(["eval", "--model", str(tmp_path / "base"), "--data", str(data)]) in {3, 4, 5}


def test_merge_writes_and_verifies(place: Path, run: Run, tmp_path: Path) -> None:
    words = ("merge", "--adapter", place / "adapter", "--output", tmp_path / "merged")
    found = run(*words, "--json")
    assert found["faithful"] and "model.safetensors" in found["files"] and found["fidelity"]["sites"]
    (tmp_path / "probes.txt").write_text("the quick brown fox\n")
    text = run("merge", "--adapter", place / "adapter", "-o", tmp_path / "again", "--probes", tmp_path / "probes.txt")
    assert "merge: faithful" in text and f"deltaw generate --model {tmp_path / 'again'}" in text


def test_an_unfaithful_merge_exits_6(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", "--adapter", str(place / "adapter"), "--output", str(tmp_path / "merged")]
    bend_merges(monkeypatch, 1.001)
    assert main(words) == 6
    assert "FaithError" in capsys.readouterr().err and not (tmp_path / "merged").exists()
    assert main([*words, "--tolerance", "1.0"]) == 0


def test_inspect_needs_no_model(place: Path, run: Run, tmp_path: Path) -> None:
    found = run("inspect", place / "adapter", "--json")
    adapter = dw.Adapter.open(place / "adapter")
    assert found["facts"]["content hash"] == adapter.hash and found["facts"]["parameters"] == adapter.parameters
    assert found["warnings"] == [] and found["config"]["rank"] == 3
    norms = adapter.norms()
    for module in found["modules"]:
        delta = adapter.delta(module["path"])
        assert module["frobenius"] == pytest.approx(float(delta.norm()), rel=1e-5)
        assert module["spectral"] == pytest.approx(norms[module["path"]].spectral)
        assert len(module["spectrum"]) == 3 and 1 <= module["effective_rank"] <= 3 and 1 <= module["energy_90"] <= 3
    assert len(found["modules"]) == 14
    text = run("inspect", place / "adapter")
    assert "model.layers.1.mlp.up_proj" in text and "deltaw merge" in text


def test_inspect_groups_many_modules_unless_asked(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltaw.ship.inspection.MANY", 10)
    text = run("inspect", place / "adapter")
    assert "model.layers.1" not in text and "--modules lists each" in text
    assert "model.layers.1.mlp.up_proj" in run("inspect", place / "adapter", "--modules")


def edited(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    found = dw.Adapter.open(source)
    tensors, raw = dict(found.tensors), dict(found.raw)
    change(tensors, raw)
    dw.Adapter(tensors=tensors, raw=raw).save(target)
    return target


def zero_all(tensors: dict[str, Any], raw: dict[str, Any]) -> None:
    for key in tensors:
        if "lora_B" in key:
            tensors[key] = torch.zeros_like(tensors[key])


def zero_one(tensors: dict[str, Any], raw: dict[str, Any]) -> None:
    key = next(key for key in tensors if "lora_B" in key)
    tensors[key] = torch.zeros_like(tensors[key])


def spoil(tensors: dict[str, Any], raw: dict[str, Any]) -> None:
    key = next(key for key in tensors if "lora_A" in key)
    tensors[key] = torch.full_like(tensors[key], float("nan"))
    raw["base_model_name_or_path"] = None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (zero_all, "every update is zero"),
        (zero_one, "the update of 1 of 14 modules is zero"),
        (spoil, "NaN or infinity"),
        (spoil, "the base is not named"),
        (spoil, "no base fingerprint"),
    ],
)
def test_inspect_warns(change: Any, said: str, place: Path, run: Run, tmp_path: Path) -> None:
    directory = edited(place / "adapter", tmp_path / "edited", change)
    assert any(said in warning for warning in run("inspect", directory, "--json")["warnings"])
    assert "warning: " in run("inspect", directory)


@pytest.mark.shared
def test_inspect_real_adapters(run: Run, shared: Path) -> None:
    found = run("inspect", shared / "adapters" / "distilbert-imdb", "--json")
    assert found["facts"]["modules"] == 12 and "classifier.weight" in found["trained_in_full"]


BAD_SAMPLING = [
    {"max_tokens": 0},
    {"temperature": -0.1},
    {"temperature": 0.5, "top_p": 0.0},
    {"temperature": 0.5, "top_k": -1},
    {"top_p": 0.9},
    {"top_k": 5},
]


@pytest.mark.parametrize("values", BAD_SAMPLING, ids=str)
def test_sampling_that_means_nothing_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**values)


def test_a_classifier_without_a_trained_head_says_what_it_is(run: Run, tmp_path: Path) -> None:
    """The base has the head, so the adapter carries none, and PEFT's word for the task would promise one."""
    base = base_dir(tmp_path / "base", "bert", num_labels=2, id2label={0: "bad", 1: "good"})
    data = labelled(tmp_path / "rows.jsonl", ["good", "bad"] * 4)
    run("train", "--model", base, "--data", data, "--output", tmp_path / "out", "--steps", 1, "--batch-size", 4,
        "--no-plot", "--threads", 1, "--rank", 2, "--cache-dir", tmp_path)  # fmt: skip
    adapter = dw.Adapter.open(tmp_path / "out")
    assert adapter.raw["task_type"] is None and adapter.metadata["task"] == "classification"
    # a copy of the base whose configuration no longer says what it was made for
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    words = ("--adapter", tmp_path / "out", "--json")
    assert run("merge", *words, "--output", tmp_path / "merged")["faithful"]
    assert run("inspect", tmp_path / "out", "--json")["facts"]["task"] == "classification"
    assert "accuracy" in run("eval", *words, "--data", data, "--cache-dir", tmp_path)["adapter"]


def test_perplexity_has_four_figures_and_a_change(place: Path, run: Run, tmp_path: Path) -> None:
    words = ("eval", "--adapter", place / "adapter", "--data", place / "rows.jsonl", "--cache-dir", tmp_path)
    found, text = run(*words, "--json"), run(*words)
    line = next(line.split() for line in text.splitlines() if line.startswith("perplexity"))
    values = [found[side]["perplexity"] for side in ("base", "adapter")]
    for shown, value in zip(line[1:], (*values, values[1] - values[0]), strict=True):
        assert float(shown.replace(",", "")) == float(f"{value:.4g}")
        assert len(shown.strip("+-").replace(",", "").replace(".", "").partition("e")[0].lstrip("0")) >= 4


def test_the_data_verbs_write_and_read_one_flag_for_the_output(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("convert", "merge", "resize", "combine", "extract", "train"):
        text = run(verb, "--help")
        assert "--output" in text and "--out " not in text
