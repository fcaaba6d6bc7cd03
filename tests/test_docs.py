"""Documentation that is not executed is deleted: every python block of the pages runs, page by page."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deltaw.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name} block {number}", "exec"), space)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_real_flags(page: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("deltaw ")]
    for line in lines:
        words = line.split("#")[0].split()
        help_text = _help(words)
        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
            assert flag in help_text, f"{page.name}: {line}: {flag}"


def _help(words: list[str]) -> str:
    verbs = [word for word in words[1:3] if re.fullmatch(r"[a-z]+(-[a-z]+)*", word)]
    code = "import sys; from deltaw.cli import main; sys.exit(main())"
    for depth in (len(verbs), 1, 0):
        call = [sys.executable, "-c", code, *verbs[:depth], "--help"]
        done = subprocess.run(call, capture_output=True, text=True, check=False, env=_env())
        if done.returncode == 0 and "Options" in done.stdout:
            return done.stdout
    raise AssertionError(f"no help for {' '.join(words)}")


def _env() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200"}


def test_the_paper_s_facts_come_by_the_commands_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Those that need no files run as they are written."""
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Facts, without weights\n\n```\n(.*?)```", text, re.DOTALL)
    commands = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert len(commands) == 5
    for words in commands:
        assert main(words) == 0, (words, capsys.readouterr().err)
        assert capsys.readouterr().out
