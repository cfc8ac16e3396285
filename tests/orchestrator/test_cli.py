"""The command line as a person meets it: in a process of its own, with exit codes and short messages."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from orchestrator import cli, library
from orchestrator.store import Store

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("ABLATE", "MLFLOW"))}


def ablate(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT | {"COLUMNS": "200"} | environment,
        check=False,
    )


MALFORMED = {
    "no study": ["run"],
    "unknown study": ["run", "quikstart"],
    "a study's path that isn't there": ["run", "./nowhere.yaml"],
    "a study that is a folder": ["run", "/tmp/"],
    "non-ASCII study": ["run", "étude"],
    "control characters": ["run", "a\x1b[31mb"],
    "unknown recipe": ["run", "quickstart", "--recipe", "digit"],
    "a checkpoint that isn't there": ["evaluate", "./no.pth", "--recipe", "digits"],
    "evaluate without a recipe": ["evaluate", "./no.pth"],
    "export of an unknown key": ["export", "abcdef", "--format", "safetensors", "--out", "x"],
    "ledger of an unknown recipe": ["ledger", "--recipe", "digit"],
    "unknown switch": ["ledger", "--set", "faithfulness.negativs=corrected"],
    "unknown version": ["run", "quickstart", "--set", "faithfulness.negatives=mine"],
    "unknown verb": ["rum", "quickstart"],
    "unknown option": ["run", "quickstart", "--recipies", "digits"],
    "option without value": ["run", "quickstart", "--recipe"],
    "seeds that are words": ["run", "quickstart", "--seeds", "one"],
    "no seeds": ["run", "quickstart", "--seeds", ""],
    "negative seed": ["run", "quickstart", "--seeds=-1"],
    "repeated seed": ["run", "quickstart", "--seeds", "1,1"],
    "seed too large": ["run", "quickstart", "--seeds", str(2**31)],
    "set without value": ["run", "quickstart", "--set", "epochs"],
    "set of nothing": ["run", "quickstart", "--set", "=3"],
    "set of an unknown field": ["run", "quickstart", "--set", "epoch=3"],
    "set of a wrong type": ["run", "quickstart", "--set", "epochs=many"],
    "set of a list where a number belongs": ["run", "quickstart", "--set", "epochs=[1]"],
    "set that is not YAML": ["run", "quickstart", "--set", "epochs={"],
    "zero epochs": ["run", "quickstart", "--set", "epochs=0"],
    "absurdly many epochs": ["run", "quickstart", "--set", "epochs=99999999999999999999999"],
    "batch larger than the data": ["run", "quickstart", "--set", "batch_size=16384"],
    "batch that does not divide": ["run", "quickstart", "--set", "resources.workers=3"],
    "absurd image size": ["run", "quickstart", "--set", "data.image_size=1000000"],
    "absurd width": ["run", "quickstart", "--set", "backbone.width=1000000"],
    "negative learning rate": ["run", "quickstart", "--set", "optimizer.lr=-1"],
    "infinite learning rate": ["run", "quickstart", "--set", "optimizer.lr=1e999"],
    "not a number": ["run", "quickstart", "--set", "optimizer.lr=.nan"],
    "unknown optimizer": ["run", "quickstart", "--set", "optimizer={kind: adam, lr: 1}"],
    "unknown backbone": ["run", "quickstart", "--set", "backbone.kind=resnet51"],
    "unknown precision": ["run", "quickstart", "--set", "precision=fp8"],
    "unknown data": ["run", "quickstart", "--set", "data.kind=mnist"],
    "warm-up longer than training": ["run", "quickstart", "--set", "schedule.warmup_epochs=99"],
    "crop from large to small": ["run", "quickstart", "--set", "augment.crop_scale=[0.9, 0.1]"],
    "probability above one": ["run", "quickstart", "--set", "augment.flip=1.5"],
    "missing data root": ["run", "quickstart", "--recipe", "cifar10", "--set", "data.root=/nowhere"],
    "no data root": ["run", "quickstart", "--recipe", "imagenet"],
    "unknown executor": ["run", "quickstart", "--executor", "inlin"],
    "inline gang": ["run", "quickstart", "--executor", "inline", "--set", "resources.workers=2"],
    "a store that is a file": ["run", "quickstart", "--store", __file__],
    "a store's name beyond all limits": ["run", "quickstart", "--store", "a" * 300],
    "a recipe's path beyond all limits": ["run", "quickstart", "--recipe", "a/" * 3000],
    "a recipe of another name": [
        "run",
        "quickstart",
        "--recipe",
        str(Path(__file__).parent / "renamed.yaml"),
    ],
    "a tracking URI of the past": ["run", "quickstart", "--tracking-uri", "./mlruns"],
    "a dimension to choke on": ["run", "quickstart", "--set", "head={kind: subvector, d0: 1e-3000000}"],
    "a report of no store": ["report", "quickstart", "--store", "nowhere"],
    "a sync of no store": ["sync", "quickstart", "--store", "nowhere"],
    "no trials at once": ["run", "quickstart", "--max-concurrent", "0"],
    "unknown source": ["report", "quickstart", "--source", "stor"],
    "unknown schema": ["schema", "studdy"],
    "a budget for nothing": ["run", "quickstart", "--budget", "4h"],
    "most seeds of nothing": ["run", "quickstart", "--max-seeds", "9"],
    "a budget without a unit": ["run", "quickstart", "--until-decided", "--budget", "30"],
    "more seeds than a verdict rests on": ["run", "quickstart", "--until-decided", "--max-seeds", "21"],
    "until decided on all seeds": ["run", "quickstart", "--until-decided", "--seeds", "all"],
    "port out of range": ["ui", "--port", "70000"],
}


@pytest.mark.parametrize("arguments", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_input_exits_2_with_a_short_message_before_anything_starts(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ablate", *arguments])
    monkeypatch.setenv("ABLATE_STORE", str(tmp_path / "store"))
    monkeypatch.delitem(sys.modules, "orchestrator.launch", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    output = capsys.readouterr()
    assert ended.value.code == 2
    assert output.out == ""
    assert 0 < len(output.err.strip().splitlines()) <= 3
    assert "Traceback" not in output.err
    assert output.err.isprintable() or set(output.err) - {"\n"} <= {
        c for c in output.err if c.isprintable()
    } | {"\n"}
    assert "orchestrator.launch" not in sys.modules, "what would start Ray was imported"
    assert not (tmp_path / "store").exists()
    assert not Path("nowhere").exists()


def test_messages_reach_a_real_terminal_too() -> None:
    done = ablate("run", "quickstart", "--set", "optimiser.lr=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--set optimiser.lr=1: optimiser: unknown field; did you mean 'optimizer'?" in done.stderr


def test_planning_imports_neither_torch_nor_ray_nor_mlflow() -> None:
    code = (
        "import sys; from orchestrator import cli; sys.argv = ['ablate', 'plan', 'quickstart', '--store', '/nowhere']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'ray', 'mlflow', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_shows_what_is_shared_and_what_it_costs(tmp_path: Path) -> None:
    done = ablate("plan", "quickstart", "--store", str(tmp_path))
    assert done.returncode == 0
    assert "10 cells need 12 trainings" in done.stdout
    assert "= table1/directclr" in done.stdout
    assert "Time: about" in done.stdout
    plan = json.loads(ablate("plan", "quickstart", "--json", "--store", str(tmp_path)).stdout)
    assert len(plan["to_train"]) == 12
    assert {cell["trial"] for cell in plan["cells"]} == set(plan["trials"])


@pytest.mark.parametrize("arguments", [["list"], ["show", "table2"], ["show", "imagenet"], ["status"]])
def test_looking_verbs_succeed_also_as_json(arguments: list[str], tmp_path: Path) -> None:
    assert ablate(*arguments, ABLATE_STORE=str(tmp_path)).stdout
    assert json.loads(ablate(*arguments, "--json", ABLATE_STORE=str(tmp_path)).stdout) is not None


@pytest.mark.parametrize("verb", ["list", "show", "plan", "run", "report", "status", "sync", "ui", "schema"])
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    assert f"ablate {verb}" in ablate(verb, "--help").stdout.split("Example")[1]


@pytest.mark.parametrize(("what", "folder"), [("study", library.STUDIES), ("recipe", library.RECIPES)])
def test_shipped_files_meet_the_exported_schema_and_nonsense_does_not(what: str, folder: Path) -> None:
    schema = json.loads(ablate("schema", what).stdout)
    validator = jsonschema.Draft202012Validator(schema)
    for path in folder.glob("*.yaml"):
        validator.validate(json.loads(json.dumps(library.yaml_files.load_mapping(path))))
        assert yaml.safe_load(path.read_text())["name"] == path.stem
    assert list(validator.iter_errors({"nmae": "x"}))


def test_a_reader_that_goes_away_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m orchestrator.cli schema recipe | head -c 10",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_status_shows_any_error_as_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    store.begin_trial("0" * 20, {"head": {"kind": "none"}, "seed": 0, "epochs": 1})
    error = "[/pytorch/gloo/pair.cc:534] Connection closed by peer [enforce fail]"
    store.fail_trial("0" * 20, {"error": error})
    done = ablate("status", ABLATE_STORE=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert error in done.stdout


def test_a_recipe_is_shown_by_its_path_too() -> None:
    assert "thin_resnet" in ablate("show", str(library.RECIPES / "digits.yaml")).stdout


def test_no_verb_at_all_shows_the_verbs() -> None:
    done = ablate()
    assert "Usage" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "/s/leases.lock"),
            "ablate: Read-only file system at /s/leases.lock; make the store writable, and the same command goes on",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "ablate: No space left on device; make room, and the same command goes on",
        ),
    ],
)
def test_a_file_system_that_fails_under_the_command_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, told: str
) -> None:
    def fail(standalone_mode: bool) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(cli.signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == told + "\n"
