"""R-drop: every example goes through the model twice, with other dropout, and the two predictions are drawn together.

Legend: K tokens or rows, C classes (of a language model: the vocabulary). With the probabilities p and q of the two
passes, m = softmax of the mean of their logits, and the weight a, one token or row has the loss::

    pair   CE(p) + CE(q) + a (KL(p | q) + KL(q | p)) / 2
    mean   CE(p) + CE(q) + a (KL(m | p) + KL(m | q)) / 2C

``pair`` is R-drop's own. ``mean`` is what the NLU scripts of LoRA's authors compute: to the middle of the two, and
averaged over the classes too, so that its weight means less the more classes there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

__all__ = ["RDrop"]


@dataclass(frozen=True, kw_only=True)
class RDrop:
    """What two passes cost beside their own losses.

    Args:
        weight: of the divergence between them.
        form: ``pair`` or ``mean``, as above.
    """

    weight: float
    form: str = "pair"

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Weigh how far two predictions of the same thing are apart.

        Args:
            first: logits, shape (K, C), float32.
            second: logits of the other pass, like ``first``.

        Returns:
            Nats, shape (K,), with a gradient to both.

        Source:
            Liang et al. 2021, arXiv:2106.14448 (R-Drop), eq. 2 to 4; microsoft/LoRA at c4593f0, examples/NLU, the
            setting reg_loss_wgt of its DeBERTa.

        Example:
            >>> import torch
            >>> same = torch.tensor([[1.0, 2.0]])
            >>> RDrop(weight=1.0)(same, same).tolist()
            [0.0]
        """
        p, q = first.log_softmax(-1), second.log_softmax(-1)
        if self.form == "pair":
            # both directions in one sum: KL(p | q) + KL(q | p) = sum (p - q) (log p - log q)
            return self.weight * 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(-1)
        middle = ((first + second) / 2).log_softmax(-1)
        to_p, to_q = (F.kl_div(log, middle, reduction="none", log_target=True).sum(-1) for log in (p, q))
        return self.weight * 0.5 * (to_p + to_q) / first.shape[-1]
