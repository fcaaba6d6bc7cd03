"""The page: every table of the paper, what stands beside it, and claims that can fail."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path

import pytest

from deltaw.cli import main
from deltaw.errors import ConfigError
from deltaw.paper.report import build, write_report
from deltaw.paper.report.beside import BESIDE
from deltaw.paper.report.claims import CLAIMS, claims
from deltaw.paper.report.figures import QUALITY, figures
from deltaw.paper.reproduce import ROWS, Record, read_records, write_record
from deltaw.paper.reproduce.e2e import PREFIXES, prefix_row
from deltaw.paper.reproduce.glue import FEW
from deltaw.paper.tables import printed_table, printed_tables
from deltaw.paper.tables.show import heading


def made(row: str, seed: int = 0, **values: float) -> Record:
    return Record(
        row=row, title=ROWS[row].title, table=ROWS[row].table, on="test", seed=seed, quick=False, values=values,
        settings={}, command="c", steps=("s",), date="2026-01-01", hardware="h", versions={}, seconds=1.0,
    )  # fmt: skip


def test_the_page_has_every_table_figure_and_erratum(tmp_path: Path) -> None:
    start = time.perf_counter()
    page = build()
    files = write_report(page, tmp_path)
    assert time.perf_counter() - start < 60  # the promise of the command, not a benchmark
    text = (tmp_path / "report.md").read_text()
    for printed in printed_tables():
        assert f"### {heading(printed)}: {printed.title}" in text
        assert all(cell.text.replace("|", "\\|") in text for cell in printed.cells)
    assert all(f"| ERR{number} |" in text for number in range(1, 20))
    linked = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert linked and all((tmp_path / name).is_file() for name in linked)
    html = (tmp_path / "report.html").read_text()
    assert html.startswith("<!doctype html>") and html.count("<table>") == html.count("</table>") > 20
    assert {file.name for file in files} >= {"report.md", "report.html", *linked}


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    place = Path(__file__).resolve().parents[2] / "docs" / "paper"
    assert (place / "report.md").read_text() == build().markdown(), "run: deltaw paper report -o docs/paper"


def test_every_record_is_in_the_page_with_its_command() -> None:
    text = build().markdown()
    for record in read_records():
        assert f"| {record.command} | {record.seed} | {record.date} |" in text
    assert "nan" not in text.lower().replace("finance", "")


def test_what_was_not_run_is_said(tmp_path: Path) -> None:
    write_record(made("e2e/full", BLEU=0.5, parameters=3e6), tmp_path)
    text = build(tmp_path).markdown()
    assert "GPT-3's weights are not public" in text
    assert text.count("Ours: not run") >= 5 and "not run" in text.partition("## Exact")[0]


def test_seeds_are_averaged_with_their_spread(tmp_path: Path) -> None:
    for seed, score in enumerate((0.40, 0.50, 0.60)):
        values = {"BLEU": score, "NIST": 5.0, "METEOR": 0.3, "ROUGE-L": 0.5, "CIDEr": 1.0}
        write_record(made("e2e/lora-qv-r4", seed, parameters=15360.0, **values), tmp_path)
    text = build(tmp_path).markdown()
    assert "| M LoRA | 0.35M / 15,360 | 70.4+-.1 | 50.0 +-10.0 |" in text


def test_rows_beside_the_paper_exist_on_both_sides() -> None:
    for table, compared in BESIDE.items():
        printed = printed_table(table)
        assert set(compared.rows) <= {row.id for row in printed.rows}
        assert {column.paper for column in compared.columns if column.paper} <= {
            column.id for column in printed.columns
        }
        assert {name for names in compared.rows.values() for name in names} <= set(ROWS)
        # a row that only some tasks have, such as more steps, is named for all
        assert all(set(names) & set(ROWS) for names in compared.alone.values())
        assert not set(compared.alone) & {row.id for row in printed.rows}


def test_rows_of_ours_alone_leave_the_papers_columns_empty(tmp_path: Path) -> None:
    write_record(made("e2e/full-matched-rate", parameters=3e6, BLEU=0.25), tmp_path)
    text = build(tmp_path).markdown()
    assert "| FT at LoRA's rate | 3,000,000 | - | 25.0 | - | not run |" in text


def e2e(**scores: float) -> dict[str, list[Record]]:
    return {
        f"e2e/{name.replace('_', '-')}": [
            made(
                f"e2e/{name.replace('_', '-')}", BLEU=score, parameters=15e3 if "lora" in name else 3e6,
                **{"validation loss": 3 - score},
            )
        ]
        for name, score in scores.items()
    }  # fmt: skip


@pytest.mark.parametrize(("lora", "verdict"), [(0.50, "holds"), (0.30, "does not hold")])
def test_a_claim_can_fail(lora: float, verdict: str) -> None:
    found = claims(e2e(lora_qv_r4=lora, full=0.45))
    assert found[0][1] == verdict and f"{100 * lora:.1f}" in found[0][2]
    assert len(found) == len(CLAIMS) and found[1][1] == "not run"


def claim(rows: dict[str, list[Record]], begins: str) -> tuple[str, str]:
    (found,) = ((verdict, figures) for text, verdict, figures in claims(rows) if text.startswith(begins))
    return found


@pytest.mark.parametrize(("longest", "verdict"), [((0.30, 0.40), "holds"), ((0.50, 0.40), "holds in part"),
                                                  ((0.50, 0.60), "does not hold")])  # fmt: skip
def test_prefixes_saturate_where_the_longest_gains_nothing(longest: tuple[float, float], verdict: str) -> None:
    scores = dict.fromkeys([prefix_row(method, *lengths) for method, grid in PREFIXES.items() for lengths in grid], 0.4)
    for (method, grid), score in zip(PREFIXES.items(), longest, strict=True):
        scores[prefix_row(method, *grid[-1])] = score
    rows = e2e(**{row.removeprefix("e2e/"): score for row, score in scores.items()})
    found, figures = claim(rows, "Prefixes saturate")
    assert found == verdict and f"128+8 {100 * longest[0]:.1f}" in figures and f"64+0 {100 * longest[1]:.1f}" in figures


@pytest.mark.parametrize(("embed", "layer", "verdict"), [(0.6, 0.4, "holds"), (0.6, 0.6, "holds in part"),
                                                         (0.4, 0.6, "does not hold")])  # fmt: skip
def test_lora_with_prefixes(embed: float, layer: float, verdict: str) -> None:
    rows = e2e(lora_qv_r8=0.5, lora_prefix_embedding=embed, lora_prefix_layer=layer)
    assert claim(rows, "LoRA gains")[0] == verdict


@pytest.mark.parametrize(("bleu", "loss", "verdict"), [(0.5, 2.5, "holds"), (0.5, 2.1, "holds in part"),
                                                       (0.7, 2.1, "does not hold")])  # fmt: skip
def test_several_matrices_are_judged_against_each_alone(bleu: float, loss: float, verdict: str) -> None:
    alone = {"lora_q_r6": 0.4, "lora_k_r10": 0.4, "lora_v_r10": 0.4, "lora_o_r6": bleu}
    rows = e2e(**alone, lora_qk_r4=0.9, lora_qv_r4=0.5, lora_qkvo_r2=0.6)
    rows["e2e/lora-o-r6"][0].values["validation loss"] = loss  # type: ignore[index]
    assert claim(rows, "At one budget") == (
        verdict,
        "BLEU (loss) q r=6 40.0 (2.600), k r=10 40.0 (2.600), v r=10 40.0 (2.600), "
        f"o r=6 {100 * bleu:.1f} ({loss:.3f}), "
        "qk r=4 90.0 (2.100), qv r=4 50.0 (2.500), qkvo r=2 60.0 (2.400), with 15,000 values",
    )


def test_a_sweep_fills_the_columns_it_has(tmp_path: Path) -> None:
    for rank, count in ((1, 3840.0), (64, 245760.0)):
        write_record(made(f"e2e/lora-qv-r{rank}", parameters=count, BLEU=rank / 100), tmp_path)
    text = build(tmp_path).markdown()
    cells = "3,840 to 245,760 | 73.4 | 1.0 | 73.3 | not run | 73.7 | not run | 73.8 | not run | 73.5 | 64.0"
    assert f"| WikiSQL q,v | {cells} |" in text


def test_what_needs_no_run_stands_beside_the_claims(tmp_path: Path) -> None:
    write_record(made("subspace/ranks"), tmp_path)
    text = build(tmp_path).markdown()
    assert "| 100 tasks, LoRA | 354GB | 350000000000 + 100 x 37748736 = 353,774,873,600 bytes |" in text
    assert "| memory, LoRA | 350GB | 349.5 GB of states |" in text
    assert "| DART | - | 62,659 | - | 6,980 | - | 12,552 | 82K | 82,191 |" in text
    assert "![Figure 2 as printed](figure2-as-printed.svg)" in text and "Ours is drawn under What holds" not in text
    assert "Ours is drawn under Figure 3" in text and "Ours is drawn under Figure 4" not in text


@pytest.mark.parametrize(("full", "layer", "verdict"), [(0.60, 0.50, "holds"), (0.655, 0.50, "holds in part"),
                                                        (0.80, 0.90, "does not hold")])  # fmt: skip
def test_few_examples_are_judged_by_all_methods(full: float, layer: float, verdict: str) -> None:
    scores = {"lora": 0.65, "full": full, "prefix-layer": layer, "prefix-embedding": layer}
    rows: dict[str, list[Record]] = {}
    for task in FEW.values():
        for key, score in scores.items():
            rows |= runs(f"low-data/{task.name}-{key}", "SST-2", score - 0.1, score + 0.1)
    found, text = claim(rows, "LoRA is ahead of full")
    assert found == verdict and text.count(f"FT {100 * full:.1f}") == 2 and "; 1,000: LoRA" in text


@pytest.mark.parametrize(("longer", "verdict"), [(0.60, "holds in part"), (0.50, "does not hold")])
def test_longer_training_is_judged_beside(longer: float, verdict: str) -> None:
    found = claims(e2e(lora_qv_r4=0.30, full=0.45, lora_qv_r4_long=longer, full_long=0.60))
    assert found[0][1] == verdict and f"after 4 times the steps {100 * longer:.1f} against 60.0" in found[0][2]


def test_the_figure_has_rows_of_equal_training() -> None:
    rows = e2e(lora_qv_r4=0.30, full=0.45, adapter_h=0.50)
    assert figures(rows)[QUALITY] and figures({**rows, **e2e(full_long=0.90)}) == figures(rows)


def runs(row: str, title: str, *scores: float) -> dict[str, list[Record]]:
    return {row: [made(row, seed, before=0.3, **{title: score}) for seed, score in enumerate(scores)]}


def glue(rows: dict[str, list[Record]]) -> tuple[str, str]:
    return claim(rows, "LoRA is on par with full fine-tuning on GLUE")


def test_glue_is_judged_by_the_median_of_the_seeds() -> None:
    rows = runs("glue/sst2-full", "SST-2", 0.80, 0.81, 0.99) | runs("glue/sst2-lora", "SST-2", 0.81, 0.82, 0.10)
    subset = "MNLI, a subset of 9k"
    rows |= runs("glue/mnli_9k-full", subset, 0.50) | runs("glue/mnli_9k-lora", subset, 0.60)
    texts = "LoRA / FT: SST-2 81.0 / 81.0, MNLI, a subset of 9k 60.0 / 50.0"
    assert glue(rows) == ("holds", f"within a point or better in 2 of 2; {texts}")
    rows |= runs("glue/mrpc-full", "MRPC", 0.80) | runs("glue/mrpc-lora", "MRPC", 0.78)
    assert glue(rows)[0] == "holds in part" and "in 2 of 3;" in glue(rows)[1]
    rows |= runs("glue/cola-full", "CoLA", 0.30) | runs("glue/cola-lora", "CoLA", 0.20)
    assert "in 2 of 3;" in glue(rows)[1] and "(not learned)" in glue(rows)[1]
    rows |= runs("glue/mrpc-lora-pooler", "MRPC", 0.81)
    rows |= runs("glue/stsb-full-long", "STS-B", 0.80) | runs("glue/stsb-lora-long", "STS-B", 0.70)
    found, text = glue(rows)
    assert found == "holds in part" and "in 3 of 5;" in text
    assert "; with the pooler trained too MRPC 81.0 / 80.0; after 4 times the steps STS-B 70.0 / 80.0" in text
    assert glue({})[0] == "not run"


def test_a_column_says_what_it_leaves_out_of_the_paper_s(tmp_path: Path) -> None:
    write_record(made("glue/mnli_9k-full", parameters=1.0, **{"MNLI, a subset of 9k": 0.5}), tmp_path)
    text = build(tmp_path).markdown()
    assert "| MNLI ours (a subset of 9k) |" in text and "| RTE ours |" in text


def test_latency_is_judged_by_the_merged_model_and_the_others() -> None:
    def timed(row: str, merged: float, adapter: float) -> list[Record]:
        ratios = {"base": 1.0, "LoRA merged": merged, "Adapter H": adapter, "PreLayer": 1.2}
        sheet = {"title": "t", "notes": [], "rows": [{"method": n, "ratio": r} for n, r in ratios.items()]}
        return [dataclasses.replace(made(row), sheet=sheet)]

    def verdict(small: tuple[float, float], large: tuple[float, float]) -> str:
        rows = {"latency/grid": timed("latency/grid", *small)}
        return claim({**rows, "latency/gpt2-medium": timed("latency/gpt2-medium", *large)}, "Merged, LoRA")[0]

    good, slow_merge, fast_adapter = (1.01, 1.15), (1.10, 1.15), (1.01, 1.001)
    assert verdict(good, good) == "holds"
    assert verdict(good, fast_adapter) == "holds in part"
    assert verdict(slow_merge, fast_adapter) == "does not hold"


def test_no_results_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="no results"):
        build(tmp_path)
    assert main(["paper", "report", "--results", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert "hint: " in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_command_writes_and_says_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "report", "-o", str(tmp_path / "page")]) == 0
    assert "report.md" in capsys.readouterr().out and (tmp_path / "page" / "report.html").is_file()
    (tmp_path / "file").write_text("x")
    assert main(["paper", "report", "-o", str(tmp_path / "file")]) == 2
