"""Carrying a plan out: every tensor beside its weight, every reader told."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from deltaw.factors import Shared, site_lora
from deltaw.layer import device_of, put_on
from deltaw.record import Record
from deltaw.sites import Plan
from deltaw.tokens import TokenRows
from deltaw.worn import Beside, FullCopy, Reader, Twin, trained_bias

__all__ = ["place", "touched"]


def touched(made: Plan) -> list[tuple[str, nn.Module]]:
    """Every module whose class a plan changes.

    Args:
        made: the plan.

    Returns:
        (path, module), possibly repeated.
    """
    found = [(site.path, site.module) for site in made.sites] + [*made.copies, *made.biases, *made.readers]
    found += [(rows.path, rows.module) for rows in made.tokens]
    twins = [*(site.twins for site in made.sites), *(rows.twins for rows in made.tokens)]
    return found + [(path, module) for group in twins for path, module, _ in group]


def place(made: Plan, name: str, record: Record, data: Mapping[str, Tensor]) -> None:
    """Put an adapter's modules beside the weights they adapt.

    Args:
        made: the plan.
        name: the adapter's name.
        record: the model's record.
        data: path -> what was gathered for initializations that start from data.
    """
    shared = _shared(made)
    for site in made.sites:
        container = put_on(site.path, site.module, record, site.raw)
        entry = site_lora(site, made.config, device_of(site.module), shared, data.get(site.path))
        # a new module is in training mode, and its name was checked
        container._modules[name] = entry if site.module.training else entry.eval()
        if shared is not None and site is made.sites[0]:
            entry.add_module("shared_tensors", shared)
        for path, module, kind in site.twins:
            twin = Twin(entry, flipped=kind.transposed != site.kind.transposed)
            put_on(path, module, record).add_module(name, twin.train(module.training))
    for path, module in made.copies:
        copy = FullCopy(module).train(module.training)
        put_on(path, module, record).add_module(name, copy)
    _tokens(made, name, record)
    for path, module in made.biases:
        container, bias = put_on(path, module, record), module._parameters["bias"]
        assert bias is not None
        if name in container._modules:
            container._modules[name].bias = trained_bias(bias)  # type: ignore[union-attr]
        else:
            container.add_module(name, Beside(bias=bias).train(module.training))
    for path, module in made.readers:
        container = put_on(path, module, record)
        if name not in container._modules:
            container.add_module(name, Reader().train(module.training))


def _tokens(made: Plan, name: str, record: Record) -> None:
    """Trained rows, beside a low-rank update of the same table where there is one."""
    for rows in made.tokens:
        container = put_on(rows.path, rows.module, record)
        tokens = TokenRows(rows.module.weight, rows.index).train(rows.module.training)  # type: ignore[arg-type]
        entry = container._modules.get(name)
        if entry is None:
            entry = Beside(tokens=tokens).train(rows.module.training)
            container.add_module(name, entry)
        else:
            # where the table's update belongs to the head, the rows stand beside it there, and the table reads them
            (entry.primary[0] if isinstance(entry, Twin) else entry).tokens = tokens
        for path, module, kind in rows.twins:
            other = put_on(path, module, record)
            if name not in other._modules:
                twin = Twin(entry, flipped=not kind.transposed)  # type: ignore[arg-type]
                other.add_module(name, twin.train(module.training))


def _shared(made: Plan) -> Shared | None:
    """Tensors that all sites read, large enough for the largest."""
    first = made.sites[0] if made.sites else None
    if first is None or first.parts[0].update.shared is None:
        return None
    n_in = max(site.in_features for site in made.sites)
    n_out = max(site.out_features for site in made.sites)
    seed = 0 if made.config.seed is None else made.config.seed
    tensors = first.parts[0].update.shared(n_in, n_out, first.parts[0].rank, seed)
    return Shared(tensors, device_of(first.module))
