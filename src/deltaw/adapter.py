"""An adapter as a value: tensors by key, a configuration, metadata. No model is needed for anything here.

Values can be scaled and added (``0.5 * a``, ``a + b``, ``a - b``), resized and compared; ``deltaw.algebra`` does it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deltaw.config import LoRAConfig
from deltaw.disk import Content, safetensors_file, write_files
from deltaw.errors import CheckpointError, nearest
from deltaw.functional import all_finite, scaling_of
from deltaw.keys import TWICE, Contents, factors_meet, read_keys
from deltaw.notes import read_notes
from deltaw.peft_config import alpha_for, from_peft
from deltaw.read import CONFIG, WEIGHTS, read_config, read_tensors

if TYPE_CHECKING:
    from deltaw.algebra.similarity import Similarity

__all__ = ["METADATA", "Adapter", "Norms"]

METADATA = "deltaw"
"""Key of our own entry in the safetensors metadata; other readers ignore it."""


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Size of one module's update.

    Args:
        frobenius: sqrt of the sum of squares of scaling * B A.
        spectral: its largest singular value.
        rank: R.
        scaling: factor.
    """

    frobenius: float
    spectral: float
    rank: int
    scaling: float


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A LoRA adapter that exists without a model.

    Args:
        tensors: PEFT key -> tensor, on the CPU.
        raw: PEFT's configuration, as in ``adapter_config.json``.
        metadata: the safetensors metadata.
        where: the directory it was read from, for messages.
    """

    tensors: Mapping[str, Tensor]
    raw: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)
    where: str = "an adapter in memory"

    def __repr__(self) -> str:
        """Where it is from, and how large it is; tensors are not shown."""
        method, size = self.raw.get("peft_type", "?"), f"{self.parameters:,} values"
        return f"Adapter({method}, {len(self.tensors)} tensors, {size}, from {self.where!r})"

    @classmethod
    def open(cls, directory: str | Path, *, accept_edits: bool = False) -> Adapter:
        """Read a PEFT directory: ``adapter_config.json`` and ``adapter_model.safetensors`` (or ``.bin``).

        Args:
            directory: the directory.
            accept_edits: take a configuration that was edited since deltaw wrote it.

        Returns:
            The adapter.

        Raises:
            CheckpointError: if files are absent, damaged, or of a kind that cannot be applied.
        """
        path = Path(directory)
        raw = read_config(path)
        tensors, metadata = read_tensors(path)
        adapter = cls(tensors=tensors, raw=raw, metadata=metadata, where=str(path))
        from_peft(raw, str(path / CONFIG))
        known = adapter.own.get("config_sha256")
        if known is not None and known != config_hash(raw) and not accept_edits:
            raise CheckpointError(
                "adapter_config.json is not the one these tensors were written with",
                where=str(path / CONFIG),
                got=f"content hash {config_hash(raw)[:12]}",
                expected=f"{known[:12]}, recorded in {WEIGHTS}",
                hint="restore it; after a deliberate edit: Adapter.open(directory, accept_edits=True).save(directory).",
            )
        return adapter

    def save(self, directory: str | Path) -> int:
        """Write the adapter as a PEFT directory, atomically, with bytes that depend on the content alone.

        Args:
            directory: made if absent; other files in it stay.

        Returns:
            Bytes written.

        Raises:
            CheckpointError: if the disk refuses.
        """
        own = {**self.own, "config_sha256": config_hash(self.raw)}
        metadata = {**self.metadata, "format": "pt", METADATA: json.dumps(own, sort_keys=True, separators=(",", ":"))}
        text = json.dumps(dict(self.raw), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        files: dict[str, Content] = {WEIGHTS: safetensors_file(self.tensors, metadata), CONFIG: text.encode()}
        return write_files(Path(directory), files)

    @property
    def own(self) -> dict[str, Any]:
        """What deltaw wrote about the adapter into the metadata; empty for files of others."""
        return read_notes(self.metadata.get(METADATA), self.where)

    @property
    def config(self) -> LoRAConfig:
        """The configuration in deltaw's terms."""
        return from_peft(dict(self.raw), self.where)

    @cached_property
    def contents(self) -> Contents:
        """The tensors, sorted by what they mean."""
        return read_keys(self.tensors)

    @property
    def parameters(self) -> int:
        """Number of values in the file."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def hash(self) -> str:
        """Identity of the content: every tensor and every module's scaling, whatever the file's layout says beside.

        Returns:
            64 hexadecimal digits.
        """
        digest = hashlib.sha256()
        for key in sorted(self.tensors):
            tensor = self.tensors[key].detach().to("cpu").contiguous()
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
        for path in self.modules():
            digest.update(f"{path} {self.scaling(path)!r}\n".encode())
        return digest.hexdigest()

    def modules(self) -> list[str]:
        """Paths of the modules with a low-rank update.

        Returns:
            Sorted paths.
        """
        return sorted(self.contents.factors)

    def factors(self, path: str) -> tuple[Tensor, Tensor]:
        """A and B of one module.

        Args:
            path: module path.

        Returns:
            A of shape (R, I) and B of shape (O, R), as stored.

        Raises:
            CheckpointError: if there is no such module, one factor is missing, or they do not fit each other.
        """
        factors = self.contents.factors
        if self.contents.vectors:
            raise CheckpointError(
                "a VeRA file holds vectors, and factors only together with a model's sizes",
                where=self.where,
                got=f"VeRA vectors of {len(self.contents.vectors)} modules",
                expected="a LoRA file",
                hint="load it on its base, or look at it with deltaw inspect.",
            )
        if path not in factors or set(factors[path]) != {0, 1}:
            raise CheckpointError(
                "the adapter has no complete update for this module",
                where=self.where,
                got=repr(path),
                expected="a module with lora_A and lora_B",
                hint=f"nearest: {nearest(path, factors)}.",
            )
        lora_A, lora_B = factors[path][0], factors[path][1]
        if not factors_meet(lora_A, lora_B):
            raise CheckpointError(
                "the factors of this module do not fit together",
                where=f"{self.where}, module '{path}'",
                got=f"A {tuple(lora_A.shape)} of {lora_A.dtype} and B {tuple(lora_B.shape)} of {lora_B.dtype}",
                expected="A of shape (R, I) and B of shape (O, R), of floating-point numbers",
                hint="the file is damaged or incomplete: copy it again.",
            )
        return lora_A, lora_B

    def scaling(self, path: str) -> float:
        """Factor on one module's update, by PEFT's rules.

        Args:
            path: module path.

        Returns:
            alpha / rank, or alpha / sqrt(rank).
        """
        rank = self.factors(path)[0].shape[0]
        # PEFT states one alpha for both projections of an attention, under the attention's own path
        attention = path.removesuffix(".out_proj")
        stated = attention if path in self.contents.inner else path
        return scaling_of(rank, alpha_for(dict(self.raw), stated), bool(self.raw.get("use_rslora", False)))

    def delta(self, path: str) -> Tensor:
        """The update of one module as a dense matrix.

        Args:
            path: module path.

        Returns:
            scaling * B A, shape (O, I), fp32; (O, I * kernel) for a convolution.
        """
        pairs = self._pairs(path, torch.float32)
        return torch.cat([lora_B @ lora_A for lora_A, lora_B in pairs]) * self.scaling(path)

    def spectrum(self, path: str) -> Tensor:
        """Singular values of one module's update, from its factors: the dense matrix is never formed.

        Args:
            path: module path.

        Returns:
            Shape (R,), descending, float64.

        Raises:
            CheckpointError: if the update is damaged.
        """
        from deltaw.algebra.factored import singular_values

        pairs = self._pairs(path, torch.float64)
        if not all(all_finite(factor) for pair in pairs for factor in pair):
            raise CheckpointError(
                "the adapter holds values that are not finite",
                where=f"{self.where}, module '{path}'",
                got="NaN or infinity",
                expected="finite numbers",
                hint="the training that wrote it diverged; take an earlier checkpoint.",
            )
        values = torch.cat([singular_values(*pair) for pair in pairs])
        return values.sort(descending=True).values * abs(self.scaling(path))

    def _pairs(self, path: str, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """A and B as matrices, one pair for each group of a convolution."""
        lora_A, lora_B = (factor.to(dtype).flatten(1) for factor in self.factors(path))
        lora_B = lora_B * TWICE if path in self.contents.inner else lora_B
        groups = max(1, lora_A.shape[0] // lora_B.shape[1])
        return list(zip(lora_A.chunk(groups), lora_B.chunk(groups), strict=True))

    def norms(self) -> dict[str, Norms]:
        """Size of every module's update.

        Returns:
            path -> norms.
        """
        found = {}
        for path in self.modules():
            values = self.spectrum(path)
            rank = self.factors(path)[0].shape[0]
            frobenius, spectral = float(values.square().sum().sqrt()), float(values.max())
            found[path] = Norms(frobenius=frobenius, spectral=spectral, rank=rank, scaling=self.scaling(path))
        return found

    def __mul__(self, weight: float) -> Adapter:
        """The same adapter with its updates times a number; see ``deltaw.algebra.combine.scale``."""
        from deltaw.algebra.combine import scale

        return scale(self, weight) if isinstance(weight, int | float) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Adapter:
        """The adapter whose updates are the opposite."""
        return self * -1.0

    def __add__(self, other: Adapter) -> Adapter:
        """The exact sum of the updates, at the least rank that holds it; see ``deltaw.combine``."""
        return self._sum(other, 1.0)

    def __sub__(self, other: Adapter) -> Adapter:
        """The exact difference of the updates, at the least rank that holds it; see ``deltaw.combine``."""
        return self._sum(other, -1.0)

    def _sum(self, other: Adapter, weight: float) -> Adapter:
        from deltaw.algebra.combine import combine

        return combine([self, other], [1.0, weight]).adapter if isinstance(other, Adapter) else NotImplemented

    def resize(self, *, rank: int | None = None, energy: float | None = None, budget: int | None = None) -> Adapter:
        """Cut the ranks, losing as little of the updates as that allows; ``deltaw.algebra.resize`` reports what.

        Args:
            rank: largest rank of any module; or
            energy: share of each module's squared norm to keep, in (0, 1]; or
            budget: values of A and B in the whole adapter.

        Returns:
            The smaller adapter.

        Raises:
            ConfigError: if not exactly one of the three is given, or it asks for the impossible.
            CheckpointError: if the adapter is no LoRA or is damaged.
        """
        from deltaw.algebra.resize import resize

        return resize(self, rank=rank, energy=energy, budget=budget).adapter

    def portable(self) -> Adapter:
        """The same updates for readers that know ``r`` and ``lora_alpha`` alone; see ``algebra.portable``.

        Returns:
            An adapter with one rank and a scaling of 1.

        Raises:
            CheckpointError: if it holds more than plain updates.
        """
        from deltaw.algebra.portable import portable

        return portable(self)

    def similarity(self, other: Adapter, *, allow_other_base: bool = False) -> Similarity:
        """How two adapters relate: cosine of their updates, and how far their subspaces overlap.

        Args:
            other: the other adapter.
            allow_other_base: compare adapters whose recorded bases differ.

        Returns:
            The comparison, for each module and for the whole.

        Raises:
            CheckpointError: if the bases differ, no module is in both, or a file is no LoRA or damaged.
        """
        from deltaw.algebra.similarity import compare

        return compare(self, other, allow_other_base=allow_other_base)


_MEANING = (
    "alpha_pattern", "bias", "lora_alpha", "modules_to_save", "peft_type", "r", "rank_pattern", "target_modules",
    "use_rslora",
)  # fmt: skip


def config_hash(raw: Mapping[str, Any]) -> str:
    """Hash of those fields of a configuration that change what the tensors mean.

    Args:
        raw: the parsed ``adapter_config.json``.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps({key: raw.get(key) for key in _MEANING}, sort_keys=True).encode()).hexdigest()
