"""Records -> frames -> tables, figures, claims -> report. Knows neither Ray nor MLflow."""

from orchestrator.report.content import make_report
from orchestrator.report.render import console, write, write_report

__all__ = ["console", "make_report", "write", "write_report"]
