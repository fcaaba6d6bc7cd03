"""Adapter files damaged in every way that comes to mind, and configurations and patterns of any values.

Whatever comes in: the only exception is an error of deltaw, and after it the model is what it was, bit for bit. What is
accepted runs, saves, and comes off again without a trace. ``DELTAW_FUZZ=5000`` runs so many random examples of each.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

import builders
import deltaw as dw
from deltaw.errors import DeltawError
from deltaw.read import read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MANY = int(os.environ.get("DELTAW_FUZZ", "0"))


def fuzzing(count: int) -> Callable[[Any], Any]:
    """The same examples on every run, unless more are asked for."""
    return settings(
        max_examples=MANY or count,
        derandomize=not MANY,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.q(x) + self.k(x) + self.v(x))


class Net(nn.Module):
    """Every kind of layer."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.layers = nn.ModuleList(Block() for _ in range(2))
        self.c_attn = builders.conv1d(8, 24)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 12, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        x = x + self.c_attn(x)[..., 16:] + self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.attn(x, x, x, need_weights=False)[0])


IDS = torch.tensor([[1, 2, 2, 0], [9, 0, 3, 11]])


def net(tied: bool = False) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net(tied).eval()


KINDS: dict[str, dict[str, Any]] = {
    "plain": {"targets": ["q", "v"], "rank_pattern": {"layers.1.q": 3}, "alpha_pattern": {"v": 5.0}},
    "kinds": {"targets": ["embed", "conv", "attn"], "rank": 4},
    "slices": {"targets": ["c_attn[q,v]", "attn[k]"], "rank_pattern": {"c_attn[v]": 1}},
    "dora": {"targets": ["q", "conv", "embed"], "variant": "dora"},
    "dora-bias": {"targets": ["q", "attn", "c_attn[q]"], "variant": ["dora", "lora_bias"]},
    "bias-on-b": {"targets": ["q", "conv"], "variant": "lora_bias", "rank_stabilized": True},
    "vera": {"targets": ["q", "c_attn"], "variant": "vera", "alpha": 16},
    "rows": {"targets": ["q", "embed"], "train_rows": {"embed": [2, 9]}},
    "whole": {"targets": ["layers.0.q"], "train_also": ["head", "layers.1.k"], "bias": "lora_only"},
    "biases": {"targets": ["layers.0.q", "c_attn"], "bias": "all", "exclude": ["c_attn"]},
    "pissa": {"targets": ["q", "c_attn[v]"], "init": "pissa"},
    "tied": {"targets": ["embed", "q"], "ties": "share"},
}
"""Adapters to damage: every kind of site, variant and start."""


@functools.cache
def written(kind: str) -> tuple[dict[str, Tensor], dict[str, str], dict[str, Any]]:
    """The tensors, metadata and configuration of one adapter."""
    model = net(kind == "tied")
    config = KINDS[kind] if kind != "biases" else {k: v for k, v in KINDS[kind].items() if k != "exclude"}
    config = {**config, "bias": "none"} if kind == "biases" else config
    dw.attach(model, dw.LoRAConfig(**{"rank": 2, "alpha": 6, "seed": 1, **config}))
    with torch.no_grad():
        for _, p in dw.trainable(model):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2)
    with tempfile.TemporaryDirectory() as directory:
        dw.save(model, directory)
        tensors, metadata = read_tensors(Path(directory))
        return tensors, metadata, json.loads((Path(directory) / CONFIG).read_text())


def state(model: nn.Module) -> tuple[Any, ...]:
    """Everything that a refusal must leave alone."""
    modules = [(path, id(part), type(part), part.training, sorted(vars(part))) for path, part in model.named_modules()]
    flags = [(name, id(p), p.requires_grad, p.dtype) for name, p in model.named_parameters()]
    return modules, flags, builders.bits(model), list(model.state_dict()), torch.get_rng_state().numpy().tobytes()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["q", "embed", "attn", "head", "layers.0.q", "all-linear", "(", ".*", "LORA", "VERA", "all"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["q", "attn", "("]), inner, max_size=2),
    max_leaves=5,
)
"""Values of every kind that JSON knows, those that mean something among them."""

FIELDS = sorted(
    {
        "r", "lora_alpha", "use_rslora", "lora_dropout", "bias", "rank_pattern", "alpha_pattern", "target_modules",
        "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "peft_type", "task_type",
        "use_dora", "lora_bias", "trainable_token_indices", "init_lora_weights", "fan_in_fan_out", "inference_mode",
        "base_model_name_or_path", "revision", "projection_prng_key", "save_projection", "vera_dropout",
        "target_parameters", "layer_replication", "loftq_config", "use_future",
    }
)  # fmt: skip
TYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn)
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda t: t.reshape(-1),
    "scalar": lambda t: t.reshape(-1)[:1].reshape(()),
    "empty": lambda t: t[:0],
    "no columns": lambda t: t[..., :0],
    "first row": lambda t: t[:1],
    "turned": lambda t: t.transpose(0, -1) if t.dim() > 1 else t,
    "one more": lambda t: torch.cat([t, t[:1]]),
    "deeper": lambda t: t.unsqueeze(-1),
    "twice": lambda t: torch.cat([t, t], -1),
}
KEYS: dict[str, Callable[[str], str]] = {
    "no prefix": lambda k: k.removeprefix("base_model.model."),
    "prefix twice": lambda k: "base_model.model." + k,
    "no path": lambda k: "base_model.model." + ".".join(k.split(".")[-2:]),
    "no ending": lambda k: k.rpartition(".")[0],
    "other ending": lambda k: k.rpartition(".")[0] + ".bias",
    "A for B": lambda k: k.replace("lora_A", "lora_X").replace("lora_B", "lora_A").replace("lora_X", "lora_B"),
    "embedding": lambda k: k.replace("lora_A.weight", "lora_embedding_A").replace("lora_B.weight", "lora_embedding_B"),
    "magnitude": lambda k: k.rsplit(".lora_", 1)[0] + ".lora_magnitude_vector",
    "vera": lambda k: k.rsplit(".lora_", 1)[0] + ".vera_lambda_b",
    "rows": lambda k: k.rsplit(".lora_", 1)[0] + ".token_adapter.trainable_tokens_delta",
    "base layer": lambda k: k.replace(".lora_", ".base_layer.lora_"),
    "inner": lambda k: k.rsplit(".lora_", 1)[0] + ".base_layer.out_proj.lora_A.weight",
    "whole": lambda k: k.rsplit(".lora_", 1)[0] + ".weight",
    "layer 9": lambda k: k.replace("layers.0", "layers.9"),
    "empty": lambda k: "",
    "dots": lambda k: k.replace(".", ".."),
    "shared": lambda k: "base_model.vera_A",
    "copied": lambda k: k.rsplit(".lora_", 1)[0] + ".modules_to_save.weight",
}
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "nan": lambda t: t.clone().float().fill_(float("nan")),
    "infinite": lambda t: t.clone().float().fill_(float("inf")),
    "huge": lambda t: t.float() * 1e30,
    "zero": torch.zeros_like,
    "tiny": lambda t: t.float() * 1e-38,
}


class Files:
    """An adapter's files while they are damaged."""

    def __init__(self, kind: str) -> None:
        tensors, metadata, config = written(kind)
        self.tensors, self.metadata = dict(tensors), dict(metadata)
        self.config: Any = json.loads(json.dumps(config))
        self.bytes: dict[str, tuple[str, int, int]] = {}

    def write(self, directory: Path) -> None:
        held = {key: t.clone().contiguous() for key, t in self.tensors.items()}
        found = {WEIGHTS: save(held, self.metadata), CONFIG: json.dumps(self.config).encode()}
        for name, (how, at, value) in self.bytes.items():
            place = at % max(len(found[name]), 1)
            found[name] = (
                found[name][:place] if how == "cut" else found[name][:place] + bytes([value]) + found[name][place + 1 :]
            )
        for name, content in found.items():
            (directory / name).write_bytes(content)


def damage_tensor(data: st.DataObject, files: Files) -> None:
    if not files.tensors:
        return
    key = data.draw(st.sampled_from(sorted(files.tensors)))
    act = data.draw(st.sampled_from(("remove", "type", "shape", "value", "key", "copy", "swap")))
    if act == "remove":
        del files.tensors[key]
    elif act == "type":
        dtype = data.draw(st.sampled_from(TYPES))
        files.tensors[key] = files.tensors[key].to(dtype)
    elif act == "shape":
        shape = SHAPES[data.draw(st.sampled_from(sorted(SHAPES)))]
        tensor = files.tensors[key]
        files.tensors[key] = shape(tensor) if tensor.dim() and tensor.numel() else tensor
    elif act == "value":
        files.tensors[key] = VALUES[data.draw(st.sampled_from(sorted(VALUES)))](files.tensors[key])
    elif act in ("key", "copy"):
        new = KEYS[data.draw(st.sampled_from(sorted(KEYS)))](key)
        files.tensors[new] = files.tensors[key] if act == "copy" else files.tensors.pop(key)
    else:
        other = data.draw(st.sampled_from(sorted(files.tensors)))
        files.tensors[key], files.tensors[other] = files.tensors[other], files.tensors[key]


def damage_config(data: st.DataObject, files: Files) -> None:
    field = data.draw(st.sampled_from(FIELDS))
    act = data.draw(st.sampled_from(("remove", "value", "value", "value", "whole")))
    if not isinstance(files.config, dict) or act == "whole":
        files.config = data.draw(JSON)
    elif act == "remove":
        files.config.pop(field, None)
    else:
        files.config[field] = data.draw(JSON)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, v in inner for path in ((*at, key), *places(v, (*at, key)))]


def damage_metadata(data: st.DataObject, files: Files) -> None:
    act = data.draw(st.sampled_from(("remove", "text", "inside", "inside", "inside")))
    if act == "remove" or "deltaw" not in files.metadata:
        files.metadata.pop("deltaw", None)
    elif act == "text":
        files.metadata["deltaw"] = data.draw(st.text(max_size=20) | JSON.map(json.dumps))
    else:
        try:
            own = json.loads(files.metadata["deltaw"])
        except json.JSONDecodeError:
            return
        found = places(own)
        if not found:
            return
        *path, last = data.draw(st.sampled_from(found))
        holder = own
        for key in path:
            holder = holder[key]
        if data.draw(st.booleans()):
            holder[last] = data.draw(JSON)
        else:
            del holder[last]
        files.metadata["deltaw"] = json.dumps(own)


def damage_bytes(data: st.DataObject, files: Files) -> None:
    name = data.draw(st.sampled_from((WEIGHTS, CONFIG)))
    how = data.draw(st.sampled_from(("cut", "flip")))
    files.bytes[name] = (how, data.draw(st.integers(0, 6000)), data.draw(st.integers(0, 255)))


DAMAGES = (damage_tensor, damage_tensor, damage_config, damage_config, damage_metadata, damage_bytes)


def wear(model: nn.Module, act: Callable[[], Any]) -> bool:
    """Try something on a model: refused, it leaves no trace; accepted, it runs and comes off without one."""
    before = state(model)
    try:
        act()
    except DeltawError as error:
        assert str(error).splitlines()[-1].startswith("hint: ")
        assert state(model) == before, "a refusal changed the model"
        return False
    with torch.no_grad():
        assert model(IDS).shape == (2, 4, 12)
    with dw.disabled(model), torch.no_grad():
        model(IDS)
    with tempfile.TemporaryDirectory() as directory:
        try:
            dw.save(model, directory)
        except DeltawError as error:
            assert "not finite" in str(error) or "nothing to save" in str(error), error
        else:
            again = net(model.embed.weight is model.head.weight)  # type: ignore[union-attr]
            dw.load(again, directory)
    dw.detach(model)
    assert state(model) == before, "something stayed behind"
    return True


@fuzzing(400)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_damaged_files(kind: str, data: st.DataObject) -> None:
    files = Files(kind)
    for damage in data.draw(st.lists(st.sampled_from(DAMAGES), min_size=1, max_size=3)):
        damage(data, files)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        files.write(directory)

        def load() -> None:
            found = dw.Adapter.open(directory, accept_edits=True)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                dw.load(model, found, allow_other_base=kind != "plain")

        model = net(kind == "tied")
        wear(model, load)


ODD = (
    JSON
    | st.sampled_from([nn.Linear, nn.Embedding, nn.Module, float("nan"), float("inf"), b"q", object(), {1, 2}])
    | st.sampled_from([lambda path, module: True, lambda path, module: path.endswith("q")])
)
"""Values of any kind, those of LoRAConfig's fields among them."""
TARGETS = st.sampled_from(["q", "v", "c_attn", "c_attn[q,v]", "embed", "conv", "attn", "attn[q]", "head", "all-linear"])
GOOD: dict[str, st.SearchStrategy[Any]] = {
    "targets": st.lists(TARGETS, min_size=1, max_size=3) | TARGETS,
    "rank": st.integers(0, 9),
    "alpha": st.floats(-20, 20) | st.integers(1, 32),
    "dropout": st.floats(0, 1),
    "rank_stabilized": st.booleans(),
    "init": st.sampled_from(["kaiming", "gaussian", "pissa", "olora", "orthogonal", "eva"]),
    "exclude": st.lists(TARGETS, max_size=2),
    "layers": st.none()
    | st.lists(st.integers(-1, 3), max_size=2)
    | st.sampled_from(["0", "0-1", "last:1", "1-0", ","]),
    "rank_pattern": st.dictionaries(TARGETS, st.integers(0, 5), max_size=2),
    "alpha_pattern": st.dictionaries(TARGETS, st.integers(1, 9), max_size=2),
    "bias": st.sampled_from(["none", "all", "lora_only"]),
    "train_also": st.lists(TARGETS, max_size=1),
    "train_rows": st.dictionaries(TARGETS, st.lists(st.integers(0, 13), max_size=3), max_size=1),
    "variant": st.sampled_from(["lora", "dora", "vera", "lora_fa", "lora_bias", "dora,lora_bias"]),
    "ties": st.sampled_from(["refuse", "share", "separate"]),
    "seed": st.none() | st.integers(-5, 2**65),
}


@fuzzing(400)
@given(st.data())
def test_configurations_of_any_values(data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(GOOD)), max_size=5))
    odd = data.draw(st.sets(st.sampled_from(sorted(names)), max_size=1)) if names else set()
    fields = {name: data.draw(ODD if name in odd else GOOD[name]) for name in sorted(names)}
    model = net(data.draw(st.booleans()))
    wear(model, lambda: dw.attach(model, dw.LoRAConfig(**fields)))


PIECES = (
    "q v k layers . * ? re: [ ] 0 1 : , - c_attn attn ( ) \\ all-linear out_proj { } | + ^ $ ! embed".split()  # noqa: SIM905
)


@fuzzing(300)
@given(
    st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(max_size=5), min_size=1, max_size=2),
    st.sampled_from(["targets", "exclude", "train_also", "rank_pattern", "train_rows", "layers"]),
)
def test_patterns_of_any_text(texts: list[str], field: str) -> None:
    values: dict[str, Any] = {
        "rank_pattern": dict.fromkeys(texts, 3), "train_rows": {text: [1] for text in texts}, "layers": texts[0],
    }  # fmt: skip
    model = net()
    fields = {"targets": ["q", "c_attn", "embed"], field: values.get(field, texts)}
    wear(model, lambda: dw.attach(model, dw.LoRAConfig(**{"rank": 4, **fields})))


@fuzzing(150)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_values_of_damaged_files(kind: str, data: st.DataObject) -> None:
    """Everything that an adapter answers without a model, for files that may be damaged."""
    files = Files(kind)
    for damage in data.draw(st.lists(st.sampled_from(DAMAGES[:5]), max_size=2)):
        damage(data, files)
    with tempfile.TemporaryDirectory() as name:
        files.write(Path(name))
        acts: tuple[Callable[[dw.Adapter], Any], ...] = (
            lambda a: a.hash, lambda a: a.norms(), lambda a: [a.delta(path) for path in a.modules()],
            lambda a: a.resize(rank=1), lambda a: a + a, lambda a: 0.5 * a, lambda a: a.similarity(a),
        )  # fmt: skip
        for act in acts:
            with contextlib.suppress(DeltawError), warnings.catch_warnings():
                warnings.simplefilter("error")
                act(dw.Adapter.open(name, accept_edits=True))
