"""The original package's face: code written for microsoft/LoRA runs after one changed import line.

::

    import deltaw.loralib as lora        # was: import loralib as lora

Names, arguments, parameter names and modes are the original's, and ``loralib.layers`` and ``loralib.utils`` are there
under theirs; the arithmetic is the core's. What was wrong there is right here: a state dict holds the base's weight and
never a sum, ``train()`` gives the base's bits back, a load into a merged layer forms the sum anew, what is trained is
told by its own name and not by a substring of a path, and an alpha that no file states is asked for. ``from_base``,
``attach`` and ``detach`` are new and keep pre-trained weights; so are ``save`` and ``load``. See docs/loralib.md.

Source:
    Hu et al. 2021, arXiv:2106.09685; the names are those of github.com/microsoft/LoRA.
"""

from __future__ import annotations

from deltaw.loralib import layers, utils
from deltaw.loralib.base import LoRALayer
from deltaw.loralib.conv import Conv1d, Conv2d, Conv3d, ConvLoRA
from deltaw.loralib.embedding import Embedding
from deltaw.loralib.files import LoadReport, SaveReport, load, save
from deltaw.loralib.linear import Linear, MergedLinear
from deltaw.loralib.swap import AttachReport, DetachReport, attach, detach
from deltaw.loralib.trained import lora_state_dict, mark_only_lora_as_trainable

__all__ = [
    "AttachReport", "Conv1d", "Conv2d", "Conv3d", "ConvLoRA", "DetachReport", "Embedding", "Linear", "LoRALayer",
    "LoadReport", "MergedLinear", "SaveReport", "attach", "detach", "layers", "load", "lora_state_dict",
    "mark_only_lora_as_trainable", "name", "save", "utils",
]  # fmt: skip

name = "lora"
"""The original package's name for itself."""
