"""What a model with a baseline carries: its method, its pieces, the copies that are trained and the originals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from deltaw.baselines.method import NAME, Method, Piece
from deltaw.errors import ModelError, StateError, nearest
from deltaw.tree import base_modules, require_model

__all__ = ["Swap", "Worn", "expand", "find_worn", "make_swaps", "worn_of"]

RECORD = "_deltaw_baseline"


@dataclass(kw_only=True)
class Swap:
    """One parameter of the base and the copy that is trained in its place.

    Args:
        places: (module path, attribute) of every module that holds it.
        original: the base's own object, never written to but by ``merge``.
        trained: the copy, in the base's dtype.
        head: it belongs to a module of ``train_also``, which the paper trains and does not count.
        kept: the original's values while the copy's stand in it; None while it is not merged.
    """

    places: tuple[tuple[str, str], ...]
    original: Parameter
    trained: Parameter
    head: bool = False
    kept: Tensor | None = None

    def put(self, root: nn.Module, parameter: Parameter) -> None:
        """Let every place hold the copy, or the original.

        Args:
            root: the model.
            parameter: one of the two.
        """
        for path, attribute in self.places:
            root.get_submodule(path)._parameters[attribute] = parameter


@dataclass(kw_only=True)
class Worn:
    """The record of a model with a baseline.

    Args:
        method: what was attached.
        places: paths of the modules that have a piece.
        swaps: parameter name -> original and copy.
        flags: parameter name -> requires_grad before attach.
        fingerprint: of the base, read before anything was put on.
        metadata: strings that ``save`` writes beside the settings.
        merged: whether the copies' values stand in the originals.
        off: how many ``disabled`` blocks are open.
    """

    method: Method
    places: tuple[str, ...]
    swaps: dict[str, Swap]
    flags: dict[str, bool]
    fingerprint: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    merged: bool = False
    off: int = 0

    def pieces(self, root: nn.Module) -> Iterator[tuple[str, Piece]]:
        """Walk the pieces.

        Args:
            root: the model.

        Yields:
            (module path, piece).

        Raises:
            StateError: if a module with a piece was replaced.
        """
        for path in self.places:
            piece = root.get_submodule(path)._modules.get(NAME)
            if not isinstance(piece, Piece):
                raise StateError(
                    "a module of the baseline was replaced since the attach",
                    where=f"module '{path}'",
                    got="a module without what was attached",
                    expected="the module that attach found",
                    hint="put the old module back; resize or replace modules before attach.",
                )
            yield path, piece

    def tensors(self, root: nn.Module) -> dict[str, Parameter]:
        """Name everything that is trained, but for a LoRA adapter's factors.

        Args:
            root: the model.

        Returns:
            Parameter name -> parameter: copies under the base's names, pieces under their own.
        """
        found = {name: swap.trained for name, swap in self.swaps.items()}
        for path, piece in self.pieces(root):
            prefix = f"{path}.{NAME}." if path else f"{NAME}."
            found |= {prefix + name: parameter for name, parameter in piece.named_parameters()}
        return found

    def require_unmerged(self, verb: str) -> None:
        """Refuse a verb while the copies' values stand in the base.

        Args:
            verb: what was asked for.

        Raises:
            StateError: if the model is merged.
        """
        if self.merged:
            raise StateError(
                f"cannot {verb} while the baseline is merged into the base",
                where=f"merged: {self.method.name}",
                got="a merged model",
                expected="the base beside what is trained",
                hint="call deltaw.baselines.unmerge(model) first.",
            )


def find_worn(model: nn.Module) -> Worn | None:
    """The record of a model, if it wears a baseline.

    Args:
        model: the model given to ``attach``, or a wrapper of it.

    Returns:
        The record or None.
    """
    found = require_model(model).__dict__.get(RECORD)
    return found if isinstance(found, Worn) else None


def worn_of(model: nn.Module, verb: str) -> Worn:
    """The record of a model that must wear a baseline.

    Args:
        model: the model given to ``attach``, or a wrapper of it.
        verb: what is to be done, for the message.

    Returns:
        The record.

    Raises:
        StateError: if no baseline is attached.
    """
    found = find_worn(model)
    if found is None:
        raise StateError(
            f"cannot {verb}: the model wears no baseline",
            where=type(require_model(model)).__name__,
            got="a plain model, or one with LoRA adapters alone",
            expected="a model that deltaw.baselines.attach or load was called on",
            hint="pass the same model object; the verbs of LoRA adapters are deltaw.attach, deltaw.save and so on.",
        )
    return found


def expand(root: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Find the parameters of modules that are trained in full.

    Args:
        root: the model.
        names: dotted module paths, or their endings.

    Returns:
        Parameter names.

    Raises:
        ModelError: if a name is no module, or has no parameters.
    """
    paths = [path for path, _ in base_modules(root) if path]
    found: dict[str, None] = {}
    for name in names:
        chosen = tuple(f"{path}." for path in paths if path == name or path.endswith(f".{name}"))
        inside = [key for key, _ in root.named_parameters() if key.startswith(chosen)] if chosen else []
        if not inside:
            raise ModelError(
                f"train_also names nothing that has parameters: {name!r}",
                where="train_also",
                got=repr(name),
                expected=f"the path of a module or its ending; closest: {nearest(name, paths)}",
                hint="name a module, such as the classifier's head.",
            )
        found |= dict.fromkeys(inside)
    return tuple(found)


def make_swaps(root: nn.Module, tuned: tuple[str, ...], heads: tuple[str, ...]) -> dict[str, Swap]:
    """Copy the parameters that are trained; nothing is put in place.

    Args:
        root: the model.
        tuned: names of the method's parameters.
        heads: names of the parameters of ``train_also``.

    Returns:
        Parameter name -> original and copy.

    Raises:
        ModelError: if a parameter has no floating values, such as a quantized weight.
    """
    wanted = dict.fromkeys(tuned, False) | {name: name not in tuned for name in heads}
    if not wanted:
        return {}
    holders: dict[int, list[tuple[str, str]]] = {}
    for path, module in base_modules(root):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((path, attribute))
    found = {}
    for name, parameter in root.named_parameters():
        if name not in wanted:
            continue
        if not parameter.is_floating_point() or type(parameter) is not Parameter:
            raise ModelError(
                "this parameter cannot be trained",
                where=name,
                got=f"{type(parameter).__name__} of {str(parameter.dtype).removeprefix('torch.')}",
                expected="a plain floating-point parameter",
                hint="load the base without quantization, or choose a method that leaves its weights alone.",
            )
        with torch.no_grad():
            copy = Parameter(parameter.detach().clone())
        places = tuple(holders[id(parameter)])
        found[name] = Swap(places=places, original=parameter, trained=copy, head=wanted[name])
    return found
