"""The paper's claims, each judged: supported, contradicted or undecided. docs/claims.md says how."""

from orchestrator.report.claims.agreement import TableAgreement, table_agreement
from orchestrator.report.claims.examining import PathPoint
from orchestrator.report.claims.judging import (
    CSV_COLUMNS,
    PATH_COLUMNS,
    Judgement,
    claims_csv,
    judge,
    path_csv,
)

__all__ = [
    "CSV_COLUMNS",
    "PATH_COLUMNS",
    "Judgement",
    "PathPoint",
    "TableAgreement",
    "claims_csv",
    "judge",
    "path_csv",
    "table_agreement",
]
