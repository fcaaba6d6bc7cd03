"""The names of Stable Diffusion's UNet in its original code, for a tree named as diffusers does.

The original counts blocks in one row (``input_blocks.4.1``), diffusers by resolution and by kind
(``down_blocks.1.attentions.0``). With n residual blocks per resolution, resolution b takes n + 1 places on the way
down (its blocks and the downsampler) and n + 1 on the way up. Names are made from the real tree and then looked up,
so none has to be taken apart.

Source: CompVis/latent-diffusion, ldm/modules/diffusionmodules/openaimodel.py; Stability-AI/generative-models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["original_names"]

_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "conv_norm_out": "out.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(
    r"(?P<way>down_blocks|up_blocks|mid_block)(?:\.(?P<block>\d+))?"
    r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)


def original_names(paths: Iterable[str]) -> dict[str, str]:
    """Name the modules of a UNet as its original code does.

    Args:
        paths: paths in diffusers' UNet, without a component's prefix.

    Returns:
        Original name -> path, for the modules that have one.

    Example:
        >>> names = ["down_blocks.0.resnets.1.conv1", "down_blocks.1.attentions.0.proj_in"]
        >>> sorted(original_names(names))
        ['input_blocks.2.0.in_layers.2', 'input_blocks.4.1.proj_in']
    """
    known = sorted(set(paths))
    found = [_BLOCK.fullmatch(path) for path in known]
    down = [m for m in found if m and m["way"] == "down_blocks" and m["kind"] in ("resnets", "attentions")]
    depth = 1 + max((int(m["layer"]) for m in down), default=-1)
    attending = {m["block"] for m in found if m and m["way"] == "up_blocks" and m["kind"] == "attentions"}
    names = {_ENDS[path]: path for path in known if path in _ENDS}
    for path, match in zip(known, found, strict=True):
        place = _place(match, depth, attending) if match and depth else None
        if match and place:
            rest = "op" if match["kind"] == "downsamplers" else match["rest"]
            names[f"{place}.{_RESIDUAL.get(rest, rest) if match['kind'] == 'resnets' else rest}"] = path
    return names


def _place(match: re.Match[str], depth: int, attending: set[str]) -> str | None:
    way, kind, layer = match["way"], match["kind"], int(match["layer"])
    if way == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * layer}"
    first = int(match["block"]) * (depth + 1)
    if way == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{first + depth + 1}.0" if match["rest"] == "conv" else None
        return f"input_blocks.{first + layer + 1}.{int(kind == 'attentions')}"
    if kind == "upsamplers":
        return f"output_blocks.{first + depth}.{2 if match['block'] in attending else 1}"
    return f"output_blocks.{first + layer}.{int(kind == 'attentions')}"
