"""The names of the original's ``loralib.utils``, for code that imports them from there."""

from __future__ import annotations

from deltaw.loralib.base import LoRALayer
from deltaw.loralib.trained import lora_state_dict, mark_only_lora_as_trainable

__all__ = ["LoRALayer", "lora_state_dict", "mark_only_lora_as_trainable"]
