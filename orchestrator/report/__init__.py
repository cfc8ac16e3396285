"""Records -> frames -> tables -> report. Knows neither Ray nor MLflow."""

from orchestrator.report.render import write_report

__all__ = ["write_report"]
