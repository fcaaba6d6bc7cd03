"""``save_pretrained`` of an attached transformers model: adapters only, in a form that every stock trainer resumes.

One directory serves three readers::

    adapter_config.json          PEFT's directory of the active adapter: what deltaw.load, PEFT, and
    adapter_model.safetensors    transformers' from_pretrained (which then loads the base it names) read
    model.safetensors            every attached adapter under the model's own state-dict keys: what a Trainer's
                                 resume_from_checkpoint and load_best_model_at_end read
    NAME/                        with several adapters: the PEFT directory of each

The base is never written, and neither is its ``config.json``: with it, ``from_pretrained`` would take the directory for
a whole model. ``model.safetensors`` is guarded (see ``carry``), so that whatever takes it for a whole model's weights
fails instead of filling the absent ones at random. For the same reason a directory of a whole model is refused. A
merged or detached model has transformers' own ``save_pretrained`` again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deltaw.carry import guarded, is_adapter_key
from deltaw.disk import safetensors_file, write_files
from deltaw.errors import CheckpointError, StateError
from deltaw.read import CONFIG, WEIGHTS
from deltaw.record import Record, record_of
from deltaw.tree import base_modules

__all__ = ["STATE", "StandIn", "stand_down", "stand_in"]

STATE = "model.safetensors"
"""The file a Trainer resumes from."""

_SAVE = "save_pretrained"
_QUANTIZED_FLAG = "_hf_peft_config_loaded"
_MARK = {"deltaw": "adapters only"}
# no "format" entry: transformers before 5 then refuses the file by itself
_WHOLE = ("config.json", f"{STATE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "push_to_hub": (False, None),
    "variant": (None,),
    "save_peft_format": (True,),
    "distributed_checkpoint": (False,),
    "safe_serialization": (True,),
}
_UNUSED = ("max_shard_size", "token", "save_original_format")
"""Options about the base's own files, of which none is written."""


class StandIn:
    """What an attached model carries as its ``save_pretrained``.

    Args:
        model: the model; a copy of it gets a stand-in of its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.flagged = False

    def __call__(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """Write the adapters; see the top of this file.

        Args:
            save_directory: made if absent; it must not hold a whole model.
            is_main_process: False writes nothing.
            state_dict: values to write instead of the model's own, as a gathered state dict of a sharded model.
            **options: of transformers' method; those that ask for something else than adapters are refused.

        Raises:
            StateError: if parameters of the base are being trained, which an adapter's files cannot hold, an option
                asks for what cannot be done, or values are parts of a sharded model's.
            CheckpointError: if the directory holds a whole model, a value is not finite, or the disk refuses.
        """
        record = record_of(self.model, _SAVE)
        record.require_unmerged(_SAVE)
        record.require_in_place(self.model, _SAVE)
        place = Path(save_directory)
        _refuse_options(options)
        _refuse_trained_base(self.model)
        _refuse_whole(place)
        state = _adapter_state(self.model, state_dict)
        if is_main_process:
            with _holding(self.model, {} if state_dict is None else state):
                _write(self.model, record, place, state)


def _write(model: nn.Module, record: Record, place: Path, state: Mapping[str, Tensor]) -> None:
    # checkpoint stands above attach, which stands above this file
    from deltaw.checkpoint import save

    several = len(record.adapters) > 1
    active = [name for name, weight in record.current() if weight == 1.0]
    chosen = active[0] if len(active) == 1 == len(record.current()) else None
    if not several:
        chosen = next(iter(record.adapters))
    for name in record.adapters if several else ():
        save(model, place / name, name)
    if chosen is not None:
        save(model, place, chosen)
    else:
        # with a mix or the base alone in force no single adapter may pass for the model
        for file in (CONFIG, WEIGHTS):
            (place / file).unlink(missing_ok=True)
    write_files(place, {STATE: safetensors_file(guarded(state, model), _MARK)})


def _adapter_state(model: nn.Module, given: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Every adapter tensor under its own key; from a given state dict where there is one."""
    own = {key: None for key in model.state_dict() if is_adapter_key(key)}
    source: Mapping[str, Tensor] = model.state_dict() if given is None else given
    bare = {_bare(key, own): value for key, value in source.items() if is_adapter_key(key)}
    absent = [key for key in own if key not in bare]
    if absent:
        raise StateError(
            "the state dict given to save_pretrained lacks the adapter",
            where=f"'{absent[0]}'",
            got=f"{len(absent)} of {len(own)} adapter tensors absent",
            expected="model.state_dict(), or none",
            hint="deltaw.merge(model) first writes a merged model; deltaw.detach(model) first writes the base.",
        )
    parts = [key for key in own if hasattr(bare[key], "full_tensor")]
    if parts:
        raise StateError(
            "save_pretrained needs the whole tensors of a sharded model",
            where=f"'{parts[0]}'",
            got=f"{len(parts)} tensors of which this process holds a part",
            expected="a gathered state dict",
            hint="every process: state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)); "
            "the first: model.save_pretrained(directory, state_dict=state).",
        )
    return {key: bare[key] for key in own}


def _bare(key: str, own: Mapping[str, None]) -> str:
    """A key without what compilation and data-parallel wrappers put before it."""
    while key not in own and key.startswith(("_orig_mod.", "module.")):
        key = key.partition(".")[2]
    return key


@contextmanager
def _holding(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the adapters' tensors be others for a moment."""
    kept: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for key, value in values.items():
            path, _, leaf = key.rpartition(".")
            owner = model.get_submodule(path)
            homes: tuple[dict[str, Any], ...] = (owner._parameters, owner._buffers)
            home = next((home for home in homes if leaf in home), None)
            if home is not None:
                kept.append((home, leaf, home[leaf]))
                trained = isinstance(home[leaf], nn.Parameter)
                home[leaf] = nn.Parameter(value.detach(), requires_grad=False) if trained else value.detach()
        yield
    finally:
        for home, leaf, tensor in kept:
            home[leaf] = tensor


def _refuse_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name in _UNUSED or value in _NEUTRAL.get(name, ()):
            continue
        raise StateError(
            "save_pretrained of an attached model writes adapters, and this option asks for something else",
            where=f"option {name!r}",
            got=repr(value),
            expected="save_pretrained(directory)",
            hint="save first, then upload or convert the directory; deltaw.merge(model) first gives transformers' own.",
        )


def _refuse_trained_base(model: nn.Module) -> None:
    """Weights of the base that were trained by hand would be lost with the base."""
    for path, module in base_modules(model):
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                raise StateError(
                    "save_pretrained writes adapters only, and a parameter of the base is being trained",
                    where=f"'{path}.{key}'".replace("'.", "'"),
                    got="requires_grad=True",
                    expected="a frozen base",
                    hint="train the module as train_also of the configuration, or freeze it: requires_grad_(False).",
                )


def _refuse_whole(place: Path) -> None:
    """Refuse a directory of a whole model: its weights would be overwritten, or the adapter taken for them."""
    if place.is_file():
        found: str | None = "a file"
    else:
        found = next((name for name in _WHOLE if (place / name).exists()), None)
        if found is None and (place / STATE).exists() and not _is_ours(place / STATE):
            found = STATE
    if found is not None:
        raise CheckpointError(
            "cannot save adapters into the directory of a whole model",
            where=str(place),
            got=found,
            expected="an empty or absent directory, or one of adapters",
            hint="choose another directory, as output_dir of the trainer too.",
        )


def _is_ours(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return (opened.metadata() or {}).get("deltaw") == _MARK["deltaw"]
    except SafetensorError:
        return False


def _refuse_part(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``save_pretrained`` of a model inside the attached one, which would write a base with stray keys."""
    raise StateError(
        "save_pretrained of a part of an attached model would lose its adapters",
        where="a model inside the one given to attach",
        got=f"save_pretrained({', '.join(map(repr, args))})",
        expected="the whole model",
        hint="call save_pretrained on the model given to attach, or deltaw.merge(model) first.",
    )


def stand_in(root: nn.Module) -> None:
    """Answer for an attached transformers model; any other model is left alone.

    Besides ``save_pretrained``, transformers' Trainer refuses to train a quantized base unless it was told that
    adapters are on it, which they are.

    Args:
        root: the model that wears adapters.
    """
    if not callable(getattr(root, _SAVE, None)):
        return
    root.__dict__[_SAVE] = here = StandIn(root)
    for _, part in base_modules(root):
        if part is not root and callable(getattr(type(part), _SAVE, None)):
            part.__dict__[_SAVE] = _refuse_part
    if getattr(root, "is_quantized", False) and not getattr(root, _QUANTIZED_FLAG, False):
        root.__dict__[_QUANTIZED_FLAG] = here.flagged = True


def stand_down(root: nn.Module) -> None:
    """Undo ``stand_in``.

    Args:
        root: the model.
    """
    here = root.__dict__.get(_SAVE)
    if isinstance(here, StandIn):
        del root.__dict__[_SAVE]
        if here.flagged:
            del root.__dict__[_QUANTIZED_FLAG]
        for _, part in base_modules(root):
            if part.__dict__.get(_SAVE) is _refuse_part:
                del part.__dict__[_SAVE]
