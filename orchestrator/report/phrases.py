"""What a report says in words, the same on the page and in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.report import escape

METRIC_LABELS = {
    "linear_probe/top1": "Linear probe top-1 (%)",
    "linear_probe/top5": "Linear probe top-5 (%)",
    "linear_probe/loss": "Linear probe loss",
    "subvector_probe/top1": "Subvector probe top-1 (%)",
    "subvector_probe/top5": "Subvector probe top-5 (%)",
    "subvector_probe/loss": "Subvector probe loss",
    "knn/top1": "kNN top-1 (%)",
    "knn/top5": "kNN top-5 (%)",
    "representation/rankme": "RankMe of representation",
    "embedding/rankme": "RankMe of embedding",
    "representation/effective_rank": "Effective rank of representation",
    "embedding/effective_rank": "Effective rank of embedding",
    "representation/directions": "Directions of representation",
    "embedding/directions": "Directions of embedding",
    "representation/collapsed_fraction": "Collapsed share of representation",
    "embedding/collapsed_fraction": "Collapsed share of embedding",
    "pretrain/loss": "Last training loss",
    "pretrain/online_top1": "Last online top-1 (%)",
}


SPREAD_ROW = "Standard deviation of one run"
OVERVIEW_LEGEND = (
    "Means over n seeds or networks. The standard deviation of one run is estimated from all cells together but those "
    "that vary more, without what all cells of a seed share; a dash where it is not known."
)


def metric_label(metric: str) -> str:
    """A metric's name for people."""
    spoken = metric.removeprefix("theory/").replace("_", " ").replace("/", ", ")
    return METRIC_LABELS.get(metric, upper_first(spoken))


def duration(seconds: float) -> str:
    """12.3 -> "12.3 s", 312 -> "5 min 12 s", 9000 -> "2 h 30 min"."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def minute(stamp: str | None) -> str:
    """An ISO 8601 time to the minute."""
    return stamp[:16].replace("T", " ") if stamp else "—"


def listed(items: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def sentence(text: str) -> str:
    """A title with a full stop, if it ends with none."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def count(number: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def upper_first(text: str) -> str:
    """The first letter large, the others as they are."""
    return text[:1].upper() + text[1:]


def seeds_text(numbers: Sequence[int]) -> str:
    """0, 1, 2; none stands for all networks of a cell."""
    return ", ".join(map(str, numbers)) or "all networks"


def status(facts: Mapping[str, Any]) -> str:
    """One sentence: seeds, and how much of what was planned is done."""
    done = [
        f"{facts[f'{what}_done']} of {facts[f'{what}_planned']} {name}"
        for what, name in (("trials", "trainings"), ("toys", "toy runs"), ("evaluations", "evaluations"))
        if facts[f"{what}_planned"]
    ]
    return f"{_number_of_seeds(facts)}: {listed(done)} done."


def _number_of_seeds(facts: Mapping[str, Any]) -> str:
    """3 seeds; 2 to 5 seeds a cell."""
    counts = {len(seeds) for seeds in facts["seeds_by_cell"].values()} or {len(facts["seeds"])}
    if len(counts) > 1:
        return f"{min(counts)} to {max(counts)} seeds a cell"
    (number,) = counts
    return count(number, "seed")


def _seeds(facts: Mapping[str, Any]) -> str:
    """0, 1, 2; where cells differ: 0, 1 of 8 cells; 0, 1, 2 of table1/none, table1/linear."""
    cells: dict[tuple[int, ...], list[str]] = {}
    for cell, seeds in facts["seeds_by_cell"].items():
        cells.setdefault(tuple(seeds), []).append(cell)
    if len(cells) < 2:
        return seeds_text(facts["seeds"])
    return "; ".join(
        f"{seeds_text(seeds)} of {', '.join(names) if len(names) < 4 else f'{len(names)} cells'}"
        for seeds, names in sorted(cells.items(), key=lambda item: (len(item[0]), item[0]))
    )


def provenance_summary(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The provenance in some lines: name and value."""
    versions = "; ".join(f"{name} {', '.join(found)}" for name, found in facts["versions"].items())
    hardware = "; ".join(
        ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in place.items())
        for place in facts["hardware"]
    )
    datasets = "; ".join(f"{data['name']} (sha256 {data['fingerprint'][:16]})" for data in facts["datasets"])
    memory = facts["peak_memory_bytes"]
    lines = [
        ("Recipe", facts["recipe"]),
        ("Seeds", _seeds(facts)),
        ("Overrides", json.dumps(facts["overrides"], ensure_ascii=False) if facts["overrides"] else "none"),
        *_work(facts),
        ("First start, last end (UTC)", f"{minute(facts['started'])}, {minute(facts['finished'])}"),
        ("Peak memory of a trial", f"{memory / 2**20:.0f} MiB" if memory else "not recorded"),
        ("Executor", ", ".join(facts["executors"]) or "none"),
        ("Hardware", hardware or "none"),
        ("Data", datasets or "none"),
        *(("Warning", sentence) for sentence in facts["warnings"]),
        ("Commit", ", ".join(facts["commits"]) or "not recorded"),
        ("Numerics version", ", ".join(map(str, facts["numerics_versions"])) or "none"),
        ("Versions", versions or "none"),
    ]
    return [(name, escape.one_line(value, limit=2000)) for name, value in lines]


def _work(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run and how long it took, of each kind that the study has."""
    kinds = (
        ("Training", "trials", "training_seconds", " trials"),
        ("Toy networks", "toys", "toy_seconds", " runs"),
        ("Evaluations", "evaluations", "evaluation_seconds", ""),
    )
    return [
        (
            name,
            f"{facts[f'{what}_done']} of {facts[f'{what}_planned']}{unit}, {duration(facts[seconds])} in sum",
        )
        for name, what, seconds, unit in kinds
        if facts[f"{what}_planned"]
    ]
