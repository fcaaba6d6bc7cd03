"""An adapter as a value: tensors by key, a configuration, metadata. No model is needed for anything here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltaw.config import LoRAConfig
from deltaw.disk import safetensors_bytes, write_files
from deltaw.errors import CheckpointError, nearest
from deltaw.functional import delta_weight, scaling_of
from deltaw.keys import Contents, read_keys
from deltaw.peft_config import alpha_for, from_peft
from deltaw.read import CONFIG, WEIGHTS, read_config, read_tensors

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
        files = {WEIGHTS: safetensors_bytes(self.tensors, metadata), CONFIG: text.encode()}
        write_files(Path(directory), files)
        return sum(map(len, files.values()))

    @property
    def own(self) -> dict[str, Any]:
        """What deltaw wrote about the adapter into the metadata; empty for files of others."""
        try:
            found = json.loads(self.metadata.get(METADATA, "{}"))
        except json.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def config(self) -> LoRAConfig:
        """The configuration in deltaw's terms."""
        return from_peft(dict(self.raw), self.where)

    @property
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
            CheckpointError: if there is no such module, or one factor is missing.
        """
        factors = self.contents.factors
        if path not in factors or set(factors[path]) != {0, 1}:
            raise CheckpointError(
                "the adapter has no complete update for this module",
                where=self.where,
                got=repr(path),
                expected="a module with lora_A and lora_B",
                hint=f"nearest: {nearest(path, factors)}.",
            )
        return factors[path][0], factors[path][1]

    def scaling(self, path: str) -> float:
        """Factor on one module's update, by PEFT's rules.

        Args:
            path: module path.

        Returns:
            alpha / rank, or alpha / sqrt(rank).
        """
        rank = self.factors(path)[0].shape[0]
        return scaling_of(rank, alpha_for(dict(self.raw), path), bool(self.raw.get("use_rslora", False)))

    def delta(self, path: str) -> Tensor:
        """The update of one module as a dense matrix.

        Args:
            path: module path.

        Returns:
            scaling * B A, shape (O, I), fp32.
        """
        lora_A, lora_B = self.factors(path)
        return delta_weight(lora_A, lora_B, self.scaling(path))

    def spectrum(self, path: str) -> Tensor:
        """Singular values of one module's update, from its factors: the dense matrix is never formed.

        Args:
            path: module path.

        Returns:
            Shape (R,), descending, float64.
        """
        lora_A, lora_B = (factor.to(torch.float64) for factor in self.factors(path))
        core = torch.linalg.qr(lora_B, mode="r").R @ torch.linalg.qr(lora_A.t(), mode="r").R.t()
        values: Tensor = torch.linalg.svdvals(core)
        return values * abs(self.scaling(path))

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
