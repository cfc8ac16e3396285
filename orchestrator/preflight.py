"""What every node of a cluster must have, looked at before anything is trained: one table, and one line where it can't.

Nodes of equal resources are a class, shown in one row; a small task looks at each node, all at once. What it finds is
compared with this process and with what the trainings ask for. A problem that would fail every trial on a node ends the
command; what only may matter is said, and the run goes on. Nodes that an autoscaler adds later are not looked at.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

import trainers
from orchestrator.cluster import workers_that_fit
from orchestrator.errors import AblateError, CapacityError, SpecError
from orchestrator.messages import for_a_terminal
from orchestrator.mlflow_access import TrackingError, connect, translated_errors
from orchestrator.packing import Node
from orchestrator.plan import Job
from orchestrator.redaction import redacted
from orchestrator.software import PACKAGES, versions
from orchestrator.spec import Executor
from orchestrator.store import Store
from trainers.config import DataConfig, TrialConfig

_MUST_MATCH = ("python", "torch", "torchvision", "ray", "numpy")
"""Of which another version computes, or sends, something else; of the others it is said."""

ANSWER_SECONDS = 60.0
_VISIBLE_SECONDS = 5.0
"""Which NFS may take to show a file that another machine has just written."""
_SCARCE_MEMORY = 0.5
"""Share of a GPU's memory that should be free: with less of it, somebody else is at work there."""

CHECKS = ("answers", "packages", "store", "data", "GPU")
FINE, WARNING, PROBLEM, NOT_ASKED = "✓", "!", "✗", "–"


@dataclass(frozen=True)
class Wanted:
    """What a node is asked to look for.

    Attributes:
        store: its path or URL.
        mark: name of a file that this process has put into the store, and what is in it.
        data: configurations whose files must be there, each with a batch that they must fill.
        gpu: whether trainings ask for accelerators.
    """

    store: str
    mark: tuple[str, str]
    data: tuple[tuple[DataConfig, int], ...] = ()
    gpu: bool = False
    bf16: bool = False
    gangs: bool = False


@dataclass(frozen=True)
class Gpu:
    """What torch says of the accelerators of a node; bytes."""

    count: int
    bf16: bool
    nccl: bool
    free: tuple[int, ...] = ()
    total: tuple[int, ...] = ()


@dataclass(frozen=True)
class Found:
    """What a node says of itself: versions, and the problems that it met, in words."""

    versions: dict[str, str]
    numerics: tuple[int, ...]
    store: str | None = None
    data: str | None = None
    gpu: Gpu | None = None


@dataclass(frozen=True)
class Finding:
    check: str
    level: str
    reason: str


@dataclass
class Looked:
    """A node with what was found there, and what that means."""

    node: Node
    room: tuple[int, ...]
    findings: list[Finding] = field(default_factory=list)

    def level(self, check: str) -> str:
        levels = [finding.level for finding in self.findings if finding.check == check]
        return next((level for level in (PROBLEM, WARNING, NOT_ASKED) if level in levels), FINE)


def look(wanted: Wanted) -> Found:
    """What this process's machine has. Runs on each node."""
    return Found(
        versions=versions(),
        numerics=_numerics(),
        store=_store_problem(wanted.store, *wanted.mark),
        data=_data_problem(wanted.data),
        gpu=_gpu() if wanted.gpu else None,
    )


def _numerics() -> tuple[int, ...]:
    return (trainers.NUMERICS_VERSION, trainers.EVALUATION_VERSION, trainers.THEORY_VERSION)


def _store_problem(root: str, name: str, content: str) -> str | None:
    """Whether the store is the one in which the driver wrote a mark, and takes a file from here."""
    try:
        folder = Store(root).root
        until = time.monotonic() + _VISIBLE_SECONDS
        while True:
            try:
                seen = (folder / name).read_bytes()
            except FileNotFoundError:
                seen = b""
            if seen == content.encode():
                break
            if time.monotonic() > until:
                return "is not the one that this command writes to; mount the same folder on all nodes, or take s3://"
            time.sleep(0.2)
        own = folder / f"{name}-{secrets.token_hex(8)}"
        own.write_bytes(content.encode())
        try:
            if own.read_bytes() != content.encode():
                return "reads something else than was written"
        finally:
            own.unlink()
    except OSError as error:
        return f"cannot be written: {error.strerror or error}; make it writable for the user that Ray runs as"
    except SpecError as error:  # a package that an object store needs
        return str(error)
    return None


def _data_problem(data: Iterable[tuple[DataConfig, int]]) -> str | None:
    for config, batch_size in data:
        if config.kind in ("digits", "glyphs"):  # come with packages; no need to import torch for them
            continue
        from trainers.data.datasets import DataError, check_data

        try:
            check_data(config, batch_size)
        except (DataError, OSError) as error:
            return str(error)
    return None


def _gpu() -> Gpu:
    import torch

    if not torch.cuda.is_available():
        return Gpu(0, False, torch.distributed.is_nccl_available())
    memory = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
    return Gpu(
        count=len(memory),
        bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        nccl=torch.distributed.is_nccl_available(),
        free=tuple(free for free, _ in memory),
        total=tuple(total for _, total in memory),
    )


def judge(
    found: Found, here: Found, wanted: Wanted, node: Node, holds_workers: bool, holds_drivers: bool
) -> list[Finding]:
    """What is wrong with a node.

    Args:
        here: what the driver says of its own machine.
        holds_workers: a worker of some trial fits; data and accelerators matter nowhere else.
        holds_drivers: work of some other kind may land there, for which packages and store matter.
    """
    worst = PROBLEM if holds_workers or holds_drivers else WARNING
    findings = [
        Finding("packages", worst if package in _MUST_MATCH else WARNING, reason)
        for package in ("python", *PACKAGES)
        if (reason := _other_version(package, found.versions.get(package), here.versions.get(package)))
    ]
    if found.numerics != here.numerics:
        reason = f"`trainers` of numerics {_dotted(found.numerics)}, takes {_dotted(here.numerics)} as here"
        findings.append(Finding("packages", worst, reason))
    if found.store:
        findings.append(Finding("store", worst, found.store))
    if not holds_workers:
        findings += [Finding("data", NOT_ASKED, ""), Finding("GPU", NOT_ASKED, "")]
        return findings
    if found.data:
        findings.append(Finding("data", PROBLEM, found.data))
    findings += _of_gpus(found.gpu, wanted, node) if wanted.gpu else [Finding("GPU", NOT_ASKED, "")]
    return findings


def _other_version(package: str, there: str | None, here: str | None) -> str | None:
    if package == "python":  # whose last number changes nothing that is sent or computed
        there, here = (text and text.rpartition(".")[0] for text in (there, here))
    if there == here:
        return None
    return (
        f"{package} {there or 'is missing'}, takes {here} as here"
        if here
        else f"{package} {there}, none here"
    )


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))


def _of_gpus(gpu: Gpu | None, wanted: Wanted, node: Node) -> list[Finding]:
    def gib(size: int) -> str:
        return f"{size / 2**30:.0f} GiB"

    if gpu is None or gpu.count == 0:
        return [Finding("GPU", PROBLEM, "torch sees none; takes a driver and a build of torch with CUDA")]
    findings = []
    if gpu.count < node.gpus:
        findings.append(Finding("GPU", PROBLEM, f"torch sees {gpu.count}, Ray offers {node.gpus:g}"))
    if wanted.gangs and not gpu.nccl:
        findings.append(
            Finding("GPU", PROBLEM, "this build of torch lacks NCCL, by which several workers take part")
        )
    if wanted.bf16 and not gpu.bf16:
        findings.append(Finding("GPU", WARNING, "bf16 is emulated there and slow; precision: fp16 is native"))
    for index, (free, total) in enumerate(zip(gpu.free, gpu.total, strict=True)):
        if free < _SCARCE_MEMORY * total:
            reason = f"number {index} has {gib(free)} of {gib(total)} free: others use it"
            findings.append(Finding("GPU", WARNING, reason))
    return findings


def wanted_of(jobs: Sequence[Job], store: Store, mark: tuple[str, str]) -> Wanted:
    """What the jobs ask of the nodes that they run on."""
    trained = [job.config for job in jobs if isinstance(job.config, TrialConfig)]
    footprints = [job.footprint for job in jobs]
    return Wanted(
        store=str(store.root),
        mark=mark,
        data=tuple(dict.fromkeys((config.data, config.batch_size) for config in trained)),
        gpu=any(footprint.gpus_per_worker for footprint in footprints),
        bf16=any(config.precision == "bf16" for config in trained),
        gangs=any(footprint.workers > 1 for footprint in footprints),
    )


def check(
    jobs: Sequence[Job],
    nodes: Sequence[Node],
    store: Store,
    executor: Executor,
    tracking_uri: str | None,
    say: Callable[[str], None],
    deadline: float = ANSWER_SECONDS,
) -> list[Looked]:
    """Look at every node. Needs a connected Ray, and a store that is prepared.

    Args:
        say: told, in a sentence, of what is not about one node.
        deadline: seconds.
    """
    mark = (f".preflight-{secrets.token_hex(8)}", secrets.token_hex(16))
    footprints = sorted({job.footprint for job in jobs}, key=repr)
    wanted = wanted_of(jobs, store, mark)
    gangs = executor == "train" or wanted.gangs  # whose controllers hold nothing, and so may be anywhere
    (store.root / mark[0]).write_bytes(mark[1].encode())
    try:
        asked = {_ask(node, wanted): node for node in nodes}
        here = Found(versions(), _numerics())
        if tracking_uri and (problem := _tracking_problem(tracking_uri)):
            say(f"{WARNING} {problem}")
        answers = _answers(asked, deadline)
    finally:
        (store.root / mark[0]).unlink()
    looked = []
    for node, answer in answers:
        one = Looked(node, tuple(workers_that_fit([node], footprint) for footprint in footprints))
        holds_workers = any(one.room)
        if isinstance(answer, Found):
            one.findings = judge(answer, here, wanted, node, holds_workers, gangs or holds_workers)
        else:
            level = answer.level if holds_workers or gangs else WARNING
            one.findings = [Finding("answers", level, answer.reason)]
            one.findings += [Finding(check, NOT_ASKED, "") for check in CHECKS[1:]]
        looked.append(one)
    return looked


def _ask(node: Node, wanted: Wanted) -> Any:
    """A task on one node that takes nothing of it, so that a busy node answers too."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(
        num_cpus=0,
        max_retries=0,
        # what torch holds of an accelerator goes with the process
        max_calls=1 if wanted.gpu else 0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
    )(look)
    return task.remote(wanted)


def _answers(asked: dict[Any, Node], deadline: float) -> list[tuple[Node, Found | Finding]]:
    """What each node said, or why there is nothing."""
    import ray

    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=deadline)
    answers: list[tuple[Node, Found | Finding]] = []
    for reference in done:
        try:
            answers.append((asked[reference], ray.get(reference)))
        except Exception as error:  # of Ray, or of what failed to be imported there
            answers.append((asked[reference], Finding("answers", PROBLEM, _why(error))))
    for reference in late:
        ray.cancel(reference, force=True)
        answers.append((asked[reference], Finding("answers", WARNING, f"not within {deadline:g} s")))
    return answers


def _why(error: Exception) -> str:
    text = str(error)
    if "ModuleNotFoundError" in text or "ImportError" in text:
        missing = text.strip().splitlines()[-1].rpartition("Error: ")[2]
        return f"{missing}; this code must be installed there, or be sent with `ablate submit`"
    return (text.strip().splitlines() or [type(error).__name__])[-1]


def _tracking_problem(uri: str) -> str | None:
    """Why MLflow can't be written from here, the only place that writes to it."""
    try:
        with translated_errors(uri):
            connect(uri).search_experiments(max_results=1)
    except TrackingError as error:
        return f"tracking: {error}; the run goes on without, `ablate sync` delivers what is missing"
    return None


def node_class(node: Node) -> str:
    """What nodes have in common that are shown in one row."""
    gib = node.memory / 2**30
    parts = [f"{node.cpus:g} CPU"]
    if node.gpus:
        parts.append(f"{node.gpus:g} GPU" + (f" {node.accelerator}" if node.accelerator else ""))
    parts += [f"{amount:g} {name}" for name, amount in node.custom]
    # machines of one kind differ by what their systems take
    parts.append(f"about {round(gib, -1) if gib >= 10 else round(gib):.0f} GiB")
    return ", ".join(parts)


def show(console: Console, looked: Sequence[Looked]) -> None:
    """A row for each class of nodes, and a line for each thing that is not fine."""
    styles = {FINE: "green", WARNING: "yellow", PROBLEM: "red", NOT_ASKED: "dim"}
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for column in ("nodes", "", *CHECKS, "workers each"):
        table.add_column(column, overflow="fold")
    ordered = sorted(looked, key=lambda one: node_class(one.node))
    for name, group in groupby(ordered, key=lambda one: node_class(one.node)):
        members = list(group)
        levels = [
            next(
                (
                    level
                    for level in (PROBLEM, WARNING, NOT_ASKED)
                    if level in {one.level(check) for one in members}
                ),
                FINE,
            )
            for check in CHECKS
        ]
        room = ", ".join(str(fitting) if fitting else NOT_ASKED for fitting in members[0].room)
        table.add_row(name, str(len(members)), *(Text(level, styles[level]) for level in levels), room)
    console.print(table)
    for level in (WARNING, PROBLEM):
        for sentence in sentences(looked, level):
            console.print(Text(f"{level} {sentence}", styles[level]), soft_wrap=True)


def as_plain(looked: Sequence[Looked]) -> list[dict[str, Any]]:
    """The same for scripts."""
    words = {WARNING: "warning", PROBLEM: "problem"}
    return [
        {
            "node": one.node.name,
            "class": node_class(one.node),
            "workers": list(one.room),
            "findings": [
                {"check": finding.check, "level": words[finding.level], "reason": redacted(finding.reason)}
                for finding in one.findings
                if finding.level in words
            ],
        }
        for one in looked
    ]


def sentences(looked: Sequence[Looked], level: str) -> list[str]:
    """Each thing of a level once, with the nodes that it was found on."""
    where: dict[tuple[str, str], list[str]] = {}
    for one in looked:
        for finding in one.findings:
            if finding.level == level:
                reason = for_a_terminal(redacted(finding.reason), 300)
                where.setdefault((finding.check, reason), []).append(one.node.name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {check}: {reason}"
        for (check, reason), names in where.items()
    ]


def refuse(looked: Sequence[Looked]) -> None:
    """End a run that fails on some node whatever happens.

    Raises:
        CapacityError: names node, check, what was found and what it takes.
        AblateError: no node answered at all.
    """
    if found := sentences(looked, PROBLEM):
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise CapacityError(f"preflight: {found[0]}{more}")
    if not any(one.level("answers") == FINE for one in looked):
        raise AblateError("preflight: no node answered; is the cluster up, and does it start processes?")
