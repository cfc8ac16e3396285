"""Studies as jobs of a real cluster: who is let in, what is sent, what comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from heads import Head, Line, command, standing_head

from orchestrator import submit
from orchestrator.errors import AblateError, SpecError
from orchestrator.plan import make_plan
from tests.orchestrator.small import STUDY, TINY

SECRET = "sesame-open-the-door"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with standing_head(tmp_path_factory.mktemp("head")) as one:
        one.environment["ABLATE_COMMIT"] = (
            "of the laptop's checkout"  # of whoever submits, not of the cluster
        )
        yield one


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(STUDY)
    return tmp_path


def asked(head: Head, folder: Path, *more: str, url: str = "") -> tuple[str, ...]:
    """The command line that submits the tiny study, with a store beside it."""
    sets = [part for assignment in TINY for part in ("--set", assignment)]
    where = ("--address", url or head.url, "--store", str(folder / "store"))
    return ("submit", str(folder / "mine.yaml"), *where, *sets, *more)


def jobs(head: Head) -> list[str]:
    status, text = head.answer("/api/jobs/", head.token)
    assert status == 200
    return [job["submission_id"] for job in json.loads(text) if job["submission_id"]]


def until(look: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.mark.cluster
def test_the_jobs_api_answers_nobody_without_the_token(head: Head, study: Path) -> None:
    for path in ("/api/jobs/", "/api/version"):
        assert head.answer(path, None)[0] == 401
        assert head.answer(path, "0" * 64)[0] == 403
        assert head.answer(path, head.token)[0] == 200
    for changes in (
        {"RAY_AUTH_TOKEN_PATH": str(study / "nothing")},
        {"RAY_AUTH_TOKEN": "0" * 64},
        {"RAY_AUTH_MODE": "disabled"},
    ):
        done = head.ablate(*asked(head, study), **changes)
        assert done.returncode == 1, done.stdout + done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert "RAY_AUTH_TOKEN_PATH" in done.stderr
        assert "0" * 64 not in done.stderr
    assert jobs(head) == []
    assert not (study / "store").exists()


@pytest.mark.cluster
def test_a_job_outlives_its_followers_is_found_again_and_ends_with_its_states_saved(
    head: Head, study: Path
) -> None:
    line = Line(head.page)
    long = asked(head, study, "--set", "epochs=4000", "--set", "limits.state_seconds=3600")
    environment = head.environment | {"MLFLOW_TRACKING_URI": f"http://me:{SECRET}@127.0.0.1:9"}
    first = head.ablate(*long, "--no-follow", "--json", **environment)
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert told["started"] is True
    job = told["job"]
    again = json.loads(head.ablate(*long, "--no-follow", "--json", **environment).stdout)
    assert again == told | {"started": False}

    log = study / "followed"
    through = [part if part != head.url else f"http://127.0.0.1:{line.port}" for part in long]
    with log.open("w") as file:
        follower = subprocess.Popen(
            command(*through), cwd=head.code, env=environment, stdout=file, stderr=file
        )
    try:
        until(lambda: list(study.glob("store/trials/*/history.jsonl")))
        until(lambda: "1 to train" in log.read_text())
        line.cut()
        until(lambda: "does not answer" in log.read_text(), 30)
        line.mend()
        time.sleep(4)
        os.kill(follower.pid, signal.SIGINT)
        assert follower.wait(20) == 130
        text = log.read_text()
        assert text.count("1 to train, 0 to evaluate only") == 1, text  # nothing of the log is shown twice
        assert f"{job} goes on" in text
        assert f"ray job stop --address http://127.0.0.1:{line.port} {job}" in text

        with log.open("w") as file:
            follower = subprocess.Popen(
                command(*long), cwd=head.code, env=environment, stdout=file, stderr=file
            )
        until(lambda: "1 to train" in log.read_text())
        os.kill(follower.pid, signal.SIGKILL)
        follower.wait(10)
    finally:
        follower.kill()

    assert jobs(head) == [job]
    with log.open("w") as file:
        follower = subprocess.Popen(command(*long), cwd=head.code, env=environment, stdout=file, stderr=file)
    until(lambda: "1 to train" in log.read_text())
    before = max(study.glob("store/trials/*/checkpoints/state-*"), default=Path())
    stopped = subprocess.run(
        ["ray", "job", "stop", "--no-wait", "--address", head.url, job],
        env=head.environment | {"RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert stopped.returncode == 0, stopped.stderr
    assert follower.wait(40) == 130, log.read_text()
    assert "interrupted; the same command goes on from here" in log.read_text()
    assert max(study.glob("store/trials/*/checkpoints/state-*")).name > before.name

    record = head.answer(f"/api/jobs/{job}", head.token)[1]
    assert SECRET not in record
    assert SECRET not in log.read_text()
    for file in head.folder.glob("session_latest/logs/**/*"):
        if file.is_file():
            assert SECRET not in file.read_text(errors="replace"), file


@pytest.mark.slow
@pytest.mark.cluster
def test_the_exit_code_is_the_jobs_own(head: Head, study: Path) -> None:
    done = head.ablate(*asked(head, study, "--set", "data={kind: cifar10, root: /nowhere, image_size: 32}"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "/nowhere" in done.stdout
    done = head.ablate(*asked(head, study, "--set", "resources.cpus_per_worker=1000"))
    assert done.returncode == 4, done.stdout + done.stderr
    assert "a trial needs 1 x (1000 CPU, 0 GPU)" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    fast = ("--set", "optimizer={kind: sgd, lr: 1e+30}", "--set", "schedule.warmup_epochs=0")
    done = head.ablate(*asked(head, study, *fast))
    assert done.returncode == 3, done.stdout + done.stderr
    assert "loss is not finite" in done.stdout
    before = set(jobs(head))
    for says in ("1 to train, 0 to evaluate only", "all 1 trials are in"):
        done = head.ablate(*asked(head, study))
        assert done.returncode == 0, done.stdout + done.stderr
        assert says in done.stdout
    first, second = sorted(set(jobs(head)) - before)
    assert (first[:-2], first[-2:], second[-2:]) == (second[:-2], "-1", "-2")
    record = json.loads(next(study.glob("store/trials/*/record.json")).read_text())
    assert record["environment"]["commit"] == "of the laptop's checkout"


@pytest.mark.slow
@pytest.mark.cluster
def test_a_laptop_reads_the_shared_store_and_the_remote_tracking(head: Head, study: Path) -> None:
    assert head.ablate(*asked(head, study)).returncode == 0
    store = study / "store"
    seen = head.ablate("status", "--json", "--store", str(store))
    assert [row["state"] for row in json.loads(seen.stdout)] == ["finished"]
    words = [part for assignment in TINY for part in ("--set", assignment)]
    shared = head.ablate("report", str(study / "mine.yaml"), "--store", str(store), *words)
    assert shared.returncode == 0, shared.stderr
    tracked = head.ablate(
        *("report", str(study / "mine.yaml"), "--source", "mlflow", *words),
        *("--tracking-uri", f"sqlite:///{store}/mlflow.db", "--store", str(study / "laptop")),
    )
    assert tracked.returncode == 0, tracked.stderr
    cells = [next(folder.glob("studies/*/report/cells.csv")) for folder in (store, study / "laptop")]
    assert cells[0].read_text() == cells[1].read_text()


@pytest.mark.parametrize(
    ("changes", "takes"),
    [
        ({"address": "head:8265"}, "takes the page of the cluster's head, such as http://head:8265"),
        ({"address": "local"}, "takes the page of the cluster's head"),
        ({"store": "ablations"}, "takes what all nodes see: a folder by its absolute path, or s3://"),
        ({"store": "s3://me:secret@bucket/x"}, "takes one without"),
        ({"tracking": "sqlite:///runs.db"}, "takes a server that the head reaches"),
        (
            {"sets": ("data={kind: cifar10, root: here, image_size: 32}",)},
            "takes a folder that all nodes see",
        ),
    ],
)
def test_what_no_cluster_sees_is_refused_before_anything_is_sent(changes: dict[str, str], takes: str) -> None:
    sets = tuple(changes.get("sets", ()))
    plan = make_plan(["table1"], "digits", None, sets)
    words = submit.Asked(("table1",), "digits", None, sets, "auto", None, changes.get("store", "/shared"))
    with pytest.raises(SpecError, match=takes) as caught:
        submit.refuse_what_no_cluster_sees(
            words, plan, changes.get("address", "http://head:8265"), changes.get("tracking")
        )
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)


def test_a_shell_sees_the_words_of_a_study_as_words(tmp_path: Path) -> None:
    hostile = "epochs=1; touch $(echo /tmp/taken) `id` 'x"
    words = submit.Asked(("a b",), None, "0", (hostile,), "auto", 3, "/a store/$HOME")
    script = words.entrypoint(["a b"], None).replace("exec python", "printf '%s\\n'")
    (tmp_path / "tracking.sh").write_text("")
    shown = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert hostile in shown.stdout.splitlines()
    assert "/a store/$HOME" in shown.stdout.splitlines()
    assert "a b" in shown.stdout.splitlines()


def test_the_working_directory_has_what_runs_and_nothing_else(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    part = STUDY.replace("name: mine", "name: part", 1)
    (given / "part.yaml").write_text(part)
    (given / "mine.yaml").write_text(STUDY + "include: [part, table1]\n")
    (given / "other.txt").write_text("not asked for")
    folder = tmp_path / "sent"
    folder.mkdir()
    words = submit.Asked((str(given / "mine.yaml"), "table2"), None, None, (), "auto", None, "/shared")
    studies, recipe = submit.lay_out(folder, words)
    assert studies == ["sent/0/mine.yaml", "table2"]
    assert recipe is None
    assert {path.name for path in folder.iterdir()} == {"orchestrator", "trainers", "studies", "sent"}
    assert {path.name for path in (folder / "sent" / "0").iterdir()} == {"mine.yaml", "part.yaml"}
    assert not [path for path in folder.rglob("*") if path.name == "__pycache__" or ".git" in path.parts]
    listed = subprocess.run(
        command("plan", studies[0], "--recipe", "digits", "--json"),
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ""},
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    assert {cell["study"] for cell in json.loads(listed.stdout)["cells"]} >= {"mine", "part", "table1"}


@pytest.mark.parametrize(
    ("ended", "code"),
    [(("SUCCEEDED", 0), 0), (("FAILED", 2), 2), (("FAILED", 3), 3), (("FAILED", 4), 4), (("FAILED", 130), 130),
     (("STOPPED", None), 130)],
)  # fmt: skip
def test_a_job_that_ended_by_itself_gives_its_exit_code(ended: tuple[str, int | None], code: int) -> None:
    assert submit.exit_code("job", *ended, "") == code


@pytest.mark.parametrize(
    ("code", "message", "says"),
    [
        (None, "Job supervisor actor died: its node was lost\nTraceback", "Job supervisor actor died"),
        (-9, "", "killed by signal 9"),
        (137, "", "killed by signal 9"),
    ],
)
def test_a_job_whose_process_was_lost_is_told_in_a_line(code: int | None, message: str, says: str) -> None:
    with pytest.raises(AblateError, match=says) as caught:
        submit.exit_code("job", "FAILED", code, message)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_a_log_that_is_read_again_is_shown_once() -> None:
    shown: list[str] = []
    log = submit._Log(shown.append)
    log.show("one\n", 0)
    log.show("two\n", 4)
    log.show("one\ntw", 0)
    log.show("o\nthree\n", 6)
    log.show("one\ntwo\nthree\nfour\n", 0)
    assert "".join(shown) == "one\ntwo\nthree\nfour\n"
