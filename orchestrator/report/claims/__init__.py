"""The paper's claims, each judged: supported, contradicted or undecided. docs/claims.md says how."""

from orchestrator.report.claims.judging import (
    CSV_COLUMNS,
    Judgement,
    TableAgreement,
    claims_csv,
    judge,
    table_agreement,
)

__all__ = ["CSV_COLUMNS", "Judgement", "TableAgreement", "claims_csv", "judge", "table_agreement"]
