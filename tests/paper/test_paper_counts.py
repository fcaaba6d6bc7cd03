"""The paper's counts, against a list written from its text and not from the code."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from printed_facts import LONG_NUMBERS

import deltaw as dw
from deltaw.cli import main
from deltaw.errors import ConfigError, DataError, FaithError
from deltaw.paper import counts
from deltaw.paper.cases import GROUPS, paper_cases
from deltaw.paper.labels import agreement, read_label
from deltaw.paper.ledger import Case, Ledger, settle_counts
from deltaw.paper.models import lora_plan, paper_model, targets_of
from deltaw.paper.tables import errata

# case -> (exact, how its label reads, errata)
LORA = {
    "RoBERTa base qv r=8": (294_912, "rounds", ""),
    "RoBERTa large qv r=8": (786_432, "rounds", ""),
    "DeBERTa XXL qv r=16": (4_718_592, "rounds", "ERR2"),
    "DeBERTa XXL qv r=8": (2_359_296, "differs", "ERR2"),
    "GPT-2 S qv r=4": (147_456, "", ""),
    "GPT-2 M qv r=1": (98_304, "", ""),
    "GPT-2 M qv r=2": (196_608, "", ""),
    "GPT-2 M qv r=4": (393_216, "differs", "ERR1"),
    "GPT-2 M qv r=8": (786_432, "", ""),
    "GPT-2 M qv r=16": (1_572_864, "", ""),
    "GPT-2 M qv r=32": (3_145_728, "", ""),
    "GPT-2 M qv r=64": (6_291_456, "", ""),
    "GPT-2 M qv r=128": (12_582_912, "", ""),
    "GPT-2 M qv r=256": (25_165_824, "", ""),
    "GPT-2 M qv r=512": (50_331_648, "", ""),
    "GPT-2 M qv r=1024": (100_663_296, "", ""),
    "GPT-2 L qv r=4": (737_280, "differs", "ERR1"),
    "GPT-3 175B v r=2": (4_718_592, "rounds", ""),
    "GPT-3 175B qv r=1": (4_718_592, "rounds", ""),
    "GPT-3 175B qv r=2": (9_437_184, "rounds", ""),
    "GPT-3 175B qkvo r=1": (9_437_184, "rounds", ""),
    "GPT-3 175B q r=8": (18_874_368, "cut", "ERR6"),
    "GPT-3 175B k r=8": (18_874_368, "cut", "ERR6"),
    "GPT-3 175B v r=8": (18_874_368, "cut", "ERR6"),
    "GPT-3 175B o r=8": (18_874_368, "cut", "ERR6"),
    "GPT-3 175B qk r=4": (18_874_368, "cut", "ERR6"),
    "GPT-3 175B qv r=4": (18_874_368, "cut", "ERR6"),
    "GPT-3 175B qkvo r=2": (18_874_368, "cut", "ERR5 ERR6"),
    "GPT-3 175B qv r=8": (37_748_736, "rounds", ""),
    "GPT-3 175B qkvo r=4": (37_748_736, "rounds", "ERR5"),
    "GPT-3 175B qv r=64": (301_989_888, "cut", "ERR6"),
    "GPT-3 175B qkvo r=64": (603_979_776, "differs", "ERR6"),
}
CHECKPOINT = {
    "GPT-3 175B qv r=4, fp16": (37_748_736, "differs", ""),
    "RoBERTa base qv r=8, fp32, head of 3 labels": (3_551_244, "rounds", "ERR17"),
    "RoBERTa large qv r=8, fp32, head of 3 labels": (7_356_428, "differs", "ERR17"),
    "DeBERTa XXL qv r=16, fp32, head of 3 labels": (28_336_140, "differs", "ERR2 ERR17"),
    "GPT-2 M qv r=4, fp32": (1_572_864, "rounds", "ERR1"),
    "GPT-2 L qv r=4, fp32": (2_949_120, "differs", "ERR1"),
}
ADAPTER = {
    "GPT-3 175B H r=1": (7_078_080, "rounds", ""),
    "GPT-3 175B H r=4": (21_234_432, "rounds", ""),
    "GPT-3 175B H r=8": (40_109_568, "rounds", ""),
    "GPT-3 175B H r=16": (77_859_840, "rounds", ""),
    "GPT-3 175B H r=64": (304_361_472, "rounds", ""),
    "RoBERTa large P r=64": (3_171_840, "differs", "ERR10"),
    "RoBERTa large P r=16": (811_392, "rounds", ""),
    "RoBERTa large H r=64": (6_343_680, "differs", "ERR10"),
    "RoBERTa large H r=8": (835_968, "rounds", ""),
    "GPT-2 M L r=6": (368_784, "rounds", ""),
    "GPT-2 M L r=224": (11_089_152, "rounds", ""),
    "GPT-2 M H r=112": (11_064_576, "differs", ""),
    "GPT-2 L L r=8": (875_808, "rounds", ""),
    "GPT-2 L L r=248": (23_002_848, "rounds", ""),
}
PREFIX = {
    "GPT-3 175B PreEmbed lp=32, li=8": (491_520, "cut", "ERR6"),
    "GPT-3 175B PreEmbed lp=64, li=8": (884_736, "rounds", ""),
    "GPT-3 175B PreEmbed lp=128, li=8": (1_671_168, "rounds", ""),
    "GPT-3 175B PreEmbed lp=256, li=8": (3_244_032, "rounds", ""),
    "GPT-3 175B PreEmbed lp=512, li=8": (6_389_760, "rounds", ""),
    "GPT-3 175B PreLayer lp=2, li=2": (4_718_592, "differs", "ERR7"),
    "GPT-3 175B PreLayer lp=8, li=0": (9_437_184, "differs", "ERR7"),
    "GPT-3 175B PreLayer lp=8, li=8": (18_874_368, "differs", "ERR7"),
    "GPT-3 175B PreLayer lp=32, li=4": (42_467_328, "differs", "ERR7"),
    "GPT-3 175B PreLayer lp=64, li=0": (75_497_472, "differs", "ERR7"),
}
COMBINED = {
    "GPT-3 175B LoRA+PE qv r=8, lp=8, li=4": (37_896_192, "cut", "ERR6"),
    "GPT-3 175B LoRA+PE qv r=32, lp=8, li=4": (151_142_400, "rounds", ""),
    "GPT-3 175B LoRA+PE qv r=64, lp=8, li=4": (302_137_344, "rounds", ""),
    "GPT-3 175B LoRA+PL qv r=8, lp=8, li=4": (51_904_512, "differs", "ERR7"),
}
TOTAL = {
    "GPT-2 S": (124_439_808, "", ""),
    "GPT-2 M": (354_823_168, "differs", "ERR9"),
    "GPT-2 L": (774_030_080, "rounds", ""),
    "GPT-3 175B": (174_604_259_328, "differs", "ERR8"),
    "RoBERTa base, encoder": (124_055_040, "differs", ""),
    "RoBERTa large, encoder": (354_310_144, "differs", ""),
}
BASELINE = {
    "GPT-2 M FT-Top2, Table 3": (25_192_448, "rounds", ""),
    "GPT-2 M FT-Top2, Tables 13, 14": (25_192_448, "differs", ""),
    "RoBERTa base BitFit": (102_144, "rounds", ""),
    "RoBERTa large BitFit": (271_360, "", ""),
    "GPT-3 175B BitFit": (12_976_128, "differs", "ERR8"),
}
HEAD = {
    "RoBERTa base, 3 labels": (592_899, "", "ERR17"),
    "RoBERTa base, 2 labels": (592_130, "", "ERR17"),
    "RoBERTa base, 1 label": (591_361, "", "ERR17"),
    "RoBERTa large, 3 labels": (1_052_675, "", "ERR17"),
    "RoBERTa large, 2 labels": (1_051_650, "", "ERR17"),
    "RoBERTa large, 1 label": (1_050_625, "", "ERR17"),
    "DeBERTa XXL, 3 labels": (2_365_443, "", "ERR17"),
    "DeBERTa XXL, 2 labels": (2_363_906, "", "ERR17"),
    "DeBERTa XXL, 1 label": (2_362_369, "", "ERR17"),
}
LATENCY = {
    "Adapter L, batch 32, length 512": (Fraction(14820, 14494) - 1, "rounds", ""),
    "Adapter H, batch 32, length 512": (Fraction(14922, 14494) - 1, "rounds", ""),
    "Adapter L, batch 16, length 256": (Fraction(3548, 3380) - 1, "rounds", ""),
    "Adapter H, batch 16, length 256": (Fraction(3663, 3380) - 1, "rounds", ""),
    "Adapter L, batch 1, length 128": (Fraction(239, 198) - 1, "rounds", ""),
    "Adapter H, batch 1, length 128": (Fraction(258, 198) - 1, "rounds", ""),
}
RATIO = {
    "amplification at r=4": (Fraction(691, 32), "cut", ""),
    "amplification at r=64": (Fraction(357, 190), "rounds", ""),
    "throughput, LoRA over full fine-tuning": (Fraction(431, 325) - 1, "differs", ""),
    "time of a token saved": (1 - Fraction(325, 431), "rounds", ""),
}
DEPLOYMENT = {
    "checkpoint, full over LoRA qv r=4": (Fraction(350_000_000_000, 37_748_736), "differs", ""),
    "trained values, full over LoRA qv r=4": (Fraction(174_604_259_328, 18_874_368), "differs", "ERR8"),
    "100 tasks, LoRA qv r=4": (353_774_873_600, "rounds", ""),
    "100 tasks, full fine-tuning": (35_000_000_000_000, "rounds", ""),
}
WRITTEN = {
    "lora": LORA, "checkpoint": CHECKPOINT, "adapter": ADAPTER, "prefix": PREFIX, "combined": COMBINED, "total": TOTAL,
    "baseline": BASELINE, "head": HEAD, "latency": LATENCY, "ratio": RATIO, "deployment": DEPLOYMENT,
}  # fmt: skip
ROWS = [(group, name, *values) for group, rows in WRITTEN.items() for name, values in rows.items()]
CASES = {case.id: case for case in paper_cases()}
# Counted on modules too; the rest has no module in a transformers model, or is no count.
ON_MODULES = ("lora", "checkpoint", "total", "baseline", "head")


@pytest.mark.parametrize(("group", "name", "exact", "reads", "named"), ROWS, ids=[f"{row[0]}/{row[1]}" for row in ROWS])
def test_every_number_is_exact_and_names_its_erratum(
    group: str, name: str, exact: int | Fraction, reads: str, named: str
) -> None:
    case = CASES[f"{group}/{name}"]
    assert case.exact == exact
    assert case.reads == reads
    assert " ".join(case.errata) == named


def test_no_number_is_left_out() -> None:
    assert list(CASES) == [f"{row[0]}/{row[1]}" for row in ROWS]
    assert len(CASES) == len(paper_cases())


def test_the_formulas_say_what_is_computed() -> None:
    for case in CASES.values():
        text = re.sub(r"\d+(\.\d+)?", r"Fraction('\g<0>')", case.formula).replace(" x ", " * ").replace("^", "**")
        assert eval(text, {"Fraction": Fraction}) == case.exact, case.id


def test_what_differs_has_an_erratum_or_a_note() -> None:
    differing = [case for case in CASES.values() if case.reads == "differs"]
    assert differing and all(case.errata or case.note for case in differing)
    assert all(name in errata() for case in CASES.values() for name in case.errata)
    assert all(bool(case.label) == bool(case.source) for case in CASES.values())


@pytest.mark.slow
def test_modules_and_formulas_agree() -> None:
    ledger = settle_counts(paper_cases())
    counted = [line for line in ledger.lines if line.counted is not None]
    assert all(line.counted == line.case.exact for line in counted)
    assert {line.case.id for line in counted} == {name for name in CASES if name.partition("/")[0] in ON_MODULES}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "matrices", "rank"), [("gpt2-medium", "qv", 4), ("gpt3-175b", "qkvo", 2), ("roberta-base", "qv", 8)]
)
def test_an_attached_adapter_has_as_many_values(name: str, matrices: str, rank: int) -> None:
    from deltaw.train.shape import meta_model

    model = meta_model(name)
    before = sum(p.numel() for p in model.parameters())
    dw.attach(model, dw.LoRAConfig(targets=targets_of(paper_model(name).family, matrices), rank=rank))
    trained = sum(p.numel() for _, p in dw.trainable(model))
    assert trained == counts.lora_count(len(matrices) * paper_model(name).layers, paper_model(name).width, rank)
    assert sum(p.numel() for p in model.parameters()) == before + trained


@pytest.mark.slow
def test_fused_projections_are_planned_in_slices() -> None:
    plan = lora_plan("gpt2-medium", "qv", 4)
    assert {tuple(part.name for part in site.parts) for site in plan.sites} == {("q", "v")}
    assert {(site.in_features, part.out_features) for site in plan.sites for part in site.parts} == {(1024, 1024)}


def test_every_long_number_of_the_facts_is_there() -> None:
    found = LONG_NUMBERS
    # A factor of one formula, the size of a file with its container, and a rounded ratio.
    others = {98_304, 3_568_073, round(CASES["deployment/checkpoint, full over LoRA qv r=4"].exact)}
    assert others - {98_304} <= found
    assert len(found) > 50 and found - others <= {case.exact for case in CASES.values()}


LABELS = [
    (4_718_592, "4.7M", "rounds"),
    (18_874_368, "18.8M", "cut"),
    (18_874_368, "18.9M", "rounds"),
    (18_874_368, "18M", "cut"),
    (18_874_368, "19M", "rounds"),
    (18_874_368, "17M", "differs"),
    (250, "0.3K", "rounds"),
    (1_572_864, "1.5 MiB", "rounds"),
    (Fraction(22, 1000), "+2.2%", "rounds"),
    (Fraction(-22, 1000), "+2.2%", "differs"),
    (Fraction(-22, 1000), "-2.2%", "rounds"),
    (9_272, "10,000x", "differs"),
]


@pytest.mark.parametrize(("value", "label", "expected"), LABELS)
def test_labels(value: int | Fraction, label: str, expected: str) -> None:
    assert agreement(value, label) == expected


@pytest.mark.parametrize("label", ["", "M", "1.2Q", "about 3", "1 2"])
def test_what_is_no_label_is_refused(label: str) -> None:
    with pytest.raises(DataError, match="no printed figure"):
        read_label(label)


FORMULAS: list[tuple[Callable[..., int], dict[str, int]]] = [
    (counts.lora_count, {"matrices": 2, "width": 4, "rank": -1}),
    (counts.adapter_count, {"adapters": -2, "width": 4, "bottleneck": 1}),
    (counts.prefix_embedding_count, {"width": 4, "prefix": -1, "infix": 0}),
    (counts.prefix_layer_count, {"layers": 2, "width": 4, "prefix": 1, "infix": -3}),
    (counts.bias_count, {"layers": -1, "width": 4}),
    (counts.top_blocks_count, {"width": 4, "blocks": -2}),
    (counts.model_total, {"vocabulary": -1, "positions": 2, "layers": 1, "width": 4}),
    (counts.head_count, {"width": 4, "labels": -1}),
    (counts.deployment_bytes, {"base": 1, "adapter": 1, "tasks": -1}),
]


@pytest.mark.parametrize(("formula", "sizes"), FORMULAS, ids=lambda value: getattr(value, "__name__", ""))
def test_negative_sizes_are_refused(formula: Callable[..., int], sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="cannot be negative"):
        formula(**sizes)


def test_a_module_that_disagrees_is_an_error() -> None:
    case = Case(group="lora", name="x", formula="1 + 1", exact=2, modules=lambda: 3)
    with pytest.raises(FaithError, match="lora/x"):
        settle_counts([case])


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["paper", "counts", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_command_prints_one_group(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "--group", "adapter")
    assert "192 x (2 x 12288 x 1 + 1 + 12288)" in text and "7,078,080" in text and "ERR10: " in text
    assert "LATENCY" not in text and "ERR7" not in text
    assert text.splitlines()[-1] == (
        "14 numbers; 0 counted on modules as well, equal in every case; 14 printed labels, of which 3 differ"
    )
    assert run(capsys, "--group", "adapter", "--quiet") == ""


def test_the_command_gives_json_and_csv(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    found: dict[str, Any] = json.loads(
        run(capsys, "--group", "prefix", "--group", "deployment", "--csv", str(file), "--json")
    )
    assert [row["id"] for row in found["counts"]] == [
        f"{row[0]}/{row[1]}" for row in ROWS if row[0] in ("prefix", "deployment")
    ]
    assert found["counts"][0]["exact"] == 491_520 and found["counts"][0]["agrees"] is True
    assert set(found["errata"]) == {"ERR6", "ERR7", "ERR8"} and found["csv"] == str(file)
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    assert [row["id"] for row in rows] == [row["id"] for row in found["counts"]]
    assert rows[0]["exact"] == "491520" and rows[0]["errata"] == "ERR6"


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--group", "adaptor"], "'adapter'"), (["--group", "head", "--csv", "{}/no/such.csv"], "--csv")],
)
def test_the_command_refuses(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GROUPS, "head", lambda: iter([Case(group="head", name="x", formula="1", exact=1)]))
    assert main(["paper", "counts", *(word.format(tmp_path) for word in words)]) == 2
    message = capsys.readouterr().err
    assert said in message and message.strip().splitlines()[-1].startswith("hint: ")


def test_an_empty_ledger_says_so() -> None:
    assert Ledger(lines=()).summary.startswith("0 numbers")


def test_help_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from deltaw.cli import main\n"
        "for verb in ('counts', 'memory', 'models', 'tables'):\n    assert main(['paper', verb, '--help']) == 0\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
