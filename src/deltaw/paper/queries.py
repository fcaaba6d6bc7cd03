"""WikiSQL's answers as queries: each row's SQL read with the header of its table, beside the right query.

The lines are those of salesforce/WikiSQL, evaluate.py, which ``wikisql_lf`` and ``wikisql_ex`` read too: an answer is
``{"query": {...}}``, or ``{"error": ...}`` where it is none; a reference is ``{"table_id": ..., "sql": {...}}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaw.errors import DataError
from deltaw.paper.decode import Answer
from deltaw.reports import count, plural
from deltaw.train.data.sources.base import Row
from deltaw.train.data.tasks import Query, parse_sql
from deltaw.train.files import write_text

__all__ = ["Question", "Written", "questions_of", "write_queries"]

HYPOTHESES, REFERENCES = "hypotheses.jsonl", "references.jsonl"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One row of WikiSQL: what is asked, and what its answer is read with and compared with.

    Args:
        context: what a model is given: the columns and the question.
        table: id of the table.
        header: the table's column names.
        query: the right query.
    """

    context: str
    table: str
    header: tuple[str, ...]
    query: Query

    def reference(self) -> dict[str, Any]:
        """Write the line that an answer is compared with.

        Returns:
            The data set's form, with the header that the query's positions count in.
        """
        return {"table_id": self.table, "header": list(self.header), "sql": self.query.as_dict()}

    def hypothesis(self, answer: str) -> dict[str, Any]:
        """Read an answer with the header of the table.

        Args:
            answer: what a model wrote: SQL, or anything else.

        Returns:
            The query under ``query``; of another text what it lacks, under ``error``, and the text under ``answer``.
        """
        try:
            return {"query": parse_sql(answer, self.header).as_dict()}
        except DataError as error:
            return {"error": error.what, "answer": answer}


@dataclass(frozen=True, kw_only=True)
class Written:
    """The two files of a layout of queries.

    Args:
        files: their names, answers first.
        rows: lines of each.
        no_query: lines, counted from 1, whose answer is no query on its table.
    """

    files: tuple[str, str]
    rows: int
    no_query: tuple[int, ...]

    def __str__(self) -> str:
        """How many lines there are, and which of them hold no query."""
        lines = [f"{plural(self.rows, 'row')} in {' and '.join(self.files)}, in the order of the data"]
        if self.no_query:
            shown = ", ".join(map(str, self.no_query[:5])) + (", ..." if len(self.no_query) > 5 else "")
            lines.append(
                f"NO QUERY: {count(len(self.no_query))} of {plural(self.rows, 'row')} got an answer that is no query "
                f"on the row's table; it is kept and counts as wrong (lines {shown})"
            )
        return "\n".join(lines)


def questions_of(rows: Iterable[Row]) -> list[Question]:
    """Take what queries are read and judged with from rows of WikiSQL.

    Args:
        rows: of the task ``wikisql``, as ``read_task`` opens them.

    Returns:
        A question for every row, in their order.
    """
    return [
        Question(
            context=row["context"],
            table=row["entry"],
            header=tuple(row["header"]),
            query=Query.from_dict(row["query"]),
        )
        for row in rows
    ]


def write_queries(directory: Path, answers: Sequence[Answer], questions: Sequence[Question]) -> Written:
    """Write a line for every question: its answer as a query, and the right query with its table.

    Questions with equal contexts share an answer; each is read with its own header and compared with its own query.

    Args:
        directory: where to.
        answers: one for every distinct context.
        questions: in the order of the lines; the context of each is answered.

    Returns:
        What was written, and which lines hold no query.
    """
    told = {answer.context: answer.prediction for answer in answers}
    lines = [question.hypothesis(told[question.context]) for question in questions]
    write_text(directory / HYPOTHESES, "".join(map(_line, lines)))
    write_text(directory / REFERENCES, "".join(_line(question.reference()) for question in questions))
    no_query = tuple(number for number, line in enumerate(lines, 1) if "query" not in line)
    return Written(files=(HYPOTHESES, REFERENCES), rows=len(lines), no_query=no_query)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
