"""The metrics of the paper's tables, natively: no Perl, no Java, no network.

``score`` computes one; ``METRICS`` lists them; a group such as ``E2E_METRICS`` names the metrics of a table with the
options of the script that produced it. Every score says which variant of the metric it is.
"""

from deltaw.paper.metrics.base import Metric, Score
from deltaw.paper.metrics.files import Segments, read_lines, read_segments
from deltaw.paper.metrics.registry import E2E_METRICS, GLUE_METRICS, METRICS, WEBNLG_METRICS, score

__all__ = [
    "E2E_METRICS",
    "GLUE_METRICS",
    "METRICS",
    "WEBNLG_METRICS",
    "Metric",
    "Score",
    "Segments",
    "read_lines",
    "read_segments",
    "score",
]
