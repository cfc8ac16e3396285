"""Records -> what MLflow should hold of them, as plain data. Needs no MLflow.

A projection is a function of plan and records alone: no clock, no random names. Its hash tells
whether what was written before is still right.
"""

from orchestrator.projection.content import Artifact, Point, RunContent, milliseconds
from orchestrator.projection.parameters import field_paths, flatten
from orchestrator.projection.study_run import parent
from orchestrator.projection.trial_runs import TOYS, arrays_path, children, history_points

__all__ = ["TOYS", "Artifact", "Point", "RunContent", "arrays_path", "children", "field_paths", "flatten",
           "history_points", "milliseconds", "parent"]  # fmt: skip
