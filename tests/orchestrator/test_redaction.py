"""No secret of a URI, a header or the environment is shown, logged or kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import cli, cluster, failures, launch, mlflow_access
from orchestrator.display import PlainConsole
from orchestrator.errors import AblateError
from orchestrator.mlflow_access import TrackedRecords, TrackingError, translated_errors
from orchestrator.plan import make_plan
from orchestrator.redaction import redacted
from orchestrator.store import Store

SECRET = "hunter2"
URIS = [
    "http://me:hunter2@host:5000/x",
    "http://me:a/hunter2@host",
    "http://me:a@hunter2@host",
    "http://me:a?hunter2@host",
    "http://me:a#hunter2@host",
    "http://:hunter2@host",
    "http://hunter2@host",
    "http://me:hunter2@[::1]:5000",
    "http://host:5000/?token=hunter2",
    "http://host:5000/?token=a@hunter2",
    "http://host/#hunter2",
    "postgresql+psycopg2://me:hunter2@host/db?sslpassword=hunter2",
    "s3:/KEY:hunter2@bucket/folder",
    "me:hunter2@host",
    "url: /api/2.0/mlflow?x=1&access_token=hunter2&y=2",
    "Invalid header value: 'Bearer hunter2\\n'",
    "--tracking-uri=mysql://me:hunter2@host/db",
    'engine("mysql://me:hunter2@host/db")',
]


@pytest.mark.parametrize("uri", URIS)
def test_no_secret_of_a_uri_is_shown(uri: str) -> None:
    for text in (uri, f"it failed at {uri}: why", f"({uri})", f"'{uri}'"):
        assert SECRET not in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/#/experiments".partition("#")[0],
        "sqlite:////home/me@work/ablations/mlflow.db",
        "studies/mine.yaml: cells[0].label: got 3, takes text",
        "/data/cat@2x.png: cannot be decoded",
        "is its token in RAY_AUTH_TOKEN, in the file of RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token?",
        "12:30 at step 7: loss is not finite",
    ],
)
def test_what_holds_none_is_shown_as_it_is(text: str) -> None:
    assert redacted(text) == text


def test_secrets_of_the_environment_are_found_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct horse")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    assert redacted("said 'correct horse' and stopped") == "said '***' and stopped"


def test_a_failure_is_kept_without_secrets() -> None:
    try:
        raise ConnectionError("http://me:hunter2@host/data: refused")
    except ConnectionError as error:
        kept = failures.failure(error, error)
    assert SECRET not in json.dumps(kept)
    assert "http://***@host/data" in kept["error"]


@pytest.mark.parametrize("uri", ["http://me:hunter2@host", "mysql://me:hunter2@host/db"])
def test_errors_of_libraries_are_told_without_secrets(uri: str) -> None:
    for text in (
        f"API request to {uri}/api failed",
        "bad header: 'Bearer hunter2'",
        f"could not parse {uri!r}",
    ):
        with pytest.raises(TrackingError) as told, translated_errors(uri):
            raise ValueError(text)
        assert SECRET not in str(told.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sync", "quickstart", "--tracking-uri", "me:hunter2@host"],
        ["sync", "quickstart", "--tracking-uri", "gopher://me:a/hunter2@host"],
        ["sync", "quickstart", "http://me:hunter2@host"],
        ["sync", "quickstart", "--traking-uri=http://me:hunter2@host"],
        ["plan", "quickstart", "--set", "data.root=s3://KEY:hunter2@bucket"],
        ["plan", "quickstart", "--recipe", "cifar10", "--set", "data.root=s3://KEY:hunter2@bucket"],
        ["status", "--store", "s3://KEY:hunter2@bucket"],
        ["run", "quickstart", "--store", "s3://KEY:hunter2@bucket"],
    ],
)
def test_a_refusal_tells_no_secret(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sys, "argv", ["ablate", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 2, said.err
    assert SECRET not in said.out + said.err
    assert list(tmp_path.iterdir()) == []


def test_mlflows_page_gets_its_database_where_other_users_do_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: dict[str, Any] = {}

    def run(command: list[str], env: dict[str, str], **options: Any) -> SimpleNamespace:
        called.update(command=command, env=env)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(launch.subprocess, "run", run)
    uri = "postgresql://me:hunter2@host/db"
    launch.serve_ui(Store(tmp_path), uri, 5000, PlainConsole())
    assert SECRET not in " ".join(called["command"])
    assert called["env"]["MLFLOW_BACKEND_STORE_URI"] == uri
    assert called["command"][called["command"].index("--host") + 1] == "127.0.0.1"
    launch.serve_ui(Store(tmp_path), "https://me:hunter2@host", 5000, PlainConsole())
    assert SECRET not in capsys.readouterr().out


def test_ray_is_not_told_the_secrets_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("ray._private.utils")
    monkeypatch.setattr(
        utils, "get_entrypoint_name", lambda: "ablate run --tracking-uri mysql://me:hunter2@h/db"
    )
    with cluster._told_without_secrets():
        assert utils.get_entrypoint_name() == "ablate run --tracking-uri mysql://***@h/db"
    assert SECRET in utils.get_entrypoint_name()


# --- an MLflow that is anybody's ------------------------------------------------------------------


HOSTILE = ["", "{", "null", "3", "[]", "[[]]", '"x"', "{}", '{"kind": []}', '{"kind": "toy"}', '{"metrics": 3}',
           '{"metrics": {"top1": []}}', '{"key": {}, "metrics": {}}', '{"error": 3}', "[" * 100_000, "NaN",
           '{"kind": "trial", "started": "yesterday"}']  # fmt: skip


@pytest.mark.parametrize("tag", ["record", "failure", "artifacts", "evaluation.linear_probe"])
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_a_tag_of_mlflow_may_say_anything(tag: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(["quickstart"], "digits")
    study = plan.studies[0]
    key = next(iter(plan.trials))
    data = SimpleNamespace(tags={"trial_key": key, tag: value}, metrics={"pretrain/../x": 1.0})
    run = SimpleNamespace(
        data=data, info=SimpleNamespace(run_id="r", artifact_uri="file:///etc", start_time=0)
    )
    monkeypatch.setattr(
        mlflow_access,
        "connect",
        lambda uri: SimpleNamespace(get_experiment_by_name=lambda name: SimpleNamespace(experiment_id="1")),
    )
    monkeypatch.setattr(mlflow_access, "all_runs", lambda client, experiment, study: {key: [run]})

    def read() -> None:
        records = TrackedRecords("http://me:hunter2@host", study)
        for ask in (records.trial_record, records.trial_failure, records.history, records.trial_arrays):
            ask(key)

    try:
        read()
    except AblateError as told:
        said = str(told)
        assert "run r says what `ablate` does not write" in said
        assert SECRET not in said
        assert "\n" not in said
