"""Bad use of the core: targets, configurations, ties, adapter files, verbs at the wrong moment, unusable models.

Every case also checks that its refusal left the model (values, classes, flags, keys) and every file as they were.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import deltaw as dw
from builders import Int8Linear

BASE: dict[str, Any] = {"rank": 2, "alpha": 6, "targets": ["q_proj", "v_proj"]}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.q_proj(x) + self.k_proj(x) + self.v_proj(x))


class Net(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.layers = nn.ModuleList(Attention() for _ in range(2))
        self.c_attn = nn.Linear(8, 24)
        self.head = nn.Linear(8, 12, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x + self.c_attn(x)[..., :8])


def net(seed: int = 0, tied: bool = False) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(tied)


def head_loss(model: Any, **options: Any) -> Tensor:
    hidden = torch.ones(3, 8, requires_grad=True)
    return dw.linear_cross_entropy(hidden, model.head, torch.zeros(3, dtype=torch.int64), **options)


def twice(loss: Tensor) -> None:
    loss.backward(create_graph=True)


@torch.no_grad()
def trained(model: nn.Module) -> nn.Module:
    for _, parameter in dw.trainable(model):
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def worn(**fields: Any) -> nn.Module:
    model = net()
    dw.attach(model, dw.LoRAConfig(**{**BASE, **fields}))
    return trained(model)


def merged() -> nn.Module:
    model = worn()
    dw.merge(model)
    return model


def saved(tmp: Path, **fields: Any) -> Path:
    dw.save(worn(**fields), tmp / "adapter")
    return tmp / "adapter"


def edit(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """Change a file's tensors; other tools keep no metadata of ours."""
    path = directory / "adapter_model.safetensors"
    held = load_file(path)
    change(held)
    save_file({key: value.clone() for key, value in held.items()}, path, {"format": "pt"})
    return directory


def note(directory: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> Path:
    """Change a file's tensors and what deltaw noted about them."""
    path = directory / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        held, metadata = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118
    own = json.loads(metadata["deltaw"])
    change(held, own)
    save_file({k: v.clone() for k, v in held.items()}, path, {**metadata, "deltaw": json.dumps(own)})
    return directory


def configure(directory: Path, **fields: Any) -> Path:
    edit(directory, lambda held: None)
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return directory


def cut(directory: Path) -> Path:
    path = directory / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    return directory


def overwrite(directory: Path, content: str) -> Path:
    (directory / "adapter_config.json").write_text(content)
    return directory


def state(model: Any, tmp: Path) -> tuple[Any, ...]:
    """Everything that a refusal must leave as it was, byte for byte."""
    files = {path: path.read_bytes() for path in sorted(tmp.rglob("*")) if path.is_file()}
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return (files,)
    values = {key: (id(t), t.dtype, t.detach().clone().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
              for key, t in model.state_dict(keep_vars=True).items()}  # fmt: skip
    modules = [
        (path, id(part), type(part), part.training, sorted(part.__dict__)) for path, part in model.named_modules()
    ]
    flags = [(name, id(p), p.requires_grad) for name, p in model.named_parameters()]
    return files, values, modules, flags, torch.get_rng_state().numpy().tobytes()


class Case:
    """A model and its files, and the call that must refuse them.

    Args:
        act: (model, prepared) -> the call that raises.
        model: makes the model.
        files: prepares files in the directory; what it returns is handed to ``act``.
    """

    def __init__(
        self,
        act: Callable[[Any, Any], Any],
        model: Callable[[], Any] = net,
        files: Callable[[Path], Any] = lambda tmp: tmp,
    ) -> None:
        self.act, self.model, self.files = act, model, files

    def __call__(self, tmp: Path) -> None:
        prepared, model = self.files(tmp), self.model()
        before = state(model, tmp)
        try:
            self.act(model, prepared)
        finally:
            assert state(model, tmp) == before, "the refusal changed the model or a file"


def attaching(model: Callable[[], Any] = net, **fields: Any) -> Case:
    return Case(lambda m, _: dw.attach(m, dw.LoRAConfig(**{**BASE, **fields})), model)


def configuring(**fields: Any) -> Case:
    return Case(lambda m, _: dw.LoRAConfig(**{**BASE, **fields}))


def loading(files: Callable[[Path], Any], model: Callable[[], Any] = net) -> Case:
    return Case(lambda m, directory: dw.load(m, directory), model, files)


def key(path: str, factor: str = "A") -> str:
    return f"base_model.model.layers.{path}.lora_{factor}.weight"


IDS = torch.tensor([[1, 2, 3]])
Q0, Q1 = key("0.q_proj"), key("1.q_proj")


class Shadowed(Net):
    """One layer carries a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[0].q_proj.forward = lambda x: x  # type: ignore[assignment]


def broken() -> nn.Module:
    model = worn()
    with torch.no_grad():
        model.layers[0].q_proj.lora.default.lora_A[0, 0] = float("nan")  # type: ignore[union-attr, index, operator]
    return model


def overflowing() -> nn.Module:
    model = net().half()
    dw.attach(model, dw.LoRAConfig(**{**BASE, "alpha": 6e4}))
    return trained(model)


def edited_while_merged() -> nn.Module:
    model = merged()
    with torch.no_grad():
        model.layers[0].q_proj.weight[0, 0] += 1  # type: ignore[union-attr, index, operator]
    return model


def attention(**sizes: int) -> nn.Module:
    return nn.ModuleDict({"attn": nn.MultiheadAttention(8, 2, **sizes)})


def unbiased() -> nn.Module:
    """A bias was trained where the base has none to merge it into."""
    return worn(targets=["head"], variant="lora_bias")


def plain_config(**fields: Any) -> dw.LoRAConfig:
    return dw.LoRAConfig(**{**BASE, **fields})


def compiled() -> Any:
    return torch.compile(net(), backend="eager")


def routing(names: Any, build: Callable[[], nn.Module] = worn, ids: Tensor | None = None) -> Case:
    """A route, and a forward in it where there are ids."""

    def act(model: Any, _: Path) -> None:
        with dw.route(model, names):
            if ids is not None:
                model(ids)

    return Case(act, build)


def targets_of(*targets: str) -> dw.LoRAConfig:
    return dw.LoRAConfig(rank=2, targets=targets)


def closed(model: nn.Module) -> Any:
    bank: Any = dw.AdapterBank.of(model)
    bank.close()
    return bank


def banked(**fields: Any) -> nn.Module:
    model = worn(**fields)
    dw.AdapterBank(model, size=1)
    return model


CASES: dict[str, Case] = {
    # Targets
    "core_target_matches_nothing": attaching(targets=["q_projj"]),
    "core_target_not_adaptable": attaching(targets=["norm"]),
    "core_target_bad_regex": attaching(targets=["re:.*(q_proj"]),
    "core_target_whole_and_sliced": attaching(targets=["c_attn", "c_attn[q]"]),
    "core_slice_unknown": attaching(targets=["c_attn[w]"]),
    "core_slice_layout_unknown": attaching(targets=["q_proj[q]"]),
    "core_slice_of_embedding": attaching(targets=["embed[q]"]),
    "core_slices_overlap": attaching(targets=["c_attn[0:8,4:12]"]),
    "core_slice_rows_outside": attaching(targets=["c_attn[0:99]"]),
    "core_exclude_matches_nothing": attaching(exclude=["o_proj"]),
    "core_exclude_everything": attaching(exclude=["q_proj", "v_proj"]),
    "core_rank_pattern_matches_nothing": attaching(rank_pattern={"k_proj": 4}),
    "core_train_also_matches_nothing": attaching(train_also=["score"]),
    "core_layers_outside": attaching(layers=[0, 7]),
    "core_layers_malformed": attaching(layers="first:2"),
    "core_no_bias": attaching(targets=["head"], bias="lora_only"),
    "core_bypassed_attention": attaching(lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=4), targets=["out_proj"]),
    "core_attention_bias": attaching(lambda: nn.MultiheadAttention(8, 2), targets=["out_proj"], bias="all"),
    "core_attention_separate": attaching(lambda: attention(kdim=4, vdim=4), targets=["attn"]),
    # Variants, initializations, trained rows
    "core_variant_on_embedding": attaching(targets=["embed"], variant="lora_fa"),
    "core_variant_on_slices": attaching(targets=["c_attn[q,v]"], variant="vera", alpha=16),
    "core_variant_of_quantized": attaching(
        lambda: nn.ModuleDict({"q_proj": Int8Linear(nn.Linear(4, 4))}), targets="q_proj", variant="dora"
    ),
    "core_variant_shared_by_twins": attaching(lambda: net(tied=True), targets=["embed"], variant="dora", ties="share"),
    "core_variant_beside_rows": attaching(targets=["embed"], variant="dora", train_rows={"embed": [1]}),
    "core_init_on_embedding": attaching(targets=["embed"], init="pissa"),
    "core_init_needs_batches": attaching(init="eva"),
    "core_init_no_batches_wanted": Case(lambda m, _: dw.attach(m, plain_config(), batches=[1])),
    "core_init_empty_batches": Case(lambda m, _: dw.attach(m, plain_config(init="eva"), batches=[])),
    "core_init_without_loss": Case(lambda m, _: dw.attach(m, plain_config(init="lora_ga", rank=1), batches=[IDS])),
    "core_init_rank_too_large": attaching(init="pissa", rank=9),
    "core_init_odd_rank": attaching(init="orthogonal", rank=3),
    "core_conv_rank_of_groups": attaching(lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), targets=["0"], rank=3),
    "core_rows_match_nothing": attaching(train_rows={"wte": [1]}),
    "core_rows_outside": attaching(train_rows={"embed": [1, 99]}),
    "core_rows_of_no_table": attaching(train_rows={"q_proj": [1]}),
    "core_rows_tied": attaching(lambda: net(tied=True), train_rows={"embed": [1]}),
    "core_shadowed_forward": attaching(Shadowed),
    # Configurations
    "core_rank_negative": configuring(rank=-1),
    "core_rank_huge": configuring(rank=10**9),
    "core_alpha_overflows": configuring(alpha=1e300),
    "core_targets_no_patterns": configuring(targets=[1, 2]),
    "core_pattern_no_mapping": configuring(rank_pattern=["q_proj", 4]),
    "core_rows_no_list": configuring(train_rows={"embed": 3}),
    "core_variant_no_name": configuring(variant=7),
    "core_flag_no_flag": configuring(rank_stabilized="yes"),
    "core_seed_no_number": configuring(seed="today"),
    "core_rank_fraction": configuring(rank=2.5),
    "core_alpha_zero": configuring(alpha=0),
    "core_alpha_infinite": configuring(alpha_pattern={"q_proj": float("inf")}),
    "core_dropout_one": configuring(dropout=1),
    "core_bias_unknown": configuring(bias="lora"),
    "core_init_unknown": configuring(init="kaimin"),
    "core_ties_unknown": configuring(ties="tie"),
    "core_nothing_to_adapt": configuring(targets=[]),
    "core_variant_unknown": configuring(variant="dorra"),
    "core_variants_clash": configuring(variant=["vera", "dora"]),
    "core_vera_alpha": configuring(variant="vera", alpha=32),
    "core_rows_negative": configuring(train_rows={"embed": [-1]}),
    "core_rows_empty": configuring(train_rows={"embed": []}),
    "core_field_unknown": Case(lambda m, _: dw.LoRAConfig().replace(lora_alpha=16)),
    # Ties
    "core_tied_target": attaching(lambda: net(tied=True), targets=["embed"]),
    "core_merge_bias_without_bias": Case(lambda m, _: dw.merge(m), unbiased),
    "core_mix_of_dora": Case(lambda m, _: dw.activate(m, {"default": 0.5}), lambda: worn(variant="dora")),
    # Models
    "core_not_a_model": Case(lambda m, _: dw.plan(m), lambda: {"weights": 1}),
    "core_scripted_model": Case(lambda m, _: dw.attach(m), lambda: torch.jit.script(nn.Linear(2, 2))),
    "core_empty_model": Case(lambda m, _: dw.attach(m), nn.ReLU),
    "core_compiled_model": attaching(compiled),
    # Adapter files
    "core_adapter_absent": Case(lambda m, tmp: dw.load(m, tmp / "nowhere")),
    "core_adapter_is_a_file": loading(lambda tmp: saved(tmp) / "adapter_config.json"),
    "core_adapter_without_tensors": loading(
        lambda tmp: (p := saved(tmp), (p / "adapter_model.safetensors").unlink(), p)[2]
    ),
    "core_adapter_truncated": loading(lambda tmp: cut(saved(tmp))),
    "core_adapter_config_not_json": loading(lambda tmp: overwrite(saved(tmp), '{"r": 2,')),
    "core_adapter_config_no_object": loading(lambda tmp: overwrite(saved(tmp), "[1]")),
    "core_adapter_other_method": loading(lambda tmp: configure(saved(tmp), peft_type="IA3")),
    "core_adapter_dora_without_magnitude": loading(lambda tmp: configure(saved(tmp), use_dora=True)),
    "core_adapter_magnitude_unasked": loading(
        lambda tmp: edit(
            saved(tmp), lambda t: t.update({Q0.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(8)})
        )
    ),
    "core_adapter_rows_without_tensor": loading(
        lambda tmp: configure(saved(tmp), trainable_token_indices={"embed": [1]})
    ),
    "core_adapter_rows_damaged": loading(lambda tmp: configure(saved(tmp), trainable_token_indices="embed")),
    "core_adapter_vera_rank": loading(
        lambda tmp: edit(
            saved(tmp, variant="vera", alpha=16), lambda t: t.update({"base_model.vera_B": torch.ones(8, 4)})
        )
    ),
    "core_adapter_vera_of_lora": loading(lambda tmp: configure(saved(tmp), peft_type="VERA")),
    "core_adapter_vera_without_matrices": loading(
        lambda tmp: configure(saved(tmp), peft_type="VERA", save_projection=False)
    ),
    "core_adapter_qalora": loading(lambda tmp: configure(saved(tmp), use_qalora=True)),
    "core_adapter_pissa": loading(lambda tmp: configure(saved(tmp), init_lora_weights="pissa")),
    "core_adapter_field_damaged": loading(lambda tmp: configure(saved(tmp), r="two")),
    "core_adapter_extra_tensor": loading(lambda tmp: edit(saved(tmp), lambda t: t.update({key("9.q_proj"): t[Q0]}))),
    "core_adapter_missing_tensor": loading(lambda tmp: edit(saved(tmp), lambda t: t.pop(Q0))),
    "core_adapter_missing_module": loading(
        lambda tmp: edit(saved(tmp), lambda t: (t.pop(Q0), t.pop(key("0.q_proj", "B"))))
    ),
    "core_adapter_misshaped": loading(lambda tmp: edit(saved(tmp), lambda t: t.update({Q0: torch.ones(2, 9)}))),
    "core_adapter_wrong_rank": loading(lambda tmp: configure(saved(tmp), r=4)),
    "core_adapter_nan": loading(lambda tmp: edit(saved(tmp), lambda t: t[Q0].fill_(float("nan")))),
    "core_adapter_whole_numbers": loading(lambda tmp: edit(saved(tmp), lambda t: t.update({Q0: t[Q0].to(torch.int8)}))),
    "core_adapter_one_place_twice": loading(
        lambda tmp: edit(saved(tmp), lambda t: t.update({Q0.removeprefix("base_model.model."): t[Q0]}))
    ),
    "core_adapter_copy_missing": loading(
        lambda tmp: edit(saved(tmp, train_also=["head"]), lambda t: t.pop("base_model.model.head.weight"))
    ),
    "core_adapter_bias_missing": loading(
        lambda tmp: edit(saved(tmp, bias="lora_only"), lambda t: [t.pop(k) for k in list(t) if k.endswith("bias")])
    ),
    "core_adapter_notes_damaged": loading(
        lambda tmp: note(saved(tmp), lambda t, own: own.update(twins=["head"], fingerprint={"sites": {"head": 1}}))
    ),
    "core_adapter_outside_slices": loading(
        lambda tmp: note(
            saved(tmp, targets=["c_attn[q]"]),
            lambda t, own: t["base_model.model.c_attn.lora_B.weight"].fill_(1.0),
        )
    ),
    "core_adapter_value_misshaped": Case(
        lambda m, p: dw.Adapter.open(p).delta("layers.0.q_proj"),
        files=lambda tmp: edit(saved(tmp), lambda t: t.update({Q0: torch.ones(3, 8)})),
    ),
    "core_adapter_value_nan": Case(
        lambda m, p: dw.Adapter.open(p).norms(),
        files=lambda tmp: edit(saved(tmp), lambda t: t[Q0].fill_(float("nan"))),
    ),
    "core_adapter_many_problems": loading(
        lambda tmp: edit(saved(tmp), lambda t: [t.update({k: torch.ones(2, 9)}) for k in list(t)])
    ),
    "core_adapter_wrong_base": loading(saved, lambda: net(seed=1)),
    "core_adapter_edited_config": loading(
        lambda tmp: (
            p := saved(tmp),
            overwrite(p, (p / "adapter_config.json").read_text().replace('"lora_alpha": 6', '"lora_alpha": 60')),
        )[1]
    ),
    "core_adapter_nan_save": Case(lambda m, p: dw.save(m, p), broken, saved),
    "core_adapter_unwritable": Case(
        lambda m, p: dw.save(m, p / "file" / "adapter"), worn, lambda tmp: ((tmp / "file").write_text("x"), tmp)[1]
    ),
    "core_adapter_module_unknown": Case(lambda m, p: dw.Adapter.open(p).delta("layers.0.qproj"), files=saved),
    # Verbs at the wrong moment
    "core_name_taken": Case(lambda m, _: dw.attach(m, dw.LoRAConfig(**BASE)), worn),
    "core_name_reserved": Case(lambda m, _: dw.attach(m, dw.LoRAConfig(**BASE), "train")),
    "core_detach_plain": Case(lambda m, _: dw.detach(m)),
    "core_detach_unknown": Case(lambda m, _: dw.detach(m, "defualt"), worn),
    "core_save_plain": Case(lambda m, tmp: dw.save(m, tmp / "out")),
    "core_activate_unknown": Case(lambda m, _: dw.activate(m, "sql"), worn),
    "core_mix_weight": Case(lambda m, _: dw.activate(m, {"default": float("nan")}), worn),
    "core_mix_of_heads": Case(lambda m, _: dw.activate(m, {"default": 0.5}), lambda: worn(train_also=["head"])),
    "core_merge_plain": Case(lambda m, _: dw.merge(m)),
    "core_merge_twice": Case(lambda m, _: dw.merge(m), merged),
    "core_merge_nothing_active": Case(lambda m, _: dw.merge(m), lambda: (m := worn(), dw.activate(m, None), m)[2]),
    "core_merge_nan": Case(lambda m, _: dw.merge(m), broken),
    "core_merge_overflow": Case(lambda m, _: dw.merge(m), overflowing),
    "core_merge_separate_ties": Case(
        lambda m, _: dw.merge(m),
        lambda: (m := net(tied=True), dw.attach(m, dw.LoRAConfig(rank=2, targets=["embed"], ties="separate")), m)[2],
    ),
    "core_unmerge_unmerged": Case(lambda m, _: dw.unmerge(m), worn),
    "core_unmerge_edited": Case(lambda m, _: dw.unmerge(m), edited_while_merged),
    "core_attach_while_merged": Case(lambda m, _: dw.attach(m, dw.LoRAConfig(**BASE), "other"), merged),
    "core_load_while_merged": Case(lambda m, p: dw.load(m, p, "other"), merged, saved),
    "core_save_while_merged": Case(lambda m, p: dw.save(m, p), merged, saved),
    "core_trainable_while_merged": Case(lambda m, _: dw.trainable(m), merged),
    "core_disabled_while_merged": Case(lambda m, _: dw.disabled(m).__enter__(), merged),
    # The loss head
    "core_loss_option": Case(lambda m, _: head_loss(m, reduction="mean")),
    "core_loss_shapes": Case(lambda m, _: head_loss(m, weights=torch.ones(4))),
    "core_loss_bias_twice": Case(lambda m, _: head_loss(m, bias=torch.ones(12))),
    "core_loss_of_single_tokens": Case(lambda m, _: head_loss(m, reduction="none"), lambda: worn(targets=["head"])),
    "core_loss_second_derivative": Case(lambda m, _: twice(head_loss(m))),
    # Routes and banks
    "core_route_unknown": routing(["default", "sql"]),
    "core_route_no_row": routing([]),
    "core_route_ragged": routing([["default"], ["default", None]]),
    "core_route_rows_and_tokens": routing([["default"], "default"]),
    "core_route_other_batch": routing(["default", None, None], ids=IDS),
    "core_route_other_tokens": routing([["default", None]] * 2, ids=IDS),
    "core_route_place_empty": routing(torch.tensor([0, 3])),
    "core_route_places_floating": routing(torch.ones(2)),
    "core_route_attention": routing(["default"], lambda: (m := attention(), dw.attach(m, targets_of("attn")), m)[2]),
    "core_route_raw": routing(["default"], lambda: worn(targets=["head.weight"])),
    "core_route_tokens_of_copy": routing([["default"]], lambda: worn(train_also=["norm"])),
    "core_bank_full": Case(lambda m, _: dw.attach(m, plain_config(), "other"), banked),
    "core_bank_too_small": Case(
        lambda m, _: dw.AdapterBank(m, size=1), lambda: (m := worn(), dw.attach(m, plain_config(), "other"), m)[2]
    ),
    "core_bank_rank": Case(lambda m, _: dw.AdapterBank(m, size=2, rank=1), worn),
    "core_bank_of_dora": Case(lambda m, _: dw.AdapterBank(m, size=2), lambda: worn(variant="dora")),
    "core_bank_of_slices": Case(lambda m, _: dw.AdapterBank(m, size=2), lambda: worn(targets=["c_attn[q,v]"])),
    "core_bank_of_copies": Case(lambda m, _: dw.AdapterBank(m, size=2), lambda: worn(train_also=["head"])),
    "core_bank_no_slot": Case(lambda m, _: dw.AdapterBank(m, size=0), worn),
    "core_bank_second": Case(lambda m, _: dw.AdapterBank(m, size=2), banked),
    "core_bank_plain": Case(lambda m, _: dw.AdapterBank(m, size=2)),
    "core_bank_put_twice": Case(lambda m, _: dw.AdapterBank.of(m).put("default"), banked),
    "core_bank_remove_absent": Case(lambda m, _: dw.AdapterBank.of(m).remove("sql"), banked),
    "core_bank_closed": Case(lambda m, _: closed(m).put("default"), banked),
    "core_draws_of_other_sites": Case(lambda m, _: dw.set_draws(m, {"elsewhere.default": 3}), worn),
}
