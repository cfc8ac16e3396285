"""Where in MLflow the runs are that a report's numbers come from. Knows names only: ids are MLflow's own."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from orchestrator.plan import StudyPlan
from orchestrator.redaction import HIDDEN, redacted


@dataclass(frozen=True)
class Tracked:
    """Text for people and, where a server holds the runs, the address of the experiment on its page."""

    text: str
    address: str | None = None


def tracked(uri: str, study: StudyPlan) -> Tracked:
    """The parent run of a study, its children, and how to see them.

    Args:
        uri: MLflow's tracking URI. Of a server's, users, passwords and queries are left out; a database's is
            not told at all, since it says where things lie on one machine.
    """
    runs = f"MLflow experiment {study.study.name}, run {study.name} and its children, one a trial"
    if not uri.startswith(("http://", "https://")):
        return Tracked(f"{runs}; `ablate ui` shows them.")
    search = f"/#/experiments?experimentSearchFilter={quote(study.study.name)}"
    return Tracked(
        f"{runs}.", quote(redacted(uri).replace(f"{HIDDEN}@", "").rstrip("/"), safe=":/[]%~@+,;=&") + search
    )
