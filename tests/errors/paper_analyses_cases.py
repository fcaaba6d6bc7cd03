"""Inputs that the paper's analyses refuse, one case per kind."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deltaw.cli import _run

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "paper"))
from analysis_cases import made, piece

from deltaw.paper.analyses.base import against_base
from deltaw.paper.analyses.contenders import pick
from deltaw.paper.roles import roles_of
from verb_models import base_dir


def line(*words: object, **files: str) -> Callable[[Path], None]:
    """A command line beside two adapters and files; ``{tmp}`` in a word is the directory."""

    def run(tmp: Path) -> None:
        made(4).save(tmp / "a")
        made(2, seed=1).save(tmp / "b")
        made(2, layers=1, modules="k").save(tmp / "alone")
        for name, text in files.items():
            (tmp / f"{name}.csv").write_text(text)
        _run(["paper", *(str(word).replace("{tmp}", str(tmp)) for word in words)])

    return run


def with_base(*words: object) -> Callable[[Path], None]:
    def run(tmp: Path) -> None:
        base_dir(tmp / "base")
        line(*words)(tmp)

    return run


A, B = "{tmp}/a", "{tmp}/b"

CASES: dict[str, Callable[[Path], Any]] = {
    "paper_subspace_module": line("subspace", A, B, "--module", "h.0.k"),
    "paper_subspace_ranks": line("subspace", A, B, "--ranks", "8,2"),
    "paper_subspace_ranks_unread": line("subspace", A, "--ranks", "1,1"),
    "paper_subspace_common": line("subspace", A, "{tmp}/alone"),
    "paper_subspace_ranks_words": line("subspace", A, B, "--ranks", "one"),
    "paper_subspace_alpha_unread": line("subspace", A, B, "--alpha", 16),
    "paper_subspace_base_unnamed": line("subspace-base", A),
    "paper_subspace_base_other": with_base("subspace-base", A, "--model", "{tmp}/base"),
    "paper_subspace_base_directions": lambda tmp: against_base(
        {"q": piece("q", torch.eye(2, 5), torch.eye(4)[:, :2])}, {"q": torch.eye(4, 5)}, directions=(3,)
    ),
    "paper_latency_method": lambda tmp: pick(["adapter H"]),
    "paper_latency_rounds": with_base("latency", "{tmp}/base", "--rounds", 0),
    "paper_latency_length": with_base("latency", "{tmp}/base", "--length", 2000),
    "paper_roles_unknown": lambda tmp: roles_of(torch.nn.Sequential(torch.nn.Linear(2, 2))),
    "paper_which_budget": line("which", "gpt2", "--budget", 5),
    "paper_sweep_weights": line("rank-sweep", "gpt2", "--weights", "qx"),
    "paper_sweep_results": line("rank-sweep", "gpt2", "--results", "{tmp}/r.csv", r="run,score\nqv-r3,1\n"),
    "paper_deployment_unread": line("deployment", "--rank", 3),
    "paper_deployment_size": line("deployment", "--base-bytes", "large"),
    "paper_quality_absent": line("quality", "{tmp}/none.csv"),
    "paper_quality_column": line("quality", "{tmp}/r.csv", r="method,params,score\nLoRA,1,2\n"),
    "paper_quality_count": line("quality", "{tmp}/r.csv", r="method,parameters,score\nLoRA,many,2\n"),
    "paper_low_data_unread": line("low-data", "--title", "t"),
    "paper_output_is_a_file": line("deployment", "-o", "{tmp}/r.csv", r="x"),
}
"""Kind -> what raises it."""
