"""The paper's experiments at a scale that runs anywhere, as rows that one command repeats.

A row is a list of command lines, such as a user would type, and what is read off their output. ``run_row`` runs one
and returns a ``Record``: values, settings, seed, date, hardware, and a hash of every input. The report is made of such
records alone.
"""

from deltaw.paper.reproduce.records import Record, read_records, write_record
from deltaw.paper.reproduce.row import Places, Row
from deltaw.paper.reproduce.rows import ROWS, row_named
from deltaw.paper.reproduce.run import run_row

__all__ = ["ROWS", "Places", "Record", "Row", "read_records", "row_named", "run_row", "write_record"]
