"""The hyper-parameters that the paper prints, cell by cell: Tables 9, 10, 11, 12 and 17 of arXiv:2106.09685v2.

Nothing here is corrected; what is known to be wrong or different elsewhere stands in ``recipe_errata.py``.
"""

from __future__ import annotations

from typing import Any

__all__ = ["GLUE", "MODELS", "PARTS", "SIZES", "TABLES", "TITLES", "cells"]

GLUE = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
TRIPLES = ("e2e", "webnlg", "dart")
GPT3_TASKS = ("wikisql", "mnli", "samsum")
SIZES = ("100", "1k", "10k", "392k")

TITLES = {
    "table9": "RoBERTa on GLUE",
    "table10": "DeBERTa XXL on GLUE",
    "table11": "GPT-2 on E2E, WebNLG and DART",
    "table12": "GPT-3 on WikiSQL, MNLI and SAMSum",
    "table17": "GPT-3 on parts of MNLI",
}

MODELS = {
    "roberta-base": "roberta-base",
    "roberta-large": "roberta-large",
    "deberta-v2-xxlarge": "microsoft/deberta-v2-xxlarge",
    "gpt2-medium": "gpt2-medium",
    "gpt2-large": "gpt2-large",
}
"""Row -> its base on the hub; rows that are methods name their model in the cell ``model``."""

# Every cell is one value for all columns, or a tuple with one for each.
Row = dict[str, Any]

_LARGE = (3e-4, 4e-4, 3e-4, 2e-4, 2e-4, 3e-4, 4e-4, 2e-4)
_LORA_9: Row = {"method": "lora", "warmup": 0.06, "rank": 8}
_RESTRICTED: Row = {"model": "roberta-large", "warmup": 0.06, "length": 128}

TABLE_9: dict[str, Row] = {
    "roberta-base": _LORA_9 | {
        "batch": (16, 16, 16, 32, 32, 16, 32, 16), "epochs": (30, 60, 30, 80, 25, 25, 80, 40),
        "lr": (5e-4, 5e-4, 4e-4, 4e-4, 4e-4, 5e-4, 5e-4, 4e-4), "alpha": 8, "length": 512,
    },
    "roberta-large": _LORA_9 | {
        "batch": (4, 4, 4, 4, 4, 4, 8, 8), "epochs": (10, 10, 20, 20, 10, 20, 20, 30), "lr": _LARGE, "alpha": 16,
        "length": (128, 128, 512, 128, 512, 512, 512, 512),
    },
    "roberta-large-restricted": _RESTRICTED | _LORA_9 | {
        "batch": 4, "epochs": (10, 10, 20, 20, 10, 20, 20, 10), "lr": _LARGE, "alpha": 16,
    },
    "adapter-p-3.0m": _RESTRICTED | {
        "method": "adapter-p", "bottleneck": 64, "batch": 32, "epochs": (10, 20, 20, 20, 10, 20, 20, 20),
        "lr": (3e-5, 3e-5, 3e-4, 3e-4, 3e-4, 3e-4, 3e-4, 3e-4),
    },
    "adapter-p-0.8m": _RESTRICTED | {
        "method": "adapter-p", "bottleneck": 16, "batch": 32, "epochs": (5, 20, 20, 20, 10, 20, 20, 20), "lr": 3e-4,
    },
    "adapter-h-6.0m": _RESTRICTED | {
        "method": "adapter-h", "bottleneck": 64, "batch": 32, "epochs": (10, 5, 10, 10, 5, 20, 20, 10),
        "lr": (3e-5, 3e-4, 3e-4, 3e-4, 3e-4, 3e-4, 3e-4, 3e-4),
    },
    "adapter-h-0.8m": _RESTRICTED | {
        "method": "adapter-h", "bottleneck": 8, "batch": 32, "epochs": (10, 5, 10, 10, 5, 20, 20, 10), "lr": 3e-4,
    },
}  # fmt: skip

TABLE_10: dict[str, Row] = {
    "deberta-v2-xxlarge": {
        "method": "lora", "warmup": 0.1, "batch": (8, 8, 32, 4, 6, 8, 4, 4), "epochs": (5, 16, 30, 10, 8, 11, 11, 10),
        "lr": (1e-4, 6e-5, 2e-4, 1e-4, 1e-4, 1e-4, 2e-4, 2e-4),
        "weight_decay": (0.0, 0.01, 0.01, 0.0, 0.01, 0.01, 0.01, 0.1),
        "head_dropout": (0.15, 0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.2), "rank": 8, "alpha": 8,
        "length": (256, 128, 128, 64, 512, 320, 320, 128),
    },
}  # fmt: skip

_GPT2: Row = {
    "method": "lora", "weight_decay": (0.01, 0.01, 0.0), "dropout": (0.1, 0.1, 0.0), "batch": 8, "epochs": 5,
    "warmup": 500, "label_smoothing": (0.1, 0.1, 0.0), "lr": 2e-4, "rank": 4, "alpha": 32, "beams": 10,
    "length_penalty": (0.9, 0.8, 0.8), "no_repeat": 4,
}  # fmt: skip
TABLE_11: dict[str, Row] = {"gpt2-medium": _GPT2, "gpt2-large": _GPT2}

_GPT3: Row = {
    "batch": 128, "epochs": 2, "weight_decay": 0.1, "warmup_tokens": 250_000, "length": (384, 768, 2048),
}  # fmt: skip
TABLE_12: dict[str, Row] = {
    "full": _GPT3 | {"method": "full", "lr": 5e-6},
    "prefix-embedding": _GPT3 | {"method": "prefix-embedding", "lr": 5e-4, "prefix_length": 256, "infix_length": 8},
    "prefix-layer": _GPT3 | {"method": "prefix-layer", "lr": 1e-4, "prefix_length": 8, "infix_length": 8},
    "bias": _GPT3 | {"method": "bias", "lr": 1.6e-3},
    "adapter-h": _GPT3 | {"method": "adapter-h", "lr": 1e-4},
    "lora": _GPT3 | {"method": "lora", "lr": 2e-4},
}

_PARTS: Row = {"batch": (20, 20, 100, 128), "epochs": (40, 40, 4, 2), "warmup_tokens": 250_000}
TABLE_17: dict[str, Row] = {
    "full": _PARTS | {"method": "full", "lr": 5e-6},
    "prefix-embedding": _PARTS | {
        "method": "prefix-embedding", "lr": (2e-4, 2e-4, 4e-4, 5e-4), "prefix_length": (16, 32, 64, 256),
        "infix_length": 8,
    },
    "prefix-layer": _PARTS | {
        "method": "prefix-layer", "lr": (5e-5, 5e-5, 5e-5, 1e-4), "prefix_length": 8, "infix_length": 8,
    },
    "lora": _PARTS | {"method": "lora", "lr": 2e-4, "rank": 8},
}  # fmt: skip

TABLES: dict[str, dict[str, Row]] = {
    "table9": TABLE_9, "table10": TABLE_10, "table11": TABLE_11, "table12": TABLE_12, "table17": TABLE_17,
}  # fmt: skip
"""Table -> row -> cells."""

PARTS = {
    "table9": GLUE, "table10": GLUE, "table11": TRIPLES, "table12": GPT3_TASKS, "table17": SIZES,
}  # fmt: skip
"""Table -> its columns."""


def cells(table: str, row: str, column: str) -> Row:
    """Read one column of a row.

    Args:
        table: a key of ``TABLES``.
        row: a key of that table.
        column: one of ``PARTS``.

    Returns:
        Quantity -> value.

    Example:
        >>> cells("table10", "deberta-v2-xxlarge", "qnli")["batch"]
        6
    """
    place = PARTS[table].index(column)
    found = TABLES[table][row]
    return {name: value[place] if isinstance(value, tuple) else value for name, value in found.items()}
