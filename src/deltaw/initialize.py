"""Initializations of A and B: pure functions from a request to two fp32 tensors on the CPU.

Each draws from its own generator, so the result depends on the seed and the module's path alone: not on the order of
modules, not on the device, and the global random state is left as it was.

Those that start from the weight or from a gradient give factors whose product is not zero. The base is never changed
for them: the update is B A minus what it started from, so the first output is the base's own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.errors import ConfigError

__all__ = [
    "INITIALIZATIONS", "Initialization", "Request", "eva", "gaussian", "kaiming", "lora_ga", "olora", "orthogonal",
    "pissa", "pissa_fast", "seed_for", "swapped",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Request:
    """What an initialization is asked for.

    Weights are matrices here: (O, K) with K = I for a linear map, I / groups * kernel for a convolution.

    Args:
        in_features: K.
        out_features: O.
        rank: R.
        seed: seed of this site's generator.
        groups: blocks on the weight's diagonal.
        stored: shapes in which A and B are kept; None for (R, K) and (O, R).
        init: name of the initialization.
        subtract: what the factors start from is taken off the update again.
        lookup: inputs are token ids, and A is to start at zero.
        scaling: factor on the update.
        weight: gives the weight, shape (O, K); None where it is not known.
        data: what was gathered for this site: right singular vectors of its inputs, shape (>= R, K), or the gradient
            of its weight, shape (O, K).
    """

    in_features: int
    out_features: int
    rank: int
    seed: int
    groups: int = 1
    stored: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    init: str = "kaiming"
    subtract: bool = False
    lookup: bool = False
    scaling: float = 1.0
    weight: Callable[[], Tensor] | None = None
    data: Tensor | None = None

    def bare(self) -> Request:
        """The same without the weight and the data.

        Returns:
            A request that holds sizes and settings only.
        """
        return Request(**{**vars(self), "weight": None, "data": None})

    def generator(self) -> torch.Generator:
        """A fresh CPU generator of this request's seed.

        Returns:
            The generator.
        """
        return torch.Generator().manual_seed(self.seed)

    @property
    def shape_A(self) -> tuple[int, ...]:
        """Shape in which A is kept."""
        return self.stored[0] if self.stored else (self.rank, self.in_features)

    @property
    def shape_B(self) -> tuple[int, ...]:
        """Shape in which B is kept."""
        return self.stored[1] if self.stored else (self.out_features, self.rank // self.groups)

    def matrix(self) -> Tensor:
        """The weight as a matrix, as it is stored: dtype and device of the base.

        Returns:
            Shape (O, K).

        Raises:
            ConfigError: if there is none.
        """
        if self.weight is None:
            raise _without("the weight", self.init)
        return self.weight().detach()

    def gathered(self) -> Tensor:
        """What was gathered for this site, fp32 on the CPU.

        Returns:
            The tensor.

        Raises:
            ConfigError: if nothing was.
        """
        if self.data is None:
            raise _without("batches of data", self.init)
        return self.data.detach().to("cpu", torch.float32)


def _without(what: str, init: str) -> ConfigError:
    return ConfigError(
        f"this initialization needs {what}",
        where=f"init={init!r}",
        got="none",
        expected=what,
        hint="pass batches= to attach, or choose an initialization that needs nothing, such as 'kaiming'.",
    )


def seed_for(seed: int, *names: str) -> int:
    """Derive a 63-bit seed for one place from the run's seed.

    Args:
        seed: the run's seed.
        *names: what identifies the place, such as adapter and module path.

    Returns:
        A seed that is stable across processes and Python versions.

    Example:
        >>> seed_for(0, "a") == seed_for(0, "a"), seed_for(0, "a") == seed_for(1, "a")
        (True, False)
    """
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def kaiming(request: Request) -> tuple[Tensor, Tensor]:
    """A uniform in +-1/sqrt(I), B zero: the reference implementation's choice.

    Args:
        request: sizes and seed.

    Returns:
        A of shape (R, I) and B of shape (O, R), fp32.

    Source:
        Kaiming-uniform with a = sqrt(5), as in loralib; its bound is 1/sqrt(fan_in).

    Example:
        >>> A, B = kaiming(Request(in_features=16, out_features=2, rank=4, seed=0))
        >>> bool(A.abs().max() <= 0.25), bool((B == 0).all())
        (True, True)
    """
    bound = 1 / math.sqrt(request.in_features)
    lora_A = torch.empty(request.rank, request.in_features).uniform_(-bound, bound, generator=request.generator())
    return lora_A, torch.zeros(request.shape_B)


def gaussian(request: Request) -> tuple[Tensor, Tensor]:
    """A normal with standard deviation 1/R, B zero: the paper's choice of distribution.

    The paper gives no standard deviation; 1/R is the field's convention.

    Args:
        request: sizes and seed.

    Returns:
        A of shape (R, I) and B of shape (O, R), fp32.

    Source:
        arXiv:2106.09685, section 4.1.

    Example:
        >>> gaussian(Request(in_features=3, out_features=2, rank=1, seed=0))[0].shape
        torch.Size([1, 3])
    """
    lora_A = torch.empty(request.rank, request.in_features)
    lora_A.normal_(0, 1 / request.rank, generator=request.generator())
    return lora_A, torch.zeros(request.shape_B)


def swapped(request: Request) -> tuple[Tensor, Tensor]:
    """A zero, B standard normal: for lookups, where a zero B would leave rare tokens without a start.

    Args:
        request: sizes and seed.

    Returns:
        A of shape (R, I) and B of shape (O, R), fp32.

    Source:
        The reference implementation's Embedding.

    Example:
        >>> A, B = swapped(Request(in_features=3, out_features=2, rank=1, seed=0))
        >>> bool((A == 0).all()), B.shape
        (True, torch.Size([2, 1]))
    """
    lora_B = torch.empty(request.out_features, request.rank).normal_(generator=request.generator())
    return torch.zeros(request.rank, request.in_features), lora_B


def _finite(request: Request, values: Tensor, source: str = "the weight") -> Tensor:
    """Refuse to start from values that are not finite."""
    if not bool(torch.isfinite(values).all()):
        raise ConfigError(
            f"this initialization cannot start from {source}",
            where=f"init={request.init!r}, a weight of {request.out_features} x {request.in_features}",
            got="NaN or infinity",
            expected="finite numbers",
            hint="load the base again, or look at the batches; init='kaiming' starts from neither.",
        )
    return values


def _full_rank(request: Request, most: int, source: str = "the weight") -> None:
    """Refuse more directions than a weight, or the data, has."""
    if request.rank > most:
        raise ConfigError(
            f"this initialization takes its directions from {source}, which has fewer",
            where=f"init={request.init!r}, a weight of {request.out_features} x {request.in_features}",
            got=f"rank {request.rank}",
            expected=f"a rank of at most {most}",
            hint="lower the rank there with rank_pattern, or use init='kaiming'.",
        )


def _split(U: Tensor, S: Tensor, Vh: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Balanced factors of U S Vh / scaling."""
    root = (S / abs(scaling)).sqrt()
    return root[:, None] * Vh, U * root * math.copysign(1.0, scaling)


def pissa(request: Request) -> tuple[Tensor, Tensor]:
    """The R strongest directions of the weight, from its exact singular value decomposition.

    Args:
        request: sizes, scaling and weight.

    Returns:
        A of shape (R, I) and B of shape (O, R) with scaling * B A the best rank-R approximation of W, fp32.

    Raises:
        ConfigError: if the weight has fewer than R directions.

    Source:
        Meng et al. 2024, arXiv:2404.02948, eq. 2-4.

    Example:
        >>> W = torch.diag(torch.tensor([4.0, 1.0]))
        >>> A, B = pissa(Request(in_features=2, out_features=2, rank=1, seed=0, weight=lambda: W))
        >>> (B @ A).round().tolist()
        [[4.0, 0.0], [0.0, 0.0]]
    """
    weight = _finite(request, request.matrix().to("cpu", torch.float32))
    _full_rank(request, min(weight.shape))
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    return _split(U[:, : request.rank], S[: request.rank], Vh[: request.rank], request.scaling)


def pissa_fast(request: Request) -> tuple[Tensor, Tensor]:
    """``pissa`` with a randomized decomposition: eight passes over the weight instead of a full one.

    Args:
        request: sizes, scaling, seed and weight.

    Returns:
        As ``pissa``, nearly.

    Raises:
        ConfigError: if the weight has fewer than R directions.

    Source:
        Halko et al. 2011, arXiv:0909.4061, algorithm 4.4; Meng et al. 2024, arXiv:2404.02948, section 5.
    """
    weight = _finite(request, request.matrix().to("cpu", torch.float32))
    _full_rank(request, min(weight.shape))
    wide = min(request.rank + max(8, request.rank // 2), min(weight.shape))
    basis = torch.randn(weight.shape[1], wide, generator=request.generator())
    for _ in range(4):
        basis = torch.linalg.qr(weight.t() @ torch.linalg.qr(weight @ basis).Q).Q
    U, S, Vh = torch.linalg.svd(weight @ basis, full_matrices=False)
    return _split(U[:, : request.rank], S[: request.rank], (Vh @ basis.t())[: request.rank], request.scaling)


def olora(request: Request) -> tuple[Tensor, Tensor]:
    """The first R columns and rows of the weight's QR decomposition: B is orthonormal.

    Args:
        request: sizes and weight.

    Returns:
        A of shape (R, I) and B of shape (O, R), fp32.

    Raises:
        ConfigError: if the weight has fewer than R directions.

    Source:
        Buyukakyuz 2024, arXiv:2406.01775, algorithm 1.
    """
    weight = _finite(request, request.matrix().to("cpu", torch.float32))
    _full_rank(request, min(weight.shape))
    Q, R = torch.linalg.qr(weight)
    return R[: request.rank].contiguous(), Q[:, : request.rank].contiguous()


def orthogonal(request: Request) -> tuple[Tensor, Tensor]:
    """Both factors random, their rank spaces orthogonal: B A is zero up to rounding, and both get gradients at once.

    Args:
        request: sizes and seed; the rank must be even.

    Returns:
        A of shape (R, I) and B of shape (O, R), fp32, entries around 0.1.

    Raises:
        ConfigError: if the rank is odd.

    Source:
        The halves of one orthogonal R x R matrix, as PEFT's ``init_lora_weights="orthogonal"``.

    Example:
        >>> A, B = orthogonal(Request(in_features=6, out_features=5, rank=4, seed=0))
        >>> bool((B @ A).abs().max() < 1e-7), bool(A.any() and B.any())
        (True, True)
    """
    half, odd = divmod(request.rank, 2)
    if odd:
        raise ConfigError(
            "this initialization splits the rank in two halves",
            where=f"init={request.init!r}",
            got=f"rank {request.rank}",
            expected="an even rank",
            hint=f"use rank {request.rank + 1}.",
        )
    generator = request.generator()
    Q = torch.linalg.qr(torch.randn(request.rank, request.rank, generator=generator, dtype=torch.float64)).Q
    left = torch.randn(half, request.in_features, generator=generator, dtype=torch.float64)
    right = torch.randn(request.out_features, half, generator=generator, dtype=torch.float64)
    return (Q[:half].t() @ left / 10).float(), (right @ Q[half:] / 10).float()


def eva(request: Request) -> tuple[Tensor, Tensor]:
    """A spans the directions in which the site's inputs vary most, B is zero.

    Args:
        request: sizes, and the inputs' right singular vectors.

    Returns:
        A of shape (R, I) with orthonormal rows and B of shape (O, R), fp32.

    Raises:
        ConfigError: if no data was gathered, or less than R directions of it.

    Source:
        Paischer et al. 2024, arXiv:2410.07170, section 3.
    """
    vectors = request.gathered()
    _full_rank(request, len(vectors), "the data")
    return vectors[: request.rank].clone(), torch.zeros(request.shape_B)


def lora_ga(request: Request) -> tuple[Tensor, Tensor]:
    """Factors whose first step follows the gradient of the whole weight.

    A takes the R strongest right directions of the gradient, B the next R left ones; both are scaled so that the
    update's size does not depend on the layer's.

    Args:
        request: sizes, scaling, and the gradient of the weight.

    Returns:
        A of shape (R, I) and B of shape (O, R), fp32.

    Raises:
        ConfigError: if no gradient was gathered, or the weight has fewer than 2 R directions.

    Source:
        Wang et al. 2024, arXiv:2407.05000, eq. 9-11 with gamma = 16.
    """
    gradient = _finite(request, request.gathered(), "the gradient")
    _full_rank(request, min(gradient.shape) // 2)
    U, _, Vh = torch.linalg.svd(gradient, full_matrices=False)
    size = request.out_features**0.25 / 4 / abs(request.scaling) ** 0.5
    return Vh[: request.rank] * size, U[:, request.rank : 2 * request.rank] * size


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Initialization:
    """One way to start.

    Args:
        draw: the function.
        needs: what it needs beside sizes and a seed: ``""``, ``"weight"``, ``"inputs"`` or ``"gradient"``.
        subtract: its product is not zero, and is taken off the update again.
        anywhere: it applies to every kind of site; the others to linear maps only.
    """

    draw: Callable[[Request], tuple[Tensor, Tensor]]
    needs: str = ""
    subtract: bool = False
    anywhere: bool = False


INITIALIZATIONS: dict[str, Initialization] = {
    "kaiming": Initialization(draw=kaiming, anywhere=True),
    "gaussian": Initialization(draw=gaussian, anywhere=True),
    "orthogonal": Initialization(draw=orthogonal),
    "pissa": Initialization(draw=pissa, needs="weight", subtract=True),
    "pissa_fast": Initialization(draw=pissa_fast, needs="weight", subtract=True),
    "olora": Initialization(draw=olora, needs="weight", subtract=True),
    "eva": Initialization(draw=eva, needs="inputs"),
    "lora_ga": Initialization(draw=lora_ga, needs="gradient", subtract=True),
}
