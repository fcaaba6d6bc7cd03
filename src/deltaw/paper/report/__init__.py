"""One page for the whole paper: every printed table and figure beside what was run here, or why it was not."""

from deltaw.paper.report.build import build, write_report
from deltaw.paper.report.page import Page

__all__ = ["Page", "build", "write_report"]
