"""Which metrics there are to show, by what produces them: configurations declare them, and nothing else lists them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.messages import did_you_mean
from trainers.config import EvaluationConfig, Knn, LinearProbe, Spectrum, SubvectorProbe, ToyConfig

OF_TRAINING = ("loss", "online_top1")
"""What is shown of a training's own metrics; its speed and times belong to the provenance."""
_FULLEST: tuple[EvaluationConfig, ...] = (
    LinearProbe(select="best"),
    SubvectorProbe(select="best"),
    Knn(),
    Spectrum(),
)
"""Of each kind of evaluation the one with the most metrics."""


def metric_name(kind: str, name: str) -> str:
    """`top1` of a linear probe is `linear_probe/top1`; a spectrum's metrics carry their subject already."""
    return name if kind == "spectrum" else f"{kind}/{name}"


def of_evaluation(evaluation: EvaluationConfig) -> list[str]:
    """Metrics of an evaluation, as tables, figures and claims name them."""
    return [metric_name(evaluation.kind, name) for name in evaluation.metrics]


def of_kinds(kinds: Iterable[str]) -> list[str]:
    """Metrics that evaluations of these kinds may have."""
    wanted = set(kinds)
    return [
        name for evaluation in _FULLEST if evaluation.kind in wanted for name in of_evaluation(evaluation)
    ]


def of_training() -> list[str]:
    """Metrics of a finished training."""
    return [f"pretrain/{name}" for name in OF_TRAINING]


def every_metric() -> list[str]:
    """All that a study may name, whatever it includes."""
    return [*of_kinds(one.kind for one in _FULLEST), *of_training(), *ToyConfig(layers=2).metrics]


def frame_metric(metric: str) -> str:
    """As the frame of cells has it: a spectrum's metrics may be named with or without it."""
    bare = metric.removeprefix("spectrum/")
    return bare if bare.startswith(("representation/", "embedding/")) else metric


def problem(metric: str, known: Sequence[str], whose: str) -> str | None:
    """What is wrong with the name of a metric; None where it is among the known ones.

    Args:
        whose: metrics these are, for the message.
    """
    if frame_metric(metric) in known:
        return None
    beginning = metric.split("/")[0] + "/"
    near = [name for name in known if name.startswith(beginning)] or known
    return f"got {metric!r}{did_you_mean(metric, list(known))}, expected a metric {whose}: {', '.join(near) or 'none'}"
