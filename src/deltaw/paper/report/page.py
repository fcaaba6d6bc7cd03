"""A page as a list of blocks that is written as Markdown and as HTML from the same content."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Code", "Details", "Heading", "Image", "Page", "Paragraph", "Table"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .875rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .2rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.words { text-align: left; white-space: normal; min-width: 14rem; }
pre { background: #f4f4f4; padding: .6rem; overflow-x: auto; font-size: .8rem; }
summary { cursor: pointer; color: #333; }
img { max-width: 100%; }
h2 { border-top: 2px solid #1a1a1a; padding-top: .5rem; margin-top: 2.5rem; }
"""


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A heading.

    Args:
        text: its words.
        level: 1 for the page, 2 for a part, 3 for a section.
    """

    text: str
    level: int = 2

    def markdown(self) -> str:
        """Markdown of the block."""
        return f"{'#' * self.level} {self.text}"

    def html(self) -> str:
        """HTML of the block, with an anchor."""
        anchor = "".join(letter if letter.isalnum() else "-" for letter in self.text.partition(":")[0].lower())
        return f'<h{self.level} id="{anchor}">{html.escape(self.text)}</h{self.level}>'


@dataclass(frozen=True, kw_only=True)
class Paragraph:
    """Plain sentences.

    Args:
        text: the words, without markup.
    """

    text: str

    def markdown(self) -> str:
        """Markdown of the block."""
        return self.text

    def html(self) -> str:
        """HTML of the block."""
        return f"<p>{html.escape(self.text)}</p>"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; cells that hold sentences are set as words.

    Args:
        head: titles of the columns.
        rows: as many cells each.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Markdown of the block."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (self.head, rule, *self.rows)]
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)

    def html(self) -> str:
        """HTML of the block."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.head)
        rows = "\n".join(f"<tr>{''.join(map(self._cell, row))}</tr>" for row in self.rows)
        return f"<table>\n<tr>{head}</tr>\n{rows}\n</table>"

    @staticmethod
    def _cell(cell: str) -> str:
        return f"<td{' class=words' if len(cell) > 40 else ''}>{html.escape(cell)}</td>"


@dataclass(frozen=True, kw_only=True)
class Code:
    """Lines as they are typed.

    Args:
        text: the lines.
    """

    text: str

    def markdown(self) -> str:
        """Markdown of the block."""
        return f"```\n{self.text}\n```"

    def html(self) -> str:
        """HTML of the block."""
        return f"<pre>{html.escape(self.text)}</pre>"


@dataclass(frozen=True, kw_only=True)
class Image:
    """A figure: a file beside the page.

    Args:
        name: of the SVG file.
        text: what it shows.
    """

    name: str
    text: str

    def markdown(self) -> str:
        """Markdown of the block."""
        return f"![{self.text}]({self.name})"

    def html(self) -> str:
        """HTML of the block."""
        return f'<figure><img src="{html.escape(self.name)}" alt="{html.escape(self.text)}"></figure>'


@dataclass(frozen=True, kw_only=True)
class Details:
    """Blocks that stand folded under a line.

    Args:
        summary: the line.
        blocks: what is under it.
    """

    summary: str
    blocks: Sequence[Heading | Paragraph | Table | Code | Image]

    def markdown(self) -> str:
        """Markdown of the block."""
        inside = "\n\n".join(block.markdown() for block in self.blocks)
        return f"<details><summary>{html.escape(self.summary)}</summary>\n\n{inside}\n\n</details>"

    def html(self) -> str:
        """HTML of the block."""
        inside = "\n".join(block.html() for block in self.blocks)
        return f"<details><summary>{html.escape(self.summary)}</summary>\n{inside}\n</details>"


Block = Heading | Paragraph | Table | Code | Image | Details


@dataclass
class Page:
    """A page under construction.

    Args:
        title: of the page.
        blocks: in order.
        files: name -> text of the files that belong beside it.
    """

    title: str
    blocks: list[Block] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def add(self, *blocks: Block) -> None:
        """Put blocks at the end.

        Args:
            *blocks: what to add.
        """
        self.blocks.extend(blocks)

    def markdown(self) -> str:
        """The page as Markdown.

        Returns:
            Text that ends in a newline.
        """
        return "\n\n".join([f"# {self.title}", *(block.markdown() for block in self.blocks)]) + "\n"

    def html(self) -> str:
        """The page as one HTML file.

        Returns:
            A document.
        """
        body = "\n".join([f"<h1>{html.escape(self.title)}</h1>", *(block.html() for block in self.blocks)])
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{_STYLE}</style>'
        return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
