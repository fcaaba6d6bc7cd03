"""The frame of the command line: help, errors in one form, exit codes, what is imported."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from deltaw.cli import _group as group
from deltaw.cli import main
from deltaw.cli._common import Output, plain
from deltaw.errors import CheckpointError, DeltawError, FaithError
from deltaw.version import __version__

PARTS = ("  where: ", "  got: ", "  expected: ", "hint: ")


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """A verb ``fail`` that raises what the test puts into the list."""
    raised: list[BaseException] = []

    @click.command("fail")
    def fail() -> None:
        raise raised[0]

    monkeypatch.setattr(group.LazyGroup, "get_command", lambda self, ctx, name: fail if name == "fail" else None)
    yield raised


def four_parts(text: str) -> bool:
    lines = text.strip().splitlines()
    return len(lines) >= 5 and all(any(line.startswith(part) for line in lines[1:]) for part in PARTS)


def test_help_is_grouped_and_ends_with_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert main([]) == 0
    assert capsys.readouterr().out == text
    places = [text.index(word) for word in ("Train:", "Use:", "Adapters:", "Exit codes:")]
    assert places == sorted(places)
    listed = text[places[0] : places[3]]
    assert all(f"\n  {name} " in listed for name in group.VERBS)
    assert all(f"\n  {code} " in text[places[3] :] for code, _ in group.EXIT_CODES)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"deltaw {__version__}\n"


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["trian"], "train"),
        (["--vers"], "--version"),
        (["plan"], "MODEL"),
        (["plan", "gpt2", "--rnk", "4"], "--rank"),
        (["plan", "gpt2", "--rank", "four"], "--rank"),
        (["plan", "gpt2", "--dtype", "float8"], "bfloat16"),
        (["plan", "gpt2", "extra"], "extra"),
        (["plan", "gpt2", "--rank"], "--rank"),
    ],
)
def test_usage_errors_have_four_parts(words: list[str], nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and four_parts(captured.err) and nearest in captured.err
    assert captured.err.startswith("ConfigError: ")


@pytest.mark.parametrize("kind", [CheckpointError, FaithError, DeltawError])
def test_errors_of_ours_keep_their_exit_code(
    kind: type[DeltawError], verb: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    verb.append(kind("it failed", where="here", got="a", expected="b", hint="do this"))
    assert main(["fail"]) == kind.exit_code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == f"{kind.__name__}: {verb[0]}\n"


def test_an_interrupt_exits_130(verb: list[BaseException], capsys: pytest.CaptureFixture[str]) -> None:
    verb.append(KeyboardInterrupt())
    assert main(["fail"]) == 130
    assert capsys.readouterr().err.strip().endswith("interrupted")


def test_a_fault_of_ours_is_one_line_unless_debugged(
    verb: list[BaseException], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verb.append(RuntimeError("first\nsecond"))
    assert main(["fail"]) == 1
    short = capsys.readouterr().err
    assert "RuntimeError: first" in short and "second" not in short and "Traceback" not in short
    assert main(["--debug", "fail"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("DELTAW_DEBUG", "1")
    assert main(["fail"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_package_that_is_missing_names_its_extra(
    verb: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    verb.append(ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow"))
    assert main(["fail"]) == 1
    text = capsys.readouterr().err
    assert four_parts(text) and "deltaw[train]" in text
    verb[0] = ModuleNotFoundError("No module named 'deltaw.gone'", name="deltaw.gone")
    assert main(["fail"]) == 1
    assert "failed unexpectedly" in capsys.readouterr().err


def test_a_reader_that_went_away_is_no_traceback() -> None:
    code = "import sys; from deltaw.cli import main; sys.exit(main(['--help']))"
    ran = subprocess.run(f"{sys.executable} -c {code!r} | true; exit ${{PIPESTATUS[0]}}", shell=True, text=True,
                         executable="/bin/bash", capture_output=True, check=False)  # fmt: skip
    assert ran.returncode in {0, 141} and "Traceback" not in ran.stderr


@pytest.mark.parametrize("name", group.VERBS)
def test_each_line_of_the_table_is_the_first_line_of_the_verb(name: str) -> None:
    pytest.importorskip(group.VERBS[name].module)
    found = group.command.get_command(click.Context(group.command), name)
    assert found is not None and (found.help or "").strip().splitlines()[0] == group.VERBS[name].line


@pytest.mark.slow
def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys; from deltaw.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    spent = []
    for _ in range(3):
        # Processor time, because the wall clock of a busy machine says nothing about us.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert not {"torch", "transformers", "numpy", "rich"} & set(ran.stderr.split())
    assert min(spent) < 0.3


def test_output_for_people_for_programs_and_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    for output, expected in (
        (Output(), "words\n"),
        (Output(quiet=True), ""),
        (Output(as_json=True), '{\n  "loss": "nan"\n}\n'),
    ):
        output.say("words")
        output.finish({"loss": math.nan})
        assert capsys.readouterr().out == expected


def test_plain_reduces_reports_paths_and_numbers() -> None:
    @dataclass(frozen=True)
    class Report:
        path: Path
        values: tuple[float, ...]

    found = plain({"report": Report(Path("a") / "b", (1.5, math.inf)), "names": {"x"}, 3: None})
    assert found == {"report": {"path": str(Path("a/b")), "values": [1.5, "inf"]}, "names": ["x"], "3": None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_module_ends_with_the_verbs_exit_code() -> None:
    for words, code in ((["--version"], 0), (["trian"], 2)):
        ran = subprocess.run([sys.executable, "-m", "deltaw", *words], capture_output=True, text=True, check=False)
        assert ran.returncode == code, ran.stderr
