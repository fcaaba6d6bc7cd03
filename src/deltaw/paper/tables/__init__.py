"""The paper's printed tables, figures, claims and errata as data.

One TOML file holds one table, ``figures.toml`` the figures of which numbers are stated. A cell keeps the text as
printed and what it says as numbers; its id, such as ``table3/M LoRA/BLEU``, is stable: results are joined to the paper
by it.
"""

from deltaw.paper.tables.load import TABLE_IDS, errata, erratum, find_cell, printed_table, printed_tables, read_table
from deltaw.paper.tables.types import Cell, Column, Erratum, PrintedTable, Row, read_number

__all__ = [
    "TABLE_IDS", "Cell", "Column", "Erratum", "PrintedTable", "Row", "errata", "erratum", "find_cell", "printed_table",
    "printed_tables", "read_number", "read_table",
]  # fmt: skip
