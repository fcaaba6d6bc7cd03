"""Arithmetic on adapters as values: scale, add, subtract, concatenate, resize, compare, extract. No model is needed.

Everything works on the factors; a dense update is never formed (``extract`` alone looks at one dense matrix at a time,
the difference of two checkpoints). ``factored.py`` is the mathematics, ``parts.py`` what an adapter is made of.
"""

from __future__ import annotations

from deltaw.algebra.combine import CombinedModule, CombineReport, combine, scale
from deltaw.algebra.extract import ExtractedModule, ExtractReport, extract
from deltaw.algebra.methods import METHODS
from deltaw.algebra.resize import ResizedModule, ResizeReport, resize
from deltaw.algebra.similarity import ModuleSimilarity, Similarity, compare, overlaps, subspace_similarity

__all__ = [
    "METHODS",
    "CombineReport",
    "CombinedModule",
    "ExtractReport",
    "ExtractedModule",
    "ModuleSimilarity",
    "ResizeReport",
    "ResizedModule",
    "Similarity",
    "combine",
    "compare",
    "extract",
    "overlaps",
    "resize",
    "scale",
    "subspace_similarity",
]
