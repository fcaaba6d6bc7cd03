"""The command line: one verb per file, loaded only when it is used.

``main`` is the whole frame: it runs the verb and turns whatever ends it into an exit code and, on stderr, one
message in the form of ``deltaw.errors``. Nothing here imports torch, so that ``deltaw --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from deltaw.errors import DeltawError

__all__ = ["main"]

INTERRUPTED = 130
CLOSED_PIPE = 141

EXTRAS = {
    **dict.fromkeys(("click", "rich", "tomli"), "cli"),
    **dict.fromkeys(("nltk", "rouge_score", "sacrebleu", "scipy", "sklearn"), "paper"),
    "tensorboard": "tensorboard",
}
"""The extra a module comes with; every other one comes with the extra train."""

DISTRIBUTIONS = {"nltk": "nltk (of rouge-score)", "rouge_score": "rouge-score", "sklearn": "scikit-learn"}
"""What a module is called where it is installed from, if that is not its own name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the words after the program's name; those of the process by default.

    Returns:
        The exit code: 0, the ``exit_code`` of the error that ended the verb, 130 after an interrupt, 141 where the
        reader of our output went away, 1 for a fault of our own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("DELTAW_DEBUG") == "1" or "--debug" in words
    try:
        return _run(words)
    except DeltawError as error:
        return _fail(error, debug)
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more on exit and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except Exception as error:
        missing = _not_installed(error)
        if missing is not None:
            return _fail(missing, debug)
        _traceback(debug)
        _complain(f"deltaw failed unexpectedly: {type(error).__name__}: {_first_line(error)}")
        _complain("hint: run it again with --debug for the traceback; this is a fault of deltaw's, please report it.")
        return 1


def _run(words: list[str]) -> int:
    import click

    from deltaw.cli._group import command
    from deltaw.cli._usage import explain

    try:
        code = command.main(args=words, prog_name="deltaw", standalone_mode=False)
    except click.UsageError as error:
        raise explain(error, words) from error
    except click.Abort:
        raise KeyboardInterrupt from None
    except SystemExit as error:
        # Without its standalone mode click exits by itself in one case only: the reader of our output went away.
        raise BrokenPipeError from error
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _fail(error: DeltawError, debug: bool) -> int:
    _traceback(debug)
    _complain(f"{type(error).__name__}: {error}")
    return error.exit_code


def _traceback(debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()


def _not_installed(error: Exception) -> DeltawError | None:
    if not isinstance(error, ModuleNotFoundError):
        return None
    package = (error.name or "").partition(".")[0]
    if package in {"", "deltaw"}:
        return None
    extra = EXTRAS.get(package, "train")
    return DeltawError(
        "a package that this command needs is not installed",
        where=f"import {error.name}",
        got="no such module",
        expected=f"{DISTRIBUTIONS.get(package, package)}, part of the extra {extra!r}",
        hint=f"pip install 'deltaw[{extra}]'",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["(no message)"])[0][:300]


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
