"""What a language model does between its head and its logits: scale and soft cap, as its config declares them.

The same name means a factor in one family and a divisor in another, and a cap that is far above the logits of a small
or fresh model hardly changes them. So a declaration is a candidate: ``Losses.verify`` compares it with the model's own
logits, as they are and made large.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from deltaw.chunked import Rules

__all__ = ["readouts"]

# Where transformers' modeling files (5.24) multiply the logits, and where they divide them.
FACTORS = ("logit_scale", "output_multiplier", "lm_head_multiplier")  # Cohere; Muse Glimmer; Falcon-H1
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")  # Granite, MiniCPM3; Inkling
# Gemma 2 to 4, PaliGemma, nanochat; RecurrentGemma; xLSTM.
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def readouts(model: nn.Module) -> list[Rules]:
    """The ways a model may turn its head's output into logits, likeliest first.

    Args:
        model: with a config, or without.

    Returns:
        At least one. Both readings of a scale, where one name has two; the plain head last, for declarations that a
        model does not read.

    Example:
        >>> readouts(nn.Linear(2, 2))
        [Rules(label_smoothing=0.0, logit_scale=1.0, soft_cap=None)]
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    factors, divisors, caps = (_numbers(text, names) for names in (FACTORS, DIVISORS, CAPS))
    scale, cap = factors[0] if factors else 1.0, caps[0] if caps else None
    found = [Rules(logit_scale=scale / (divisors[0] if divisors else 1.0), soft_cap=cap)]
    if divisors:
        # HyperCLOVA X multiplies by what Granite divides by
        found.append(Rules(logit_scale=scale * divisors[0], soft_cap=cap))
    return list(dict.fromkeys([*found, Rules()]))


def _numbers(config: Any, names: tuple[str, ...]) -> list[float]:
    """What a config says under these names; 0, None and a word, which MPT has and reads nowhere, say nothing."""
    found = (getattr(config, name, None) for name in names)
    return [float(value) for value in found if isinstance(value, (int, float)) and value]
