"""What one trial does. Knows nothing of Ray, MLflow or studies.

Entry points for the orchestrator: `trainers.config` (what a trial is),
`trainers.contrastive.train`, `trainers.evaluate.evaluate` and `trainers.theory.run_toys`.
"""

NUMERICS_VERSION = 1
"""Part of every trial key: raised whenever a change to `trainers`, a default included, can change a training."""

EVALUATION_VERSION = 2
"""Part of every evaluation key, beside its trial's: raised when a change can change a measurement alone."""

THEORY_VERSION = 1
"""Part of every key of toy networks: raised when a change can change theirs."""
