"""Records -> frames -> tables, figures, claims -> report. Knows neither Ray nor MLflow."""

from orchestrator.report.content import make_report
from orchestrator.report.render import write, write_report
from orchestrator.report.tables import TableStyle
from orchestrator.report.terminal import console

__all__ = ["TableStyle", "console", "make_report", "write", "write_report"]
