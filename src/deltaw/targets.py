"""From a configuration to a plan: which weights are adapted, at what rank, and what stands in the way.

Every pattern must match; whatever would be bypassed, tied or unsupported is refused here, before anything is touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from deltaw.config import LoRAConfig, Pattern
from deltaw.errors import ConfigError, ModelError, TargetError, TieError, nearest
from deltaw.functional import scaling_of
from deltaw.layers import Kind, kind_of
from deltaw.layers.bias import channel_dim
from deltaw.layers.slices import rows_of
from deltaw.patterns import Matcher, block_indices, describe, suffixes
from deltaw.sites import Part, Plan, Site
from deltaw.ties import User, storage_key, users_of_weights
from deltaw.tree import base_modules, parent_of, require_model

__all__ = ["Choice", "finish", "plan"]


@dataclass
class Choice:
    """One module chosen for adaptation, before ranks and ties are settled.

    Args:
        pattern: the pattern that chose it.
        slices: slice names; empty for the whole weight.
        parts: ready parts, where a file already says them.
    """

    pattern: str
    slices: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


@dataclass
class _Tree:
    """The model as patterns see it."""

    model: nn.Module
    modules: dict[str, nn.Module] = field(default_factory=dict)
    paths: dict[int, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(base_modules(self.model, seen=self.paths))

    def find(self, pattern: Pattern) -> list[str]:
        """First paths of the modules that a pattern matches, under any of their names."""
        matcher = Matcher(pattern)
        if not isinstance(pattern, str) or len(self.paths) == len(self.modules) == sum(map(len, self.paths.values())):
            return [path for path, module in self.modules.items() if matcher.matches(path, module)]
        return [p for p, m in self.modules.items() if any(matcher.matches(q, m) for q in self.paths[id(m)])]

    def total(self) -> int:
        """Number of the base's parameters, shared ones once."""
        parameters = {id(p): p for m in self.modules.values() for p in m._parameters.values() if p is not None}
        return sum(p.numel() for p in parameters.values())

    def adaptable(self) -> list[str]:
        """Paths of everything that has a kind."""
        return [path for path, module in self.modules.items() if kind_of(module) is not None]


def _no_match(tree: _Tree, pattern: Pattern, role: str) -> TargetError:
    adaptable = tree.adaptable()
    leaves = suffixes(adaptable)
    name = describe(pattern)
    return TargetError(
        f"no module matches {role} {name!r}",
        where=f"{type(tree.model).__name__}, {len(adaptable)} adaptable modules",
        got=repr(name),
        expected=f"a module such as {', '.join(map(repr, leaves[:6])) or 'a Linear, Conv1D or Embedding'}",
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


def _heads(tree: _Tree) -> set[int]:
    """Output heads: what the model says it is, all beside its backbone, and linears tied to an embedding."""
    get = getattr(tree.model, "get_output_embeddings", None)
    heads = {id(get())} if callable(get) else set()
    backbone = tree.model._modules.get(getattr(tree.model, "base_model_prefix", ""))
    if backbone is not None:
        inside = {id(m) for m in backbone.modules()}
        heads |= {id(m) for m in tree.modules.values() if id(m) not in inside}
    weights = [(m, weight) for m in tree.modules.values() if (weight := m._parameters.get("weight")) is not None]
    tables = {storage_key(weight) for m, weight in weights if isinstance(m, nn.Embedding)}
    return heads | {id(m) for m, weight in weights if isinstance(m, nn.Linear) and storage_key(weight) in tables}


def _all_linear(tree: _Tree) -> list[str]:
    heads = _heads(tree)
    kinds = {path: kind_of(module) for path, module in tree.modules.items() if id(module) not in heads}
    return [path for path, kind in kinds.items() if kind is not None and kind.name in ("Linear", "Conv1D")]


def _choose(tree: _Tree, config: LoRAConfig, matched: dict[str, int]) -> dict[str, Choice]:
    """Every target pattern, resolved; the first pattern names the choice, slices of several patterns add up."""
    chosen: dict[str, Choice] = {}
    for pattern in config.targets:  # type: ignore[union-attr]
        name, matcher = describe(pattern), Matcher(pattern)
        found = _all_linear(tree) if pattern == "all-linear" else tree.find(pattern)
        usable = [path for path in found if kind_of(tree.modules[path]) is not None]
        if not found or (not usable and not matcher.exact):
            raise _no_match(tree, pattern, "target")
        if matcher.exact and len(usable) < len(found):
            other = next(path for path in found if path not in usable)
            raise TargetError(
                f"target {name!r} matches a module that cannot be adapted",
                where=f"module '{other}'",
                got=type(tree.modules[other]).__name__,
                expected="Linear, Conv1D (transformers), Embedding, or a subclass of these",
                hint="name a layer inside it, or use a glob; adaptable here: "
                + ", ".join(map(repr, suffixes(tree.adaptable())[:6]))
                + ".",
            )
        matched[name] = len(usable)
        for path in usable:
            choice = chosen.setdefault(path, Choice(name, matcher.slices))
            if bool(choice.slices) != bool(matcher.slices):
                raise ConfigError(
                    "a module is targeted both whole and in slices",
                    where=f"module '{path}'",
                    got=f"{choice.pattern!r} and {name!r}",
                    expected="one or the other",
                    hint="drop one of the two targets.",
                )
            choice.slices = tuple(dict.fromkeys((*choice.slices, *matcher.slices)))
    return chosen


def _narrow(tree: _Tree, config: LoRAConfig, chosen: dict[str, Choice], copies: list[str]) -> list[str]:
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
    if not chosen and config.targets and not copies:
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


def _parts(tree: _Tree, config: LoRAConfig, path: str, choice: Choice, used: set[str]) -> tuple[Part, ...]:
    """Ranks, alphas and rows of one chosen module."""
    module = tree.modules[path]
    kind = kind_of(module)
    assert kind is not None
    if choice.slices and not kind.sliceable:
        raise TargetError(
            "this kind of module has no slices",
            where=f"module '{path}'",
            got=f"{choice.pattern!r} on {kind.name}",
            expected="a fused linear projection",
            hint="drop the [...] of the target.",
        )
    width = kind.sizes(module)[1]
    paths, parts = tree.paths[id(module)], []
    for name in choice.slices or ("",):
        rank = _pattern_value(config.rank_pattern, paths, module, name, used)
        alpha = _pattern_value(config.alpha_pattern, paths, module, name, used)
        rank, alpha = config.rank if rank is None else int(rank), config.alpha if alpha is None else alpha
        if rank == 0:
            continue
        rows = rows_of(path, name, width, tree.model) if name else ()
        size = sum(stop - start for start, stop in rows) if rows else width
        scaling = scaling_of(rank, alpha, config.rank_stabilized)
        parts.append(Part(name=name, rank=rank, alpha=alpha, scaling=scaling, out_features=size, rows=rows))
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


def _refuse_readers(tree: _Tree, path: str) -> None:
    """Refuse modules whose parent reads their weight directly: an adapter there would be bypassed."""
    parent = parent_of(tree.model, path)
    leaf = path.rpartition(".")[2]
    reader = type(parent).__name__
    if isinstance(parent, nn.MultiheadAttention):
        why = "nn.MultiheadAttention multiplies out_proj.weight itself"
    elif (
        isinstance(parent, nn.TransformerEncoderLayer)
        and leaf in ("linear1", "linear2", "norm1", "norm2", "self_attn")
        and torch.backends.mha.get_fastpath_enabled()
    ):
        why = f"the fast path of nn.TransformerEncoderLayer reads {leaf} directly in eval mode"
    elif "Mamba" in reader and leaf in ("out_proj", "x_proj", "dt_proj", "conv1d"):
        why = f"the fused kernels of {reader} read {leaf}.weight directly"
    else:
        return
    fast = isinstance(parent, nn.TransformerEncoderLayer)
    raise TargetError(
        "this module's adapter would be bypassed",
        where=f"module '{path}'",
        got=why,
        expected="a module whose own forward is called",
        hint="call torch.backends.mha.set_fastpath_enabled(False) first." if fast else f"exclude=[{leaf!r}].",
    )


def _twins(path: str, module: nn.Module, others: list[User], policy: str) -> tuple[tuple[str, nn.Module, Kind], ...]:
    """Other users of a site's weight, as the tie policy has them."""
    if not others or policy == "separate":
        return ()
    names = ", ".join(f"'{user.path}'" for user in others)
    if policy == "refuse":
        raise TieError(
            "a targeted weight is shared with another module",
            where=f"module '{path}'",
            got=f"one weight for '{path}' and {names}",
            expected="a weight with one user, or a policy for ties",
            hint='use ties="share" for one update on all users, or ties="separate" (cannot be merged), or exclude it.',
        )
    twins = []
    for user in others:
        kind = kind_of(user.module)
        if kind is None:
            raise TieError(
                "a user of the shared weight cannot be adapted",
                where=f"module '{user.path}'",
                got=type(user.module).__name__,
                expected="Linear, Conv1D or Embedding",
                hint='use ties="separate", or exclude it.',
            )
        twins.append((user.path, user.module, kind))
    return tuple(twins)


def _refuse_copy(path: str, module: nn.Module, users: Mapping[tuple[int, ...], list[User]], policy: str) -> None:
    """Refuse to train a module in full where a copy of it cannot be trained, or would part from its twin unasked."""
    inside = {id(m) for m in module.modules()}
    for key, parameter in module.named_parameters():
        if not parameter.is_floating_point():
            raise TargetError(
                "this module cannot be trained in full",
                where=f"module '{path}'",
                got=f"'{key}' of {parameter.dtype}",
                expected="floating-point parameters",
                hint="adapt it with a low-rank target instead of train_also.",
            )
        other = next((user for user in users.get(storage_key(parameter), []) if id(user.module) not in inside), None)
        if other is not None and policy != "separate":
            raise TieError(
                "a module to be trained in full shares a weight with another module",
                where=f"module '{path}'",
                got=f"one weight for '{path}.{key}' and '{other.path}'",
                expected="a weight with one user, or a policy for ties",
                hint='use ties="separate" to let the copy part from its twin, or make it a target with ties="share".',
            )


def _refuse_two_minds(choice: Choice, path: str, twins: Iterable[str], chosen: Mapping[str, Choice]) -> None:
    """Refuse one shared update for which two users ask for different ranks or strengths."""
    want = [(part.rank, part.scaling) for part in choice.parts]
    for twin in twins:
        other = chosen.get(twin)
        if other is not None and [(part.rank, part.scaling) for part in other.parts] != want:
            raise TieError(
                "one update cannot have two ranks or scalings",
                where=f"modules '{path}' and '{twin}', which share a weight",
                got=f"(rank, scaling) {want} and {[(part.rank, part.scaling) for part in other.parts]}",
                expected="the same for both",
                hint="make the patterns of rank_pattern and alpha_pattern agree.",
            )


def _full_and_biases(
    tree: _Tree, config: LoRAConfig, chosen: Iterable[str], copies: list[str]
) -> list[tuple[str, nn.Module]]:
    """Biases trained beside the base's own."""
    if config.bias == "none":
        return []
    paths = list(chosen) if config.bias == "lora_only" else list(tree.modules)
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


def finish(
    tree_or_model: _Tree | nn.Module,
    config: LoRAConfig,
    chosen: Mapping[str, Choice],
    copies: list[str],
    biases: list[tuple[str, nn.Module]],
    matched: dict[str, int],
    notes: list[str],
) -> Plan:
    """Settle hazards, aliases and ties of chosen modules, and make the plan.

    Args:
        tree_or_model: the model.
        config: its policies apply.
        chosen: path -> choice with ready parts.
        copies: paths of modules trained in full.
        biases: (path, module) of biases trained.
        matched: pattern -> count, for the report.
        notes: lines for the report.

    Returns:
        The plan.

    Raises:
        TargetError: if an adapter would be bypassed.
        TieError: if a weight has several users and the policy refuses it.
    """
    tree = tree_or_model if isinstance(tree_or_model, _Tree) else _Tree(tree_or_model)
    users = users_of_weights(tree.modules.items())
    sites: list[Site] = []
    taken: set[int] = set()
    for path, choice in chosen.items():
        module = tree.modules[path]
        if id(module) in taken or not choice.parts:
            continue
        kind = kind_of(module)
        assert kind is not None
        _refuse_readers(tree, path)
        weight = module._parameters.get("weight")
        group = users.get(storage_key(weight), []) if isinstance(weight, torch.Tensor) else []
        twins = _twins(path, module, [user for user in group if user.module is not module], config.ties)
        _refuse_two_minds(choice, path, [twin for twin, _, _ in twins], chosen)
        if twins and len(choice.parts) == 1 and choice.parts[0].rows == ():
            taken |= {id(twin) for _, twin, _ in twins}
        elif twins:
            twins = _twins(path, module, [User(p, m) for p, m, _ in twins], "refuse")
        n_in, n_out = kind.sizes(module)
        aliases = tuple(tree.paths[id(module)][1:])
        sites.append(
            Site(
                path=path,
                module=module,
                kind=kind,
                in_features=n_in,
                out_features=n_out,
                parts=choice.parts,
                pattern=choice.pattern,
                aliases=aliases,
                twins=twins,
            )
        )
    for path in (*copies, *(path for path, _ in biases)):
        _refuse_readers(tree, path)
    for path in copies:
        _refuse_copy(path, tree.modules[path], users, config.ties)
    notes = notes + _remarks(sites, config)
    full = tuple((path, tree.modules[path]) for path in copies)
    return Plan(
        config=config,
        sites=tuple(sites),
        copies=full,
        biases=tuple(biases),
        matched=matched,
        total=tree.total(),
        notes=tuple(notes),
    )


def _remarks(sites: list[Site], config: LoRAConfig) -> list[str]:
    notes = []
    embeddings = [site.path for site in sites if site.kind.name == "Embedding"]
    if embeddings and config.dropout:
        notes.append(f"dropout does not apply to embeddings: {', '.join(embeddings)}")
    for site in sites:
        if site.aliases:
            notes.append(f"'{site.path}' is one module under {len(site.aliases) + 1} names; it gets one adapter")
        if site.twins:
            notes.append(f"'{site.path}' shares its update with {', '.join(repr(path) for path, _, _ in site.twins)}")
        if any(part.rank > min(site.in_features, part.out_features) for part in site.parts):
            notes.append(f"'{site.path}' has a rank above its full rank {min(site.in_features, site.out_features)}")
    return notes


def _copies(tree: _Tree, config: LoRAConfig) -> list[str]:
    """Outermost modules that ``train_also`` names."""
    paths: list[str] = []
    for pattern in config.train_also:  # type: ignore[union-attr]
        found = [path for path in tree.find(pattern) if path and any(True for _ in tree.modules[path].parameters())]
        if not found:
            raise _no_match(tree, pattern, "train_also")
        paths += found
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
    model = require_model(model)
    if not any(True for _ in model.parameters()):
        raise ModelError(
            "the model has no parameter",
            where=type(model).__name__,
            got="0 parameters",
            expected="at least one",
            hint="pass the whole model.",
        )
    tree = _Tree(model)
    matched: dict[str, int] = {}
    copies = _copies(tree, config)
    chosen = _choose(tree, config, matched)
    notes = _narrow(tree, config, chosen, copies)
    biases = _full_and_biases(tree, config, chosen, copies)
    used: set[str] = set()
    for path, choice in chosen.items():
        choice.parts = _parts(tree, config, path, choice, used)
    for key in (*config.rank_pattern, *config.alpha_pattern):
        if key not in used:
            raise _unused_key(key, chosen)
    return finish(tree, config, chosen, copies, biases, matched, notes)
