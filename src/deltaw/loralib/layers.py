"""The names of the original's ``loralib.layers``, for code that imports them from there."""

from __future__ import annotations

from deltaw.loralib.base import LoRALayer
from deltaw.loralib.conv import Conv1d, Conv2d, Conv3d, ConvLoRA
from deltaw.loralib.embedding import Embedding
from deltaw.loralib.linear import Linear, MergedLinear

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvLoRA", "Embedding", "Linear", "LoRALayer", "MergedLinear"]
