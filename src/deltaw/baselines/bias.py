"""BitFit: the bias vectors of the body, and nothing else.

Source:
    Ben Zaken et al. 2021, arXiv:2106.10199; "Bias-only or BitFit" of arXiv:2106.09685. A block of width d has 11 d
    values in biases: 3 of attention's inputs, 1 of its output, 4 + 1 of the MLP, 2 of the LayerNorms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from deltaw.baselines.anatomy import Anatomy
from deltaw.baselines.method import Method
from deltaw.errors import ModelError

__all__ = ["BiasOnly"]


@dataclass(frozen=True, kw_only=True)
class BiasOnly(Method):
    """A copy of every bias of the body is trained; heads outside the body keep theirs.

    Example:
        >>> BiasOnly().name
        'bias'
    """

    name: ClassVar[str] = "bias"
    title: ClassVar[str] = "biases alone (BitFit)"

    def tuned(self, anatomy: Anatomy) -> tuple[str, ...]:
        """Name the biases.

        Args:
            anatomy: the model's parts.

        Returns:
            Names of the body's parameters that are called ``bias``.

        Raises:
            ModelError: if the body has none, as Llama's has not.
        """
        path, body = anatomy.body
        prefix = f"{path}." if path else ""
        found = [prefix + name for name, _ in body.named_parameters() if name.rpartition(".")[2] == "bias"]
        if not found:
            raise ModelError(
                "the model has no bias to train",
                where=f"body {path or type(body).__name__!r}",
                got=f"{sum(1 for _ in body.parameters())} parameters, none of them called bias",
                expected="linear layers or norms with a bias, as in GPT-2 and BERT",
                hint="use another method: --method lora, or an adapter.",
            )
        return tuple(found)
