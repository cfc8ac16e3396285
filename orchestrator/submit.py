"""A study as a Ray job: what is sent, under which name, and how it is followed to its end.

A job is named by what it does: the same command finds the job that it started, and follows it, instead of starting
another. What is sent is the code and the YAML of this machine, so that what was tried here is what runs there.

No secret is on the job's command line, which Ray logs and shows, nor in its runtime environment, which Ray logs too.
The tracking URI and what MLflow takes to sign in are in a file of the working directory that the job's shell reads:
Ray keeps it where whoever has the cluster's token can fetch it, and writes its content nowhere else. The token itself
and credentials of the store are not sent: a cluster has its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import library
from orchestrator.cluster import WHERE_TOKENS_ARE, expect_a_token
from orchestrator.errors import AblateError, SpecError
from orchestrator.messages import for_a_terminal
from orchestrator.plan import Plan
from orchestrator.progress import duration
from orchestrator.redaction import redacted
from orchestrator.software import commit
from trainers.locations import is_url

MLFLOW_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SENT = "sent"
"""The folder of a job's working directory that holds YAML files which were given by path."""
_CREDENTIALS = "tracking.sh"

_ADDRESS = re.compile(r"https?://[^\s/?#]+/?")
_CONNECT_SECONDS, _ANSWER_SECONDS = 10.0, 60.0
_SILENT_SECONDS = 60.0
"""Without a line of a job's log, after which the job is looked at: a connection may break off unnoticed."""
_LOOK_EVERY = 2.0
_GIVE_UP_AFTER = 900.0
"""Seconds without an answer, after which a job is no longer followed."""
_STOP_SECONDS = "20"
"""Which Ray leaves a job that is stopped before it kills it; `ablate run` saves all states within 15."""


class NoLongerFollowed(AblateError):
    """The job goes on, and the user was told how to find it."""

    exit_code = 130


@dataclass(frozen=True)
class Asked:
    """What `ablate run` is to be called with on the cluster, as the command line has it."""

    studies: tuple[str, ...]
    recipe: str | None
    seeds: str | None
    sets: tuple[str, ...]
    executor: str
    max_concurrent: int | None
    store: str
    until_decided: bool = False
    budget: str | None = None
    max_seeds: int | None = None

    def entrypoint(self, studies: Sequence[str], recipe: str | None) -> str:
        """The job's command.

        Args:
            studies, recipe: names, or paths in the working directory.
        """
        options = {
            "--recipe": recipe,
            "--seeds": self.seeds,
            "--executor": self.executor,
            "--max-concurrent": self.max_concurrent,
            "--budget": self.budget,
            "--max-seeds": self.max_seeds,
            "--store": self.store,
            "--address": "auto",
        }
        given = [part for name, value in options.items() if value is not None for part in (name, str(value))]
        given += ["--until-decided"] if self.until_decided else []
        sets = [part for assignment in self.sets for part in ("--set", assignment)]
        command = shlex.join(["python", "-m", "orchestrator.cli", "run", *given, *sets, "--", *studies])
        return f"set -a; . ./{_CREDENTIALS}; exec {command}"


@dataclass(frozen=True)
class Submitted:
    """A job on a cluster.

    Attributes:
        started: by this command; otherwise it was found under way.
    """

    job: str
    address: str
    started: bool

    @property
    def stop_command(self) -> str:
        mode = os.environ.get("RAY_AUTH_MODE", "token")
        return f"RAY_AUTH_MODE={mode} ray job stop --address {redacted(self.address)} {self.job}"


def refuse_what_no_cluster_sees(asked: Asked, plan: Plan, address: str, tracking_uri: str | None) -> None:
    """Everything that can be known to go wrong before something is sent.

    Raises:
        SpecError: one line with what it takes.
    """
    if not _ADDRESS.fullmatch(address):
        raise SpecError(
            f"--address: got {address!r}, takes the page of the cluster's head, such as http://head:8265 "
            "(`ablate run` takes host:port)"
        )
    if not os.path.isabs(asked.store) and not is_url(asked.store):
        raise SpecError(
            f"--store: got {asked.store!r}, which is on this machine; takes what all nodes see: a folder by its "
            "absolute path, or s3://bucket/folder"
        )
    if redacted(asked.store) != asked.store:
        raise SpecError(
            "--store: got a URL with credentials in it; takes one without: the cluster has its own"
        )
    root = plan.recipe.data.root
    if root is not None and not root.startswith(("/", "~")) and not is_url(root):
        raise SpecError(f"data.root: got {root!r}, takes a folder that all nodes see, by its absolute path")
    if tracking_uri and re.match(r"sqlite(\+\w+)?:///(?!/)", tracking_uri):
        raise SpecError(
            f"--tracking-uri {redacted(tracking_uri)}: got a file of this machine; takes a server that the head "
            "reaches, or sqlite://// with an absolute path of the head's"
        )


def _environment(width: int) -> dict[str, str]:
    """What the job and its workers find in their environment, besides what the cluster has there; no secrets."""
    wanted = {
        "ABLATE_COMMIT": commit(),
        "COLUMNS": str(width),
        "RAY_JOB_STOP_WAIT_TIME_S": _STOP_SECONDS,
        # of a cluster that has no token: what the job starts must not ask for one
        "RAY_AUTH_MODE": "disabled" if os.environ["RAY_AUTH_MODE"].lower() == "disabled" else None,
    }
    return {name: value for name, value in wanted.items() if value}


def _tracking(uri: str | None) -> str:
    """Assignments for a shell: where the job finds MLflow, and as whom it signs in there."""
    if not uri:
        return ""
    signing_in = {name: os.environ[name] for name in MLFLOW_CREDENTIALS if name in os.environ}
    return "".join(
        f"{name}={shlex.quote(value)}\n" for name, value in {"MLFLOW_TRACKING_URI": uri, **signing_in}.items()
    )


def submit(
    asked: Asked, address: str, tracking_uri: str | None, width: int, say: Callable[[str], None]
) -> tuple[Submitted, Any]:
    """Start the job that was asked for, or find it under way; with the client that follows it.

    Args:
        width: of the terminal that its log is shown on.

    Raises:
        AblateError: no cluster answers, or it takes another token.
    """
    with told_of(address), _quiet(), tempfile.TemporaryDirectory(prefix="ablate-") as folder:
        client = _connect(address)
        studies, recipe = lay_out(Path(folder), asked)
        entrypoint = asked.entrypoint(studies, recipe)
        digest = _digest(Path(folder), entrypoint, redacted(tracking_uri or ""))
        name = f"ablate-{Path(studies[0]).stem}-{digest}"
        (Path(folder) / _CREDENTIALS).write_text(_tracking(tracking_uri))
        attempts = {}
        for info in client.list_jobs():
            head, _, number = (info.submission_id or "").rpartition("-")
            if head == name and number.isdecimal():
                attempts[int(number)] = info
        newest = max(attempts, default=0)
        if newest and not attempts[newest].status.is_terminal():
            return Submitted(f"{name}-{newest}", address, started=False), client
        job = f"{name}-{newest + 1}"
        say(f"sending the code and {', '.join(asked.studies)} to {redacted(address)}")
        started = _start(
            client,
            submission_id=job,
            entrypoint=entrypoint,
            runtime_env={"working_dir": folder, "env_vars": _environment(width)},
        )
        return Submitted(job, address, started), client


def _start(client: Any, **what: Any) -> bool:
    """Whether it was this call that started the job: another command may have been faster by a moment.

    A lost answer is asked for again: a job has one name, so that it is started once however often this is tried.
    """
    import requests

    try:
        client.submit_job(**what)
    except requests.exceptions.RequestException:
        with suppress(RuntimeError):  # it arrived, and its name is taken
            client.submit_job(**what)
    except RuntimeError as error:
        if "already exists" not in str(error):
            raise
        return False
    return True


def lay_out(folder: Path, asked: Asked) -> tuple[list[str], str | None]:
    """A job's working directory: our packages as they are here, and the YAML files that were given by path.

    Returns:
        The studies and the recipe as the job names them.
    """
    for package in (Path(__file__).resolve().parent, library.STUDIES.parent / "trainers", library.STUDIES):
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))

    def sent(number: int, files: Sequence[Path]) -> str:
        """Each in a folder of its own: two files may share a name."""
        place = folder / _SENT / str(number)
        place.mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, place / file.name)
        return f"{_SENT}/{number}/{files[0].name}"

    studies = []
    for number, given in enumerate(asked.studies):
        _, file = library.load_study(given)
        by_name = given in library.names(library.STUDIES)
        studies.append(given if by_name else sent(number, list(dict.fromkeys(_with_included(file)))))
    recipe = asked.recipe
    if recipe is not None and recipe not in library.names(library.RECIPES):
        recipe = sent(len(studies), [Path(recipe)])
    return studies, recipe


def _with_included(file: Path) -> Iterator[Path]:
    """A study's file and those beside it that it includes, however deep; the others lie in studies/."""
    yield file
    study, _ = library.load_study(str(file))
    for name in study.include:
        _, included = library.load_study(name, beside=file)
        if included.parent == file.parent:
            yield from _with_included(included)
        elif included.parent != library.STUDIES:
            raise SpecError(f"{file}: include: {name} lies elsewhere; put it beside this file to send it")


def _digest(folder: Path, *words: str) -> str:
    """Of all that a job does: what is in its working directory, and its command."""
    digest = hashlib.sha256(json.dumps(words).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()[:12]


def follow(
    submitted: Submitted, client: Any, write: Callable[[str], None], say: Callable[[str], None]
) -> int:
    """Show a job's log until it ends; its exit code.

    A connection that breaks is made again, and nothing of the log is shown twice. Ctrl-C stops only the following.

    Raises:
        NoLongerFollowed: after Ctrl-C; says how to find the job again and how to end it.
        AblateError: the job's process was lost, or nothing answers for long.
    """
    with told_of(submitted.address), _quiet():
        try:
            info = _to_the_end(submitted, client, _Log(write), say)
        except KeyboardInterrupt:
            raise NoLongerFollowed(
                f"no longer followed; {submitted.job} goes on: the same command follows it again, "
                f"`{submitted.stop_command}` ends it with all states saved"
            ) from None
    return exit_code(submitted.job, str(info.status), info.driver_exit_code, info.message or "")


def exit_code(job: str, status: str, code: int | None, message: str) -> int:
    """What the command returns for a job that has ended.

    Raises:
        AblateError: it did not end by itself.
    """
    if status == "STOPPED":
        return 130
    if code is None:
        why = for_a_terminal(redacted(message), 200) or "Ray does not say why"
        raise AblateError(f"{job} was lost before it ended: {why}; the same command goes on")
    if code < 0 or code > 130:  # of a shell: 128 and the signal's number
        number = -code if code < 0 else code - 128
        raise AblateError(
            f"{job} was killed by signal {number}; out of memory is the usual reason for 9; the same command goes on"
        )
    return code


class _Log:
    """A job's log, of which each part is shown once however often it is read from its beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._shown = write, 0

    def show(self, text: str, start: int) -> None:
        """Args: start: place of the text in the log, in characters."""
        if new := text[max(0, self._shown - start) :]:
            self._write(new)
            self._shown += len(new)

    async def tail(self, client: Any, job: str) -> None:
        """Show what is written until the job ends, the connection does, or nothing came for long."""
        chunks, place = client.tail_job_logs(job), 0
        try:
            while True:
                chunk = await asyncio.wait_for(anext(chunks), _SILENT_SECONDS)
                self.show(chunk, place)
                place += len(chunk)
        except (StopAsyncIteration, TimeoutError):
            return
        finally:
            await chunks.aclose()


def _to_the_end(submitted: Submitted, client: Any, log: _Log, say: Callable[[str], None]) -> Any:
    """Ray's details of a job once it has ended."""
    from ray.exceptions import AuthenticationError

    broken_since: float | None = None
    told_pending = False
    while True:
        try:
            asyncio.run(log.tail(client, submitted.job))
            info = client.get_job_info(submitted.job)
            broken_since = None
            if info.status.is_terminal():
                # a log's connection may end before the log does, and looks as if all had been said
                with suppress(RuntimeError):  # it went with its node
                    log.show(client.get_job_logs(submitted.job), 0)
                return info
            if str(info.status) == "PENDING" and not told_pending:
                told_pending = True
                say(f"{submitted.job} waits to be started: {info.message or 'Ray does not say for what'}")
        except AuthenticationError:
            raise
        except (
            Exception
        ) as error:  # requests', aiohttp's, and bare RuntimeErrors of a head that is being restarted
            now = time.monotonic()
            if broken_since is None:
                broken_since = now
                say(
                    f"{redacted(submitted.address)} does not answer ({_first_line(error, 80)}); trying again for "
                    f"{duration(_GIVE_UP_AFTER)}, the job goes on meanwhile"
                )
            if now - broken_since > _GIVE_UP_AFTER:
                raise AblateError(
                    f"{redacted(submitted.address)} has not answered for {duration(_GIVE_UP_AFTER)}; if it comes back, "
                    f"the same command follows {submitted.job} again"
                ) from None
        time.sleep(_LOOK_EVERY)


def _connect(address: str) -> Any:
    """A client of Ray's Jobs API that waits for no answer longer than it says."""
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *request: Any, **options: Any) -> Any:
            return super()._do_request(*request, timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS), **options)

    # which Ray would prefer to the address that it is given
    others = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    try:
        return Client(address)
    finally:
        os.environ.update({name: value for name, value in others.items() if value is not None})


@contextmanager
def told_of(address: str) -> Iterator[None]:
    """Whatever Ray's client, requests or a stranger's server raise becomes one line without credentials."""
    expect_a_token()
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AblateError:
        raise
    except AuthenticationError:
        raise AblateError(
            f"--address {redacted(address)}: refused, for want of the cluster's token: it is looked for in "
            f"{WHERE_TOKENS_ARE}"
        ) from None
    except Exception as error:  # Ray raises bare RuntimeErrors too
        raise AblateError(
            f"no Ray Jobs API answers at --address {redacted(address)}: {_first_line(error)}; is the cluster up, "
            "reachable from here, and its page at this port?"
        ) from None


def _first_line(error: Exception, limit: int = 160) -> str:
    text = redacted(str(error)).strip() or type(error).__name__
    return for_a_terminal(text.splitlines()[0], limit)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray's client tells of packages and websockets at INFO and WARNING."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
