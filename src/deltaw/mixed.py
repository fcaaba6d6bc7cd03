"""The output of a layer for a batch whose rows belong to different adapters.

Adapters that are plain updates of the whole weight are stacked and applied in one product (``stacked``), out of the
model's bank where it has one; the others, and layers that are no plain product, are run rows by rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deltaw.dropout import drop_apart
from deltaw.factors import WholeLoRA
from deltaw.functional import compute_dtype
from deltaw.layers import Kind
from deltaw.routing import Groups, Route, Seats, wrong_batch
from deltaw.stacked import add_stacked, look_up_stacked
from deltaw.tree import CONTAINER
from deltaw.worn import FullCopy, Reader

__all__ = ["is_stackable", "mixed", "stack_factors"]

Terms = Callable[[nn.Module, "Kind | None", list[tuple[Any, Any]], Tensor, Tensor], Tensor]
"""(module, kind, adapters and weights, output, input) -> output: how one choice of adapters is applied to some rows."""


def is_stackable(entry: Any) -> bool:
    """Whether an adapter at a module is one plain update of the whole weight, with nothing beside it.

    Args:
        entry: the adapter's module there.

    Returns:
        True if it is.
    """
    return isinstance(entry, WholeLoRA) and entry.plain and entry.tokens is None and entry.bias is None


def stack_factors(entries: Sequence[WholeLoRA | None], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of several adapters side by side, shorter ranks padded with zeros; gradients reach each adapter's own.

    Args:
        entries: the adapters at one module; None for one that leaves it alone, at least one that does not.
        dtype: of the result.

    Returns:
        A of shape (S, R, I), B of shape (S, R, O), and scalings of shape (S), at least fp32.
    """
    known = [entry for entry in entries if entry is not None]
    rank, like = max(entry.part.rank for entry in known), known[0]
    zeros = like.lora_A.new_zeros(rank, like.lora_A.shape[1]), like.lora_B.new_zeros(rank, like.lora_B.shape[0])
    As, Bs = [], []
    for entry in entries:
        missing = 0 if entry is None else rank - entry.part.rank
        lora_A, lora_B = zeros if entry is None else (entry.lora_A, entry.lora_B.t())
        As.append(F.pad(lora_A, (0, 0, 0, missing)) if missing else lora_A)
        Bs.append(F.pad(lora_B, (0, 0, 0, missing)) if missing else lora_B)
    factors = [0.0 if entry is None else entry.part.scaling for entry in entries]
    scalings = torch.tensor(factors, dtype=compute_dtype(dtype))
    return torch.stack(As).to(dtype), torch.stack(Bs).to(dtype), scalings.to(like.lora_A.device)


def mixed(
    module: nn.Module, kind: Kind | None, route: Route | Seats, out: Tensor, args: Any, terms: Terms, fresh: bool
) -> Tensor:
    """An output whose rows belong to different adapters; rows of the base alone stay as they are, bit for bit.

    Args:
        module: a LoRA layer.
        kind: its kind, if it has one.
        route: which adapter each row or token belongs to.
        out: the base's output, any shape that begins with the route's.
        args: what the layer was called with, its input first.
        terms: how one choice of adapters is applied to some rows.
        fresh: the output belongs to nobody else.

    Returns:
        Tensor like ``out``.

    Raises:
        StateError: if the batch has another shape than the route.
    """
    if torch.compiler.is_compiling():
        return _traced(module, kind, route if isinstance(route, Seats) else route.seats, out, args, terms)
    assert isinstance(route, Route)
    container: Any = module._modules[CONTAINER]
    axes, x = route.axes(args[0], out, container.path), args[0]
    fresh = fresh and not out._is_view() and out.is_contiguous()
    stacks = _stacks(module, kind) and _fits(kind, out, x)
    if stacks and container.serves(route.seats):
        names, slots = route.slots_in(container.stack)
        groups = route.groups(names, out.device)
        if len(names) > 1 or not groups.full:
            factors = container.stack.pick(slots, out.dtype)
            return _together(module, groups, factors, out, _flat(x, axes), fresh) if names else out
    present = {name: container._modules[name] for name, _ in route if name in container._modules}
    own = {name: entry for name, entry in present.items() if stacks and is_stackable(entry)}
    if own:
        groups, entries = route.groups(tuple(own), out.device), list(own.values())
        if groups.full and len(own) == 1:
            return terms(module, kind, [(entries[0], 1.0)], out, x)
        rows = _dropped(entries, groups, _flat(x, axes))
        out = _together(module, groups, _factors(container, own, out.dtype), out, rows, fresh)
    for name, entry in present.items():
        if name not in own and not isinstance(entry, Reader):
            rows = route.groups((name,), out.device).parts()[0]
            out = _by_itself(module, kind, entry, rows, out, args, axes, terms)
    return out


def _stacks(module: Any, kind: Kind | None) -> bool:
    """Whether updates of a module are plain products, or plain lookups."""
    if kind is None or module._modules[CONTAINER].raw:
        return False
    # a bound on looked-up rows, and counts of tokens within an adapter's own rows, are done rows by rows
    return kind.product is not None or (kind.lookup and module.max_norm is None and not module.scale_grad_by_freq)


def _fits(kind: Any, out: Tensor, x: Tensor) -> bool:
    """Whether the stacked products apply; function transforms go rows by rows."""
    return _one_dtype(kind, out, x) and torch._C._functorch.peek_interpreter_stack() is None


def _one_dtype(kind: Any, out: Tensor, x: Tensor) -> bool:
    """Whether input and output have one dtype, or autocast's."""
    return bool(kind.lookup) or out.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)


def _flat(tensor: Any, axes: int) -> Any:
    """The route's axes as one."""
    return tensor.flatten(0, 1) if axes == 2 and isinstance(tensor, Tensor) else tensor


def _factors(container: Any, entries: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Stacked factors: the bank's own where no gradient is wanted, else a stack that gradients go through."""
    wanted = torch.is_grad_enabled() and any(entry.lora_B.requires_grad for entry in entries.values())
    slots = {} if wanted or container.stack is None else container.stack.slots
    if all(name in slots for name in entries):
        found: tuple[Tensor, Tensor, Tensor] = container.stack.pick([slots[name] for name in entries], dtype)
        return found
    return stack_factors(list(entries.values()), dtype)


def _together(
    module: Any, groups: Groups, factors: tuple[Tensor, Tensor, Tensor], out: Tensor, x: Tensor, fresh: bool
) -> Tensor:
    """Several adapters in one product; ``x`` begins with the batch's rows, or its tokens where these are routed."""
    A, B, scalings = factors
    wide = out.reshape(len(groups.index), -1, out.shape[-1])
    layout = groups.layout(wide, A.shape[2], A.shape[1], B.shape[2])
    with torch.autocast(out.device.type, enabled=False):
        if isinstance(module, nn.Embedding):
            h = _looked_up(module, x.reshape(len(x), -1), A, scalings, groups.index.clamp_min(0))
            y = layout.leave(wide, layout.enter(h), B, fresh)
        else:
            y = add_stacked(wide, x.reshape(len(x), -1, x.shape[-1]).to(out.dtype), A, B, scalings, layout, fresh)
    # where the sum was made in place, the output is returned as the tensor that it is
    return out if fresh else y.view(out.shape)


def _looked_up(module: Any, ids: Tensor, A: Tensor, scalings: Tensor, group: Tensor) -> Tensor:
    """Columns picked by token, scaled as the table's rows and the update are."""
    h = look_up_stacked(ids, A, group, module.padding_idx) * scalings[group].view(-1, 1, 1)
    scale = getattr(module, "embed_scale", None)
    return (h if scale is None else h * scale).to(A.dtype)


def _dropped(entries: list[Any], groups: Groups, x: Tensor) -> Tensor:
    """The input under each adapter's own dropout, on its own rows: the masks it would draw alone."""
    masks = [entry.mask() for entry in entries] if any(entry.training and entry.dropout for entry in entries) else []
    if not any(masks):
        return x
    anchor = next((p for entry in entries for p in entry.parameters() if p.requires_grad), None)
    drawn = [(mask, rows) for mask, rows in zip(masks, groups.parts(), strict=True) if mask is not None]
    return drop_apart(x, anchor, drawn)


def _by_itself(
    module: nn.Module, kind: Kind | None, entry: Any, rows: Tensor, out: Tensor, args: Any, axes: int, terms: Terms
) -> Tensor:
    """One adapter on its rows."""
    flat = _flat(out, axes)
    own_args = [_flat(arg, axes).index_select(0, rows) if isinstance(arg, Tensor) else arg for arg in args]
    if isinstance(entry, FullCopy):
        own = entry.module(*own_args)
    else:
        own = terms(module, kind, [(entry, 1.0)], flat.index_select(0, rows), own_args[0])
    found: Tensor = flat.index_copy(0, rows, own.to(out.dtype)).view(out.shape)
    return found


def _traced(module: Any, kind: Kind | None, seats: Seats, out: Tensor, args: Any, terms: Terms) -> Tensor:
    """The same in a compiled graph: every attached adapter is in it, and tensors say which rows are whose."""
    container, x, count = module._modules[CONTAINER], args[0], seats.place.shape[0]
    axes = 2 if seats.tokens and x.shape[0] * seats.tokens == count else 1
    if (x.shape[0] if axes == 1 else x.shape[0] * x.shape[1]) != count:
        raise wrong_batch(container.path, f"an input of shape {tuple(x.shape)}", f"{count} rows or tokens")
    if container.serves(seats):
        return _all_places(module, seats, [], out, x)
    entries: list[Any] = [None if name is None else container._modules.get(name) for name in seats.names]
    stacked = _stacks(module, kind) and _one_dtype(kind, out, x)
    alike = [entry if stacked and is_stackable(entry) else None for entry in entries]
    if any(entry is not None for entry in alike):
        out = _all_places(module, seats, alike, out, x)
    for place, entry in enumerate(entries):
        if entry is not None and alike[place] is None and not isinstance(entry, Reader):
            run = entry.module if isinstance(entry, FullCopy) else None
            own: Tensor = terms(module, kind, [(entry, 1.0)], out, x) if run is None else run(*args)
            mine = (seats.place.to(out.device) == place).view(out.shape[:axes])
            out = torch.where(mine.view(*mine.shape, *[1] * (out.dim() - axes)), own.to(out.dtype), out)
    return out


def _all_places(module: Any, seats: Seats, entries: list[Any], out: Tensor, x: Tensor) -> Tensor:
    """The adapters of all places in one product: the bank's where none are given."""
    container, count = module._modules[CONTAINER], seats.place.shape[0]
    A, B, scalings = stack_factors(entries, out.dtype) if entries else container.stack.whole(out.dtype)
    wide = out.reshape(count, -1, out.shape[-1])
    layout = seats.layout(wide, A.shape[2], A.shape[1], B.shape[2])
    place = seats.place.to(out.device)
    with torch.autocast(out.device.type, enabled=False):
        if isinstance(module, nn.Embedding):
            h = layout.enter(_looked_up(module, x.reshape(count, -1), A, scalings, place.clamp_min(0)))
            return layout.leave(wide, h, B, False).view(out.shape)
        rows = x.reshape(count, -1, x.shape[-1]).to(out.dtype)
        if module.training and any(entry is not None and entry.dropout for entry in entries):
            # as everywhere in compiled graphs, torch's own generator draws here
            shares = torch.tensor([0.0 if entry is None else entry.dropout for entry in entries], device=out.device)
            share = shares[place.clamp_min(0)].view(-1, 1, 1)
            rows = rows * ((torch.rand_like(rows, dtype=torch.float32) >= share) / (1 - share)).to(rows.dtype)
        return add_stacked(wide, rows, A, B, scalings, layout).view(out.shape)
