"""The output directory: what belongs to a run, and when it may be written into."""

from __future__ import annotations

from pathlib import Path

from deltaw.disk import TEMPORARY
from deltaw.errors import ConfigError
from deltaw.train.config import RunConfig
from deltaw.train.files import TRASH, remove_leftovers, remove_tree
from deltaw.train.state import PREFIX

__all__ = ["METRICS", "REPORT", "SETTINGS", "check_output", "clear_output"]

METRICS, SETTINGS, REPORT, PLOT, CARD, BOARD = (
    "metrics.jsonl", "run.toml", "report.json", "loss.png", "README.md", "tensorboard"
)  # fmt: skip
RESULTS = ("adapter_model.safetensors", "baseline_model.safetensors", "model.safetensors")
KNOWN = frozenset(
    {
        METRICS, SETTINGS, REPORT, PLOT, CARD, BOARD, *RESULTS, "adapter_config.json", "config.json",
        "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
        "vocab.txt", "merges.txt", "chat_template.jinja", "model.safetensors.index.json", "added_tokens.json",
        "baseline_config.json", "lora",
    }
)  # fmt: skip
# The last: shards of a large model.
STARTS = (PREFIX, TEMPORARY, TRASH, "model-0")


def _foreign(output: Path) -> list[str]:
    return sorted(
        entry.name for entry in output.iterdir() if entry.name not in KNOWN and not entry.name.startswith(STARTS)
    )


def check_output(run: RunConfig, *, resuming: bool) -> None:
    """Refuse an output directory that holds something; nothing is changed here.

    Args:
        run: the output directory, and whether it may be overwritten.
        resuming: whether a state in it is continued.

    Raises:
        ConfigError: if the directory is a file, is not empty, or holds what no run wrote.
    """
    output = Path(run.output).expanduser()
    if output.exists() and not output.is_dir():
        raise _refusal(output, "the output is a file", "a file", "choose another --output")
    if resuming or not output.is_dir():
        return
    names = sorted(entry.name for entry in output.iterdir())
    if not names:
        return
    shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    foreign = _foreign(output)
    # A killed run that had not saved a state yet leaves only its records: `--resume auto` starts it again.
    restart = run.resume == "auto" and not any(name in names for name in RESULTS)
    if not (run.overwrite or restart):
        hint = "use --overwrite to replace that run, --resume auto to continue it, or another --output"
        raise _refusal(output, "the output directory is not empty", shown, hint)
    if foreign:
        hint = "choose another --output, or move these files away"
        raise _refusal(output, "the output directory holds files that no run wrote", ", ".join(foreign[:6]), hint)


def _refusal(output: Path, what: str, got: str, hint: str) -> ConfigError:
    return ConfigError(what, where=str(output), got=got, expected="a new or empty directory", hint=hint)


def clear_output(output: Path, *, resuming: bool) -> None:
    """Make the directory ready: delete an earlier run's files, or a killed one's leftovers.

    Args:
        output: the directory, checked before.
        resuming: whether its run is continued.
    """
    output.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)
    if resuming:
        return
    for entry in output.iterdir():
        if entry.name in KNOWN or entry.name.startswith(STARTS):
            if entry.is_dir():
                remove_tree(entry)
            else:
                entry.unlink()
