"""From a configuration to a plan: which weights are adapted, at what rank, and what stands in the way.

Every pattern must match; whatever would be bypassed, tied or unsupported is refused here, before anything is touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from deltaw.config import LoRAConfig, Pattern
from deltaw.errors import ConfigError, ModelError, TargetError, nearest
from deltaw.functional import scaling_of
from deltaw.initialize import INITIALIZATIONS
from deltaw.layers import Kind
from deltaw.layers.bias import channel_dim
from deltaw.layers.slices import rows_of
from deltaw.patterns import Matcher, block_indices, describe, suffixes
from deltaw.settle import Choice, Chosen, finish
from deltaw.sites import Part, Plan
from deltaw.tree import called_parts, require_model
from deltaw.variants import Combined, variant_of
from deltaw.view import View

__all__ = ["plan"]

_WEIGHT = ".weight"
"""Ending of a target that means the parameter and not its module: a weight that others read themselves."""


def _no_match(tree: View, pattern: Pattern, role: str) -> TargetError:
    adaptable = tree.adaptable()
    leaves = suffixes(adaptable)
    name = describe(pattern)
    return TargetError(
        f"no module matches {role} {name!r}",
        where=f"{type(tree.model).__name__}, {len(adaptable)} adaptable modules",
        got=repr(name),
        expected=f"a module such as {', '.join(map(repr, leaves[:6])) or 'a Linear, Conv1D, Embedding or Conv'}",
        hint=f"nearest: {nearest(name.partition('[')[0], [*leaves, *tree.modules])}.",
    )


def _unused_key(key: str, chosen: Iterable[str]) -> TargetError:
    leaves = suffixes(chosen)
    return TargetError(
        f"no adapted module matches rank_pattern or alpha_pattern key {key!r}",
        where="LoRAConfig",
        got=repr(key),
        expected=f"a targeted module: {', '.join(map(repr, leaves[:6])) or 'none is targeted'}",
        hint=f"nearest: {nearest(key.partition('[')[0], leaves)}; or add it to targets.",
    )


def _heads(tree: View) -> set[int]:
    """Output heads: what the model says it is, all beside its backbone, and linears tied to an embedding."""
    get = getattr(tree.model, "get_output_embeddings", None)
    heads = {id(get())} if callable(get) else set()
    backbone = tree.model._modules.get(getattr(tree.model, "base_model_prefix", ""))
    if backbone is not None:
        inside = {id(m) for m in backbone.modules()}
        heads |= {id(m) for m in tree.modules.values() if id(m) not in inside}
    tied = [users for users in tree.users.values() if any(isinstance(user.module, nn.Embedding) for user in users)]
    return heads | {id(user.module) for users in tied for user in users if isinstance(user.module, nn.Linear)}


def _all_linear(tree: View) -> list[str]:
    heads = _heads(tree)
    linears = [path for path, kind in tree.kinds.items() if kind is not None and kind.name in ("Linear", "Conv1D")]
    return [path for path in linears if id(tree.modules[path]) not in heads]


def _choose(tree: View, config: LoRAConfig, matched: dict[str, int]) -> dict[str, Choice]:
    """Every target pattern, resolved; the first pattern names the choice, slices of several patterns add up."""
    chosen: dict[str, Choice] = {}
    for pattern in config.targets:  # type: ignore[union-attr]
        name, matcher = describe(pattern), Matcher(pattern)
        found = _all_linear(tree) if pattern == "all-linear" else tree.find(pattern)
        raw = not found and isinstance(pattern, str) and pattern.endswith(_WEIGHT)
        if raw:
            matcher = Matcher(pattern.removesuffix(_WEIGHT))  # type: ignore[union-attr]
            found = tree.find(matcher.pattern)
        usable, slices = [path for path in found if tree.kinds[path] is not None], matcher.slices
        if not found or (not usable and not matcher.exact):
            raise _no_match(tree, pattern, "target")
        if matcher.exact and len(usable) < len(found):
            other = next(path for path in found if path not in usable)
            raise TargetError(
                f"target {name!r} matches a module that cannot be adapted",
                where=f"module '{other}'",
                got=type(tree.modules[other]).__name__,
                expected="Linear, Conv1D (transformers), Embedding, Conv1d/2d/3d, MultiheadAttention, or a subclass",
                hint="name a layer inside it, or use a glob; adaptable here: "
                + ", ".join(map(repr, suffixes(tree.adaptable())[:6]))
                + ".",
            )
        matched[name] = len(usable)
        for path in [path for found_path in usable for path in _whole(tree, found_path, slices)]:
            choice = chosen.setdefault(path, Choice(name, slices, raw=raw))
            choice.raw = choice.raw or raw
            if bool(choice.slices) != bool(slices):
                raise ConfigError(
                    "a module is targeted both whole and in slices",
                    where=f"module '{path}'",
                    got=f"{choice.pattern!r} and {name!r}",
                    expected="one or the other",
                    hint="drop one of the two targets.",
                )
            choice.slices = tuple(dict.fromkeys((*choice.slices, *slices)))
    return chosen


def _whole(tree: View, path: str, slices: tuple[str, ...]) -> list[str]:
    """A module, and the children that a target of the whole of it means too."""
    kind = tree.kinds[path]
    children = () if kind is None or slices else kind.parts
    return [path, *(f"{path}.{child}" if path else child for child in children)]


def _narrow(tree: View, config: LoRAConfig, chosen: dict[str, Choice], copies: list[str]) -> list[str]:
    """Take out excludes, other blocks, and whatever is trained in full anyway; returns notes."""
    targeted = set(chosen)
    for pattern in config.exclude:  # type: ignore[union-attr]
        found = [path for path in tree.find(pattern) if path in targeted]
        if not found:
            raise _no_match(tree, pattern, "exclude")
        for path in found:
            chosen.pop(path, None)
    if config.layers is not None:
        prefixes = tuple(block_indices(tree.model, config.layers))
        for path in [path for path in chosen if not path.startswith(prefixes)]:
            del chosen[path]
    inside = [p for p in chosen if any(p == copy or p.startswith(f"{copy}.") for copy in copies)]
    for path in inside:
        del chosen[path]
    if not chosen and config.targets and not copies and not config.train_rows:
        raise TargetError(
            "nothing is left to adapt",
            where=f"{type(tree.model).__name__} after exclude and layers",
            got="no module",
            expected="at least one",
            hint="loosen exclude= or layers=.",
        )
    return [f"{len(inside)} matched modules are trained in full and get no low-rank term"] if inside else []


def _pattern_value(
    patterns: Mapping[str, float], paths: Iterable[str], module: nn.Module, part: str, used: set[str]
) -> float | None:
    """Value of the first pattern that matches a module, or a slice of it."""
    for key, value in patterns.items():
        matcher = Matcher(key)
        if matcher.slices and part not in matcher.slices:
            continue
        if any(matcher.matches(path, module) for path in paths):
            used.add(key)
            return value
    return None


def _parts(
    tree: View, config: LoRAConfig, update: Combined, path: str, choice: Choice, used: set[str]
) -> tuple[Part, ...]:
    """Ranks, alphas and rows of one chosen module."""
    module, kind = tree.modules[path], tree.kinds[path]
    assert kind is not None
    if choice.slices and not kind.sliceable:
        raise TargetError(
            "this kind of module has no slices",
            where=f"module '{path}'",
            got=f"{choice.pattern!r} on {kind.name}",
            expected="a fused linear projection",
            hint="drop the [...] of the target.",
        )
    width, subtract = kind.sizes(module)[1], INITIALIZATIONS[config.init].subtract
    paths, parts = tree.paths[id(module)], []
    for name in choice.slices or ("",):
        rank = _pattern_value(config.rank_pattern, paths, module, name, used)
        alpha = _pattern_value(config.alpha_pattern, paths, module, name, used)
        rank, alpha = config.rank if rank is None else int(rank), config.alpha if alpha is None else alpha
        if rank == 0:
            continue
        rows = rows_of(path, name, width, tree.model) if name else ()
        size = sum(stop - start for start, stop in rows) if rows else width
        _refuse_rank(path, module, kind, rank)
        scaling = scaling_of(rank, alpha, config.rank_stabilized) if update.scaled else 1.0
        parts.append(
            Part(
                name=name,
                rank=rank,
                alpha=alpha if update.scaled else rank,
                scaling=scaling,
                out_features=size,
                rows=rows,
                variant=update.names,
                subtract=subtract,
            )
        )
    covered = sorted(bounds for part in parts for bounds in part.rows)
    for (_, stop), (start, _) in itertools.pairwise(covered):
        if start < stop:
            raise TargetError(
                "slices overlap",
                where=f"module '{path}'",
                got=", ".join(choice.slices),
                expected="slices without common rows",
                hint="name each row once.",
            )
    return tuple(parts)


def _refuse_rank(path: str, module: nn.Module, kind: Kind, rank: int) -> None:
    """Refuse a rank that the groups of a convolution do not share evenly."""
    groups = kind.groups(module)
    if rank % groups:
        raise TargetError(
            "the rank of a grouped convolution is shared out among its groups",
            where=f"module '{path}'",
            got=f"rank {rank} for {groups} groups",
            expected=f"a multiple of {groups}",
            hint=f"use rank_pattern={{{path!r}: {groups}}}, or exclude it.",
        )


def _tokens(tree: View, config: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """Token tables of which some rows are trained."""
    given: Mapping[str, Sequence[int]] = config.train_rows
    found: dict[str, tuple[int, ...]] = {}
    for pattern, index in given.items():
        paths = tree.find(pattern)
        if not paths:
            raise _no_match(tree, pattern, "train_rows")
        for path in paths:
            found[path] = tuple(sorted({*found.get(path, ()), *index}))
    return found


def _full_and_biases(
    tree: View, config: LoRAConfig, chosen: Iterable[str], copies: list[str]
) -> list[tuple[str, nn.Module]]:
    """Biases trained beside the base's own."""
    if config.bias == "none":
        return []
    paths = list(chosen) if config.bias == "lora_only" else list(tree.modules)
    fused = next((p for p in paths if "in_proj_bias" in tree.modules[p]._parameters), None)
    if fused is not None:
        raise TargetError(
            "the fused bias of an attention cannot be trained beside the base's",
            where=f"module '{fused}'",
            got=f"bias={config.bias!r}",
            expected="bias='none'",
            hint=f"use train_also=[{fused!r}] to train that module in full.",
        )
    found = [
        (path, tree.modules[path])
        for path in paths
        if isinstance(tree.modules[path]._parameters.get("bias"), nn.Parameter)
        and not any(path == copy or path.startswith(f"{copy}.") for copy in copies)
    ]
    bad = [(path, module) for path, module in found if channel_dim(module) is None]
    if bad or not found:
        where, module = bad[0] if bad else ("", tree.model)
        raise TargetError(
            "a bias cannot be trained beside the base's" if bad else "no bias to train",
            where=f"module '{where}'" if bad else f"bias={config.bias!r}",
            got=type(module).__name__ if bad else "no chosen module has a bias",
            expected="biases that are added to a module's output",
            hint=f"use train_also=[{where!r}] for that module, or bias='lora_only'." if bad else "use bias='none'.",
        )
    return found


def _copies(tree: View, config: LoRAConfig) -> list[str]:
    """Outermost modules that ``train_also`` names."""
    paths: list[str] = []
    for pattern in config.train_also:  # type: ignore[union-attr]
        found = [path for path in tree.find(pattern) if path and any(True for _ in tree.modules[path].parameters())]
        if not found:
            raise _no_match(tree, pattern, "train_also")
        paths += [part for path in found for part in called_parts(path, tree.modules[path])]
    unique = sorted(set(paths), key=list(tree.modules).index)
    return [path for path in unique if not any(path.startswith(f"{other}.") for other in unique)]


def plan(model: nn.Module, config: LoRAConfig | None = None) -> Plan:
    """Work out what ``attach`` would do, touching nothing. Works on meta models.

    Args:
        model: any model.
        config: what to adapt; None means the defaults.

    Returns:
        The plan; it prints as a table.

    Raises:
        ModelError: if ``model`` is no module or has no parameter.
        TargetError: if a pattern matches nothing, or something that cannot be adapted.
        TieError: if a target's weight is shared and the policy refuses it.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> print(plan(net, LoRAConfig(rank=1, alpha=2)))
        module  kind    size    rank  scaling  count  parameters
        0       Linear  4 -> 4  1     2            1           8
        2       Linear  4 -> 2  1     2            1           6
        adapter: 14 parameters, 46.7% of the base's 30
    """
    config = LoRAConfig() if config is None else config
    if not isinstance(config, LoRAConfig):
        raise ConfigError(
            "this is not a configuration",
            where="argument 'config'",
            got=type(config).__name__,
            expected="a LoRAConfig",
            hint="write LoRAConfig(**fields).",
        )
    model = require_model(model)
    if not any(True for _ in model.parameters()):
        raise ModelError(
            "the model has no parameter",
            where=type(model).__name__,
            got="0 parameters",
            expected="at least one",
            hint="pass the whole model.",
        )
    tree = View(model)
    matched: dict[str, int] = {}
    copies = _copies(tree, config)
    sites = _choose(tree, config, matched)
    notes = _narrow(tree, config, sites, copies)
    biases = _full_and_biases(tree, config, sites, copies)
    tokens = _tokens(tree, config)
    used: set[str] = set()
    update = variant_of(config.variant)
    for path, choice in sites.items():
        choice.parts = _parts(tree, config, update, path, choice, used)
    for key in (*config.rank_pattern, *config.alpha_pattern):
        if key not in used:
            raise _unused_key(key, sites)
    return finish(tree, config, Chosen(sites, copies, biases, tokens, matched, notes))
