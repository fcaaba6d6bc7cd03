"""Continuing a run: which state, which settings, and whether it is still the same run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaw.errors import ResumeError
from deltaw.train.config import TrainConfig, spec_of
from deltaw.train.settings import from_values
from deltaw.train.state import find_state, read_values

__all__ = ["Resumption", "check_identity", "environment_notes", "find_resumption"]

# Fields that change where things are or what is written beside the numbers, never the numbers.
CHANGEABLE = frozenset(
    {
        "model.path", "model.device", "data.path", "data.valid", "data.cache_dir", "run.output", "run.threads",
        "run.save_every", "run.keep", "run.sample_tokens", "run.probe", "run.plot", "run.tensorboard", "run.resume",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """What is continued.

    Args:
        config: the settings of the run, from its state.
        state: the state's directory; None where the run starts fresh.
        finished: whether no step is left to do.
    """

    config: TrainConfig
    state: Path | None
    finished: bool = False


def find_resumption(config: TrainConfig) -> Resumption:
    """Find the state that a configuration asks for, and the settings it was saved with.

    Args:
        config: the user's settings.

    Returns:
        The settings to use, and the state.

    Raises:
        ResumeError: if there is no such state, or settings contradict it.
        ConfigError: if the run would start fresh and lacks a model or data.
    """
    wanted = config.run.resume
    if wanted is None:
        return Resumption(config=config, state=None)
    path = find_state(wanted, Path(config.run.output).expanduser())
    if path is None:
        config.require()
        return Resumption(config=config, state=None)
    found = read_values(path)
    saved = found["config"]
    _refuse_changes(config, saved, path)
    values: dict[str, dict[str, Any]] = {section: dict(table) for section, table in saved.items()}
    asked = config.values()
    for key in config.given or ():
        section, name = key.split(".")
        values[section][name] = asked[section][name]
    values["run"] |= {"output": str(path.parent), "resume": wanted, "overwrite": False}
    settled = from_values(values)
    # what the run chose for itself is still its choice
    before = set(found.get("given") or TrainConfig(**{s: getattr(settled, s) for s in values}).given or ())
    given = frozenset(before | set(config.given or ()))
    memory = found["memory"]
    patience = settled.run.patience
    finished = memory["step"] >= found["total"] or bool(patience and memory["stale"] >= patience)
    return Resumption(config=dataclasses.replace(settled, given=given), state=path, finished=finished)


def _refuse_changes(config: TrainConfig, saved: dict[str, dict[str, Any]], path: Path) -> None:
    """Refuse settings that would make the rest of the run another run; all of them in one error."""
    asked, wrong, right = config.values(), [], []
    for key in sorted(config.given or ()):
        section, name = key.split(".")
        if key in CHANGEABLE or asked[section][name] == saved.get(section, {}).get(name):
            continue
        wrong.append(f"{spec_of(key).flag} = {asked[section][name]!r}")
        kept = saved.get(section, {}).get(name)
        right.append("no value" if kept is None else repr(kept))
    if wrong:
        raise ResumeError(
            "a resumed run keeps its settings",
            where=str(path),
            got=", ".join(wrong),
            expected=", ".join(right) + " as saved",
            hint="drop these flags; to train on with others, start a new run with --adapter " + str(path),
        )


def check_identity(now: dict[str, Any], saved: dict[str, Any], path: Path) -> None:
    """Refuse to continue on other data, another base or other choices.

    Args:
        now: what this run consists of.
        saved: what the saved run consisted of.
        path: the state's directory.

    Raises:
        ResumeError: naming every difference.
    """
    names = sorted(name for name in {*now, *saved} if now.get(name) != saved.get(name))
    if names:
        raise ResumeError(
            "the run cannot be continued exactly: something it is made of has changed",
            where=str(path),
            got="; ".join(f"{name}: {now.get(name)}" for name in names),
            expected="; ".join(f"{name}: {saved.get(name)}" for name in names),
            hint="give it the model and data files it was started with",
        )


def environment_notes(now: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Report what may change the last bits.

    Args:
        now: this process's environment.
        saved: the saved run's.

    Returns:
        One line per difference.
    """
    return [
        f"not bit-identical: {name} is {now.get(name)}, the state was saved with {saved.get(name)}"
        for name in saved
        if now.get(name) != saved[name]
    ]
