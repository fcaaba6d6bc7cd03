"""LoRAConfig: what to adapt and how, frozen and validated when it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

from torch import nn

from deltaw.coerce import as_flag, as_layers, as_mapping, as_names, as_patterns, as_rows, as_seed
from deltaw.errors import ConfigError, nearest

__all__ = ["LoRAConfig", "Pattern"]

Pattern: TypeAlias = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""One target: a string of the pattern language, a module type, or a predicate ``(path, module) -> bool``."""

_BIAS = ("none", "all", "lora_only")
_TIES = ("refuse", "share", "separate")
_LARGEST = 65536
_FORMS: Mapping[str, Callable[[str, Any], Any]] = {
    "targets": as_patterns,
    "exclude": as_patterns,
    "train_also": as_patterns,
    "rank_stabilized": as_flag,
    "layers": as_layers,
    "rank_pattern": as_mapping,
    "alpha_pattern": as_mapping,
    "train_rows": as_rows,
    "variant": as_names,
    "seed": as_seed,
}


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which modules get a low-rank update, of what rank and strength, and what else is trained.

    ``targets``, ``exclude``, ``train_also`` and the keys of ``rank_pattern`` and ``alpha_pattern`` speak one pattern
    language: a plain name is a dotted suffix (``q_proj``, ``attn.c_attn``); ``*`` and ``?`` make it a glob, in which
    ``*`` also crosses dots; ``re:...`` is a regular expression for the whole path; ``all-linear`` is every linear
    layer but the output head; a type or a predicate ``(path, module) -> bool`` works too (not in pattern keys). A
    target may name slices of a fused projection, ``c_attn[q,v]``, or rows of it, ``qkv[0:64]``.

    Args:
        targets: what to adapt; every pattern must match.
        rank: inner dimension R; 0 attaches no low-rank term.
        alpha: numerator of the scaling.
        dropout: probability in [0, 1) of dropping entries of the term's input while training.
        rank_stabilized: scale by alpha / sqrt(rank) instead of alpha / rank.
        init: name of an initialization in ``deltaw.initialize.INITIALIZATIONS``.
        exclude: patterns taken out of the targets; each must take out something.
        layers: block indices to adapt: integers, or a string such as ``"0-3,7"`` or ``"last:4"``; None means all.
        rank_pattern: rank of the modules (or slices) that a pattern matches; the first match wins.
        alpha_pattern: alpha likewise.
        bias: which base biases train beside: ``none``, ``all``, or ``lora_only`` (those of adapted modules).
        train_also: modules trained in full, as copies that belong to the adapter.
        train_rows: rows of token embeddings that are trained, such as those of new tokens: pattern -> token ids.
        variant: names of variants in ``deltaw.variants.VARIANTS``: ``lora``, ``dora``, ``vera``, and the traits
            ``lora_fa`` (A is not trained) and ``lora_bias`` (B has a bias), alone or together.
        ties: what to do when a target's weight is shared with another module: ``refuse``, ``share`` one update on
            all its users, or adapt the users ``separate``-ly (such an adapter cannot be merged).
        seed: seed of the initialization and of the adapter's dropout; None takes ``torch.initial_seed()``.

    Raises:
        ConfigError: if a value is out of range or contradicts another.

    Example:
        >>> LoRAConfig(rank=8, alpha=16, targets=["q_proj", "v_proj"]).targets
        ('q_proj', 'v_proj')
    """

    targets: Sequence[Pattern] | Pattern = ("all-linear",)
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    rank_stabilized: bool = False
    init: str = "kaiming"
    exclude: Sequence[Pattern] | Pattern = ()
    layers: Sequence[int] | str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    bias: str = "none"
    train_also: Sequence[Pattern] | Pattern = ()
    train_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    variant: Sequence[str] | str = ("lora",)
    ties: str = "refuse"
    seed: int | None = None

    def __post_init__(self) -> None:
        """Normalize sequences to tuples, then validate."""
        for name, form in _FORMS.items():
            object.__setattr__(self, name, form(name, getattr(self, name)))
        self._check_ranks()
        self._check_numbers()
        self._check_choice("bias", self.bias, _BIAS)
        self._check_choice("ties", self.ties, _TIES)
        from deltaw.initialize import INITIALIZATIONS

        self._check_choice("init", self.init, tuple(INITIALIZATIONS))
        self._check_variant()
        self._check_rows()
        if not self.targets and not self.train_also and not self.train_rows and self.bias != "all":
            raise ConfigError(
                "nothing to adapt",
                where="LoRAConfig.targets",
                got="no target, no train_also, bias='none'",
                expected="at least one pattern",
                hint='use targets="all-linear".',
            )

    def _check_ranks(self) -> None:
        for where, rank in (("rank", self.rank), *((f"rank_pattern[{k!r}]", v) for k, v in self.rank_pattern.items())):
            if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= _LARGEST:
                raise ConfigError(
                    "a rank is a whole number",
                    where=f"LoRAConfig.{where}",
                    got=repr(rank),
                    expected=f"an integer from 0 to {_LARGEST}",
                    hint="common ranks are 4 to 64.",
                )

    def _check_numbers(self) -> None:
        alphas = (("alpha", self.alpha), *((f"alpha_pattern[{k!r}]", v) for k, v in self.alpha_pattern.items()))
        for where, alpha in alphas:
            if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 1e-30 < abs(alpha) < 1e30:
                raise ConfigError(
                    "alpha must be a finite number other than zero",
                    where=f"LoRAConfig.{where}",
                    got=repr(alpha),
                    expected="a number such as 16",
                    hint="alpha / rank is the factor on the update.",
                )
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(
                "dropout is a probability",
                where="LoRAConfig.dropout",
                got=repr(self.dropout),
                expected="a number in [0, 1)",
                hint="use 0 for no dropout; 0.05 to 0.1 are common.",
            )

    def _check_rows(self) -> None:
        for key, rows in self.train_rows.items():
            if not rows or not all(isinstance(row, int) and not isinstance(row, bool) and row >= 0 for row in rows):
                raise ConfigError(
                    "trained rows are token ids",
                    where=f"LoRAConfig.train_rows[{key!r}]",
                    got=repr(rows),
                    expected="whole numbers from 0 on, at least one",
                    hint='write {"embed_tokens": [32000, 32001]}.',
                )

    def _check_variant(self) -> None:
        from deltaw.variants import variant_of

        update = variant_of(self.variant)
        if update.scaled:
            return
        name = self.variant[0]
        given = [
            field_name
            for field_name, plain in (
                ("alpha", self.alpha in (16.0, self.rank)),
                ("rank_pattern", not self.rank_pattern),
                ("alpha_pattern", not self.alpha_pattern),
                ("rank_stabilized", not self.rank_stabilized),
                ("init", self.init == "kaiming"),
            )
            if not plain
        ]
        if given:
            raise ConfigError(
                f"{name} has one rank for all sites, no scaling, and its own initialization",
                where=f"LoRAConfig.{given[0]}",
                got=repr(getattr(self, given[0])),
                expected=f"{given[0]} left alone",
                hint=f"leave {given[0]} out, or choose another variant.",
            )

    @staticmethod
    def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
        if value not in choices:
            raise ConfigError(
                f"unknown value of {name}",
                where=f"LoRAConfig.{name}",
                got=repr(value),
                expected=" or ".join(map(repr, choices)),
                hint=f"nearest: {nearest(str(value), choices, 1)}.",
            )

    def replace(self, **changes: Any) -> LoRAConfig:
        """Copy with some fields changed.

        Args:
            **changes: field names and new values.

        Returns:
            A new, validated configuration.

        Raises:
            ConfigError: if a field does not exist.

        Example:
            >>> LoRAConfig().replace(rank=4).rank
            4
        """
        unknown = sorted(set(changes) - {f.name for f in fields(self)})
        if unknown:
            raise ConfigError(
                "unknown field",
                where="LoRAConfig",
                got=", ".join(unknown),
                expected=", ".join(f.name for f in fields(self)),
                hint=f"nearest: {nearest(unknown[0], [f.name for f in fields(self)], 1)}.",
            )
        return replace(self, **changes)
