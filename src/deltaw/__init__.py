"""LoRA for PyTorch: attach a low-rank update to any model, train it, prove what it does, then merge or export it."""

from deltaw.version import __version__

__all__ = ["__version__"]
