"""Hazards, aliases and ties of chosen modules: what is refused before anything is touched, and what is left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from deltaw.config import LoRAConfig
from deltaw.errors import TargetError, TieError
from deltaw.initialize import INITIALIZATIONS
from deltaw.layers import Kind, kind_of
from deltaw.layers.readers import readers_above
from deltaw.reports import plural
from deltaw.sites import Part, Plan, Rows, Site
from deltaw.ties import User, storage_key
from deltaw.variants import Combined, variant_of
from deltaw.view import View

__all__ = ["Choice", "Chosen", "finish"]


@dataclass
class Choice:
    """One module chosen for adaptation, before ranks and ties are settled.

    Args:
        pattern: the pattern that chose it.
        slices: slice names; empty for the whole weight.
        parts: ready parts, where a file already says them.
        raw: the weight is read by others, and the attribute itself is to be adapted.
    """

    pattern: str
    slices: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    raw: bool = False


@dataclass
class Chosen:
    """Everything a plan is made of.

    Args:
        sites: path -> choice with ready parts.
        copies: paths of modules trained in full.
        biases: (path, module) of biases trained.
        tokens: path -> rows of a token table that are trained.
        matched: pattern -> count, for the report.
        notes: lines for the report.
        rows_ties: policy for trained rows of a shared table, where it is not the configuration's.
    """

    sites: Mapping[str, Choice]
    copies: list[str] = field(default_factory=list)
    biases: list[tuple[str, nn.Module]] = field(default_factory=list)
    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)
    matched: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows_ties: str | None = None


def _refuse_readers(tree: View, path: str) -> None:
    """Refuse modules whose parent reads their weight directly and cannot be told not to."""
    parent = tree.parent(path)
    leaf = path.rpartition(".")[2]
    reader = type(parent).__name__
    if isinstance(parent, nn.MultiheadAttention) and kind_of(parent) is None:
        why = "attention with separate query, key and value weights multiplies out_proj.weight itself"
    elif "Mamba" in reader and leaf in ("out_proj", "x_proj", "dt_proj", "conv1d"):
        why = f"the fused kernels of {reader} read {leaf}.weight directly"
    else:
        return
    raise TargetError(
        "this module's adapter would be bypassed",
        where=f"module '{path}'",
        got=why,
        expected="a module whose own forward is called",
        hint=f"exclude=[{leaf!r}].",
    )


def _refuse_own(tree: View, path: str) -> None:
    """Refuse layers that bring a low-rank update of their own, such as those of ``deltaw.loralib``."""
    if path in tree.refusals:
        cls = type(tree.modules[path])
        raise TargetError(
            "this layer cannot wear an adapter",
            where=f"module '{path}'",
            got=f"{cls.__module__}.{cls.__name__}: {tree.refusals[path]}",
            expected="a layer without factors of its own",
            hint=f"deltaw.loralib.detach(model) gives the plain layers back first; or exclude={[path]!r}.",
        )


def _refuse_update(
    path: str, module: nn.Module, kind: Kind, config: LoRAConfig, update: Combined, parts: tuple[Part, ...]
) -> None:
    """Refuse a variant or an initialization that does not apply to this kind of module, by name."""
    other = update.applies_to(kind.name)
    chosen = INITIALIZATIONS[config.init]
    got, expected = None, "the whole module"
    if other is not None:
        got, hint = f"variant {other.name!r} on {kind.name}", "exclude this module, or leave the variant out."
        expected = f"{other.name!r} on {', '.join(sorted(other.kinds or ()))}"
    elif not chosen.anywhere and not kind.spectral:
        got, hint = f"init={config.init!r} on {kind.name}", "exclude this module, or use init='kaiming'."
        expected = " or ".join(repr(name) for name, init in INITIALIZATIONS.items() if init.anywhere)
    elif not update.scaled and parts[0].name:
        got, hint = f"variant {config.variant[0]!r} on slices", "name the whole module."
    if got is not None:
        raise TargetError(
            "this does not apply to this kind of module",
            where=f"module '{path}'",
            got=got,
            expected=expected,
            hint=hint,
        )
    weight = kind.weight(module)
    reads = update.reads or chosen.needs in ("weight", "gradient")
    if reads and not (isinstance(weight, torch.Tensor) and weight.is_floating_point()):
        raise TargetError(
            "this weight cannot be read, and the variant or initialization starts from it",
            where=f"module '{path}'",
            got=f"{type(weight).__name__} of {getattr(weight, 'dtype', 'no dtype')}",
            expected="a floating-point weight",
            hint="use the plain variant with init='kaiming', or a dequantized base.",
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
                expected="a module that can be adapted",
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


def finish(tree: View, config: LoRAConfig, chosen: Chosen) -> Plan:
    """Settle hazards, aliases and ties of what was chosen, and make the plan.

    Args:
        tree: the model.
        config: its policies apply.
        chosen: what was chosen.

    Returns:
        The plan.

    Raises:
        TargetError: if an adapter would be bypassed, or does not apply to a module.
        TieError: if a weight has several users and the policy refuses it.
    """
    update = variant_of(config.variant)
    sites: list[Site] = []
    taken: set[int] = set()
    for path, choice in chosen.sites.items():
        module = tree.modules[path]
        if id(module) in taken or not choice.parts:
            continue
        site = _site(tree, config, update, chosen.sites, path)
        taken |= {id(twin) for _, twin, _ in site.twins}
        sites.append(site)
    for path in (*chosen.copies, *(path for path, _ in chosen.biases)):
        _refuse_readers(tree, path)
    whole = next((p for p in chosen.tokens if any(p == c or p.startswith(f"{c}.") for c in chosen.copies)), None)
    if whole is not None:
        raise TargetError(
            "rows of a table that is trained in full cannot be trained apart",
            where=f"module '{whole}'",
            got="train_also and train_rows",
            expected="one or the other",
            hint="drop one of the two.",
        )
    both = next((s.path for s in sites if s.path in chosen.tokens and not s.parts[0].update.linear), None)
    if both is not None:
        raise TargetError(
            "this variant cannot stand beside trained rows of the same table",
            where=f"module '{both}'",
            got=f"variant {config.variant[-1]!r} and train_rows",
            expected="one or the other",
            hint=f"exclude={[both]!r} takes the low-rank update off this module.",
        )
    for path in chosen.copies:
        _refuse_copy(path, tree.modules[path], tree.users, config.ties)
    policy = chosen.rows_ties or config.ties
    tokens = tuple(_rows(tree, policy, path, index) for path, index in chosen.tokens.items())
    touched = [site.path for site in sites] + chosen.copies + [path for path, _ in chosen.biases]
    return Plan(
        config=config,
        sites=tuple(sites),
        copies=tuple((path, tree.modules[path]) for path in chosen.copies),
        biases=tuple(chosen.biases),
        matched=chosen.matched,
        total=tree.total(),
        notes=tuple(chosen.notes + _remarks(sites, config) + _frozen(tree)),
        tokens=tokens,
        readers=tuple(readers_above(tree.modules, touched).items()),
    )


def _site(tree: View, config: LoRAConfig, update: Combined, chosen: Mapping[str, Choice], path: str) -> Site:
    """One site, its hazards refused and its ties settled."""
    module, kind, choice = tree.modules[path], tree.kinds[path], chosen[path]
    assert kind is not None
    _refuse_readers(tree, path)
    _refuse_own(tree, path)
    _refuse_update(path, module, kind, config, update, choice.parts)
    if choice.raw:
        _refuse_raw(path, module, kind, choice.parts)
    twins = _twins(path, module, _others(module, kind.weight(module), tree.users), config.ties)
    _refuse_two_minds(choice, path, [twin for twin, _, _ in twins], chosen)
    if twins and (len(choice.parts) > 1 or choice.parts[0].rows):
        twins = _twins(path, module, [User(p, m) for p, m, _ in twins], "refuse")
    _refuse_flip(path, kind, choice.parts, twins)
    n_in, n_out = kind.sizes(module)
    return Site(
        path=path,
        module=module,
        kind=kind,
        in_features=n_in,
        out_features=n_out,
        parts=choice.parts,
        pattern=choice.pattern,
        raw=choice.raw,
        aliases=tuple(tree.paths[id(module)][1:]),
        twins=twins,
    )


def _refuse_raw(path: str, module: nn.Module, kind: Kind, parts: tuple[Part, ...]) -> None:
    """Refuse what a weight that others read cannot be: more than two axes, bounded, or more than W + L R."""
    update, got = parts[0].update, None
    if not kind.readable:
        got = kind.name
    elif kind.bounded is not None and kind.plain is not None and getattr(module, "max_norm", None) is not None:
        got = "an embedding with max_norm"
    elif not update.linear or update.shift is not None:
        got = f"variant {', '.join(name for name in update.names if name != 'lora')}"
    elif parts[0].name:
        got = "slices"
    if got is not None:
        raise TargetError(
            "this cannot be adapted as a weight that others read",
            where=f"parameter '{path}.{kind.parameter}'",
            got=got,
            expected="the whole weight of a Linear or an Embedding, with a plain update",
            hint=f"name the module, {path!r}, if its own forward is called.",
        )


def _others(module: nn.Module, weight: object, users: Mapping[tuple[int, ...], list[User]]) -> list[User]:
    """Other users of a module's weight."""
    group = users.get(storage_key(weight), []) if isinstance(weight, torch.Tensor) else []
    return [user for user in group if user.module is not module]


def _refuse_flip(
    path: str, kind: Kind, parts: tuple[Part, ...], twins: tuple[tuple[str, nn.Module, Kind], ...]
) -> None:
    """Refuse a shared update that has more than A and B where its users read the weight in opposite directions."""
    flipped = next((p for p, _, other in twins if other.transposed != kind.transposed), None)
    names = [name for name in parts[0].variant if name != "lora"]
    if flipped is not None and names:
        raise TieError(
            "this variant cannot be shared between a lookup and a product",
            where=f"modules '{path}' and '{flipped}', which share a weight",
            got=f"variant {', '.join(names)}",
            expected="plain LoRA",
            hint='leave the variant out, exclude these modules, or use ties="separate" (cannot be merged).',
        )


def _rows(tree: View, policy: str, path: str, index: tuple[int, ...]) -> Rows:
    """Trained rows of one token table, and who else reads it."""
    module = tree.modules[path]
    if not isinstance(module, nn.Embedding) or not module.weight.is_floating_point() or module.max_norm is not None:
        bounded = isinstance(module, nn.Embedding) and module.max_norm is not None
        raise TargetError(
            "rows of this module cannot be trained",
            where=f"module '{path}'",
            got=f"{type(module).__name__} with max_norm" if bounded else type(module).__name__,
            expected="an embedding of floating-point rows, without max_norm",
            hint="name the token embedding, such as 'embed_tokens' or 'wte'.",
        )
    outside = [row for row in index if not 0 <= row < module.num_embeddings]
    if outside:
        raise TargetError(
            "no such row in the token table",
            where=f"train_rows of '{path}'",
            got=", ".join(map(str, outside[:5])),
            expected=f"rows from 0 to {module.num_embeddings - 1}",
            hint="resize the model's embeddings before attach, as for new tokens.",
        )
    # rows of one table are one thing to every reader of a file, so they are never trained apart
    others = _others(module, module.weight, tree.users)
    if others and policy != "share":
        raise TieError(
            "rows of a shared table are trained for all its users or not at all",
            where=f"module '{path}'",
            got=f"one weight for '{path}' and {', '.join(repr(user.path) for user in others)}, ties={policy!r}",
            expected='ties="share"',
            hint='use ties="share" (--ties share), so that the head follows.',
        )
    twins = _twins(path, module, others, "share")
    odd = next((p for p, _, kind in twins if kind.name != "Linear"), None)
    if odd is not None:
        raise TieError(
            "trained rows cannot be shared with this module",
            where=f"module '{odd}'",
            got=type(tree.modules[odd]).__name__,
            expected="a linear head",
            hint="untie the weights first.",
        )
    return Rows(path=path, module=module, index=index, twins=twins)


def _frozen(tree: View) -> list[str]:
    """A word on low-rank layers that are a part of the base: attach freezes all of it."""
    own = list(tree.refusals)
    if not own:
        return []
    return [
        f"{plural(len(own), 'layer')} of deltaw.loralib belong to the base and are frozen with it ('{own[0]}', ...); "
        "deltaw.loralib.mark_only_lora_as_trainable trains them beside the adapter"
    ]


def _remarks(sites: list[Site], config: LoRAConfig) -> list[str]:
    notes = []
    dry = {site.kind.name: [s.path for s in sites if s.kind is site.kind] for site in sites if not site.kind.droppable}
    raw = [site.path for site in sites if site.raw and site.kind.droppable]
    if config.dropout:
        notes += [f"dropout does not apply to weights that others read: {', '.join(raw)}"] if raw else []
        notes += [f"dropout does not apply to {kind}: {', '.join(paths)}" for kind, paths in dry.items()]
    for site in sites:
        if site.aliases:
            notes.append(f"'{site.path}' is one module under {len(site.aliases) + 1} names; it gets one adapter")
        if site.twins:
            notes.append(f"'{site.path}' shares its update with {', '.join(repr(path) for path, _, _ in site.twins)}")
        if any(part.rank > min(site.in_features, part.out_features) for part in site.parts):
            notes.append(f"'{site.path}' has a rank above its full rank {min(site.in_features, site.out_features)}")
    return notes
