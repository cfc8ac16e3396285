"""A store and its leases may be anybody's: whatever they say, a verb ends with a line and reaches nothing outside."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.text import Text

from orchestrator import cli, records, tracking
from orchestrator.display import PlainConsole, plain_table, print_json
from orchestrator.errors import AblateError
from orchestrator.hangs import end_process
from orchestrator.leases import Holder, Leases
from orchestrator.plan import Plan, jobs, make_plan
from orchestrator.processes import started
from orchestrator.report import render
from orchestrator.store import Store, _checksum
from tests.orchestrator.synthetic import fill, write_suite

ROOT = Path(cli.__file__).parent.parent

HOSTILE: list[Any] = [
    None, True, -1, 10**400, float("nan"), float("inf"), "", "x" * 200_000, "\ud800", "\x1b]0;owned\x07\u202e",
    "[red]<script>=cmd|' /C calc'!A0 \\input{/etc/passwd} $(touch pwned)[/x]", "../../../x", [], {}, [[]], [{}],
    {"a": []},
]  # fmt: skip
"""What stands in turn at every place of every file."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def plan(suite: Path) -> Plan:
    return make_plan([str(suite)], "digits", None)


@pytest.fixture
def store(tmp_path: Path, plan: Plan) -> Store:
    store = Store(tmp_path / "store")
    fill(plan, store)
    return store


@pytest.fixture
def verb(
    store: Store, suite: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a verb that only looks; it ends in order or with a line, and tells the terminal nothing but text."""

    def call(*arguments: str) -> str:
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.setattr(sys, "argv", ["ablate", *arguments, "--store", str(store.root)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert end.value.code in (0, 1, 2), said.err
        assert "Traceback" not in said.err
        assert len(said.err.splitlines()) <= 2
        shown = said.out + said.err
        assert "\x1b]" not in shown
        assert "\u202e" not in shown
        shown.encode()
        return shown

    return call


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in plain data something stands; of long lists the first alone."""
    yield here
    if isinstance(value, dict):
        for name, below in value.items():
            yield from places(below, (*here, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*here, 0))


def altered(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with something else at a place."""
    if not place:
        return value
    changed = copy.deepcopy(content)
    below = changed
    for step in place[:-1]:
        below = below[step]
    below[place[-1]] = value
    return changed


def forge(path: Path, content: Any) -> None:
    """Write a record whose checksum is right."""
    if isinstance(content, dict):
        content = {**content, "checksum": _checksum(content)}
    path.write_text(json.dumps(content))


def look(plan: Plan, store: Store, report: bool = True) -> None:
    """All that verbs read of a store; nothing but what is shown as a line may be raised."""
    with suppress(AblateError):
        list(store.status())
        jobs(plan, store)
        store.seconds_per_epoch("digits")
        store.evaluation_seconds("digits")
    with suppress(AblateError):
        for key in plan.trials if report else ():
            store.history(key)
        if report:
            made = render.make_report(plan, plan.studies[0], store)
            json.dumps(made.provenance, indent=1, ensure_ascii=False).encode()
            "".join([*render.table_files(made).values(), render.markdown(made)]).encode()


@pytest.mark.parametrize(
    ("of_places", "values"),
    [(5, 1), pytest.param(1, len(HOSTILE), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_every_place_of_a_record_may_say_anything(
    plan: Plan, store: Store, of_places: int, values: int
) -> None:
    trials = sorted((store.root / "trials").glob("*/record.json"))
    kinds = {json.loads(path.read_text())["kind"]: path for path in trials}
    for path in [*kinds.values(), *sorted((store.root / "evaluations").glob("*/record.json"))[:2]]:
        good = path.read_bytes()
        content = json.loads(good)
        for number, place in list(enumerate(places(content)))[::of_places]:
            for value in [HOSTILE[(number + n) % len(HOSTILE)] for n in range(values)]:
                forge(path, altered(content, place, value))
                look(plan, Store(store.root))
        path.write_bytes(good)


@pytest.mark.parametrize(
    "name", ["config.json", "failure.json", "history.jsonl", "notes.jsonl", "record.json"]
)
def test_every_file_of_a_trial_may_say_anything(plan: Plan, store: Store, name: str) -> None:
    path = store.trial_directory(next(iter(plan.trials))) / name
    (path.parent / "record.json").unlink()  # so that no checksum stands before the history
    for value in HOSTILE:
        for content in (
            value,
            {"error": value, "when": value, "text": value, "head": value, "epochs": value},
        ):
            path.write_text(json.dumps(content) + "\n")
            look(plan, Store(store.root), report=content is not value and name == "failure.json")
            Store(store.root).notes(path.parent.name)
    path.write_bytes(b"[" * 100_000)
    look(plan, Store(store.root))


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [make_fifo, make_endless, make_loop, make_folder])
def test_what_is_no_file_is_not_waited_for(plan: Plan, store: Store, make: Callable[[Path], None]) -> None:
    trial = store.trial_directory(next(iter(plan.trials)))
    evaluation = store.evaluation_directory(next(iter(plan.evaluations)))
    places = [trial / name for name in ("record.json", "failure.json", "history.jsonl", "notes.jsonl")]
    for path in (*places, evaluation / "arrays.npz", evaluation / "record.json"):
        path.unlink(missing_ok=True)
        make(path)
        look(plan, Store(store.root))
        Store(store.root).notes(trial.name)


def packed(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def header(shape: str) -> bytes:
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


ARRAYS = {
    "one array alone": npy(np.zeros(3)),
    "a pickle": npy(np.array([{}], dtype=object)),
    "no array": packed(correct=b"x", representation_singular_values=b"y"),
    "an array without end": packed(**{"correct.npy": header("(10**15,)".replace("10**15", str(10**15)))}),
    "a crooked header": packed(**{"correct.npy": header("(-1, 'x')")}),
    "texts": packed(**{"correct.npy": npy(np.array(["a"]))}),
    "matrices": packed(**{"correct.npy": npy(np.zeros((2, 2))), "embedding_singular_values.npy": npy(np.ones((2, 2)))}),
    "scalars": packed(**{"correct.npy": npy(np.float64(1)), "representation_singular_values.npy": npy(np.float64(1))}),
    "nothing": packed(),
    "complex numbers": packed(**{"correct.npy": npy(np.zeros(2, complex))}),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_may_be_anything(plan: Plan, store: Store, name: str) -> None:
    for path in [
        *(store.root / "evaluations").glob("*/arrays.npz"),
        *(store.root / "trials").glob("*/arrays.npz"),
    ]:
        path.write_bytes(ARRAYS[name])
        record = json.loads((path.parent / "record.json").read_text())
        forge(path.parent / "record.json", record | {"files": {}})
    look(plan, Store(store.root))


def test_packed_gigabytes_are_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_ARRAY_BYTES", 1000)
    with pytest.raises(records.RecordError, match="unpacks to"):
        records.arrays(packed(**{"x.npy": npy(np.zeros(10_000))}))


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "trials",
        "studies",
        "mlflow.db",
        "leases.lock",
        "mlflow.lock",
        "damaged",
        "leases",
        "mlartifacts",
        ".runs",
    ],
)
def test_no_verb_follows_a_link_out_of_the_store(
    store: Store, suite: Path, verb: Callable[..., str], tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    place = store.root / name
    if place.exists():
        place.rename(outside / "moved")
        place.symlink_to(outside / "moved")
    else:
        place.symlink_to(outside / "file")
    for arguments in (["report", str(suite)], ["sync", str(suite)], ["run", str(suite)]):
        assert "leads out of it" in verb(*arguments)
    assert (outside / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "checkpoints"])
def test_nothing_of_a_trial_is_written_through_a_link(
    plan: Plan, store: Store, tmp_path: Path, name: str
) -> None:
    key, outside = next(iter(plan.trials)), tmp_path / "outside"
    outside.mkdir()
    place = store.trial_directory(key) / name
    if not name:
        place.rename(tmp_path / "moved")
    place.symlink_to(outside)
    with pytest.raises(AblateError, match="leads out of it"):
        store.begin_trial(key, {})
    assert list(outside.iterdir()) == []


def test_notes_and_partial_files_go_through_no_link(plan: Plan, store: Store, tmp_path: Path) -> None:
    key, mine = next(iter(plan.trials)), tmp_path / "mine"
    mine.write_text("mine")
    folder = store.trial_directory(key)
    (folder / "notes.jsonl").symlink_to(mine)
    with pytest.raises(OSError, match="symbolic links"):
        store.note(key, "$(touch pwned)")
    (folder / f".failure.json.{os.getpid()}").symlink_to(mine)
    store.fail_trial(key, {"error": "x"})
    assert store.trial_failure(key) == {"error": "x"}
    assert mine.read_text() == "mine"


def test_a_report_goes_through_no_link_in_its_folder(
    store: Store, suite: Path, verb: Callable[..., str], tmp_path: Path
) -> None:
    report = store.root / "studies" / "suite@digits" / "report"
    report.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (report / "tables").symlink_to(tmp_path / "outside")
    assert "tables leads out of it" in verb("report", str(suite))
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_link_to_a_whole_store_is_fine(store: Store, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store.root)
    linked = Store(tmp_path / "link")
    linked.require()
    assert all(linked.trial_record(key) for key in plan.trials)


def test_a_store_at_a_url_is_refused_without_its_keys() -> None:
    with pytest.raises(AblateError, match="s3") as refusal:
        Store(Path("s3://KEY:hunter2@bucket/store"))
    assert "hunter2" not in str(refusal.value)


# --- leases ---------------------------------------------------------------------------------------

HOLDER: dict[str, Any] = {one.name: 1 if one.type == "int" else "\x1b[2J" for one in fields(Holder)}


def test_every_lease_may_say_anything(tmp_path: Path) -> None:
    leases, key = Leases(tmp_path, "0123456789", ttl=0.01), "ab" * 10
    place = tmp_path / "leases" / key
    with leases.acquire(key) as lease:
        lease.fence.beat("step 1")
        files = list(place.iterdir())
        for name in ("²", "9" * 200, "-1", "０００００００００１"):
            (place / name).touch()
        contents = [HOLDER | {name: value} for name in [*HOLDER, "count", "where"] for value in HOSTILE]
        for content in (*HOSTILE, *contents):
            for path in files:
                path.write_text(json.dumps(content))
            leases.held()
            leases.holder(key)
            leases.progress(key)
        for path in files:
            path.unlink()
            os.mkfifo(path)
        leases.held()


def test_a_lease_through_a_link_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "0000000001").write_text("mine")
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / ("ab" * 10)).symlink_to(tmp_path / "outside")
    with pytest.raises(AblateError, match="is a link"):
        Leases(tmp_path, "0123456789").acquire("ab" * 10)
    assert (tmp_path / "outside" / "0000000001").read_text() == "mine"


def test_a_lease_that_names_a_process_of_others_kills_nothing(tmp_path: Path) -> None:
    """As a worker of Ray would be, told to end what no node of Ray has started."""
    victim, key = subprocess.Popen(["sleep", "60"]), "ab" * 10
    try:
        with Leases(tmp_path, "0123456789").acquire(key) as lease:
            end_process(tmp_path, key, replace(lease.holder, pid=victim.pid, started=started(victim.pid)))
        time.sleep(0.1)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


# --- what is shown --------------------------------------------------------------------------------


SPOKEN = "\x1b[2J\x9b31m\u202e\ud800\x07[red]label[/x] :smile: é ✓ 98 %\u00a0"


def test_a_console_takes_text_for_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole(force_terminal=True, width=200, highlight=False)
    table = plain_table(SPOKEN)
    table.add_row(SPOKEN)
    for shown in (SPOKEN, Text(SPOKEN, "red"), table):
        console.print(shown)
    said = capsys.readouterr().out
    assert not {"\x9b", "\u202e", "\ud800", "\x07"} & set(said)
    assert "\x1b[2J" not in said
    assert said.count("[red]label[/x] :smile: é ✓ 98 %") == 4


def test_json_for_scripts_commands_no_terminal_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": SPOKEN, "b": [1, "ü"]})
    said = capsys.readouterr().out
    assert json.loads(said) == {"a": SPOKEN, "b": [1, "ü"]}
    assert "ü" in said
    assert not {"\x1b", "\x9b", "\u202e", "\ud800", "\x07"} & set(said)


def test_what_a_store_says_reaches_no_terminal_as_a_command(
    store: Store, plan: Plan, suite: Path, verb: Callable[..., str]
) -> None:
    key = next(iter(plan.trials))
    folder = store.trial_directory(key)
    content = json.loads((folder / "record.json").read_text())
    forge(folder / "record.json", content | {"recipe": "[/x]\x1b]0;owned\x07"})
    store.fail_trial(key, {"error": "[/x] \x1b]0;owned\x07 \u202e"})
    assert "[/x]" in verb("status")
    for arguments in (["status", "--json"], ["plan", str(suite)], ["report", str(suite)]):
        verb(*arguments)


# --- numbers and places ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e308, -1e308, 1e100, 5e-324, -1.0])
def test_figures_of_absurd_numbers_are_drawn_or_their_numbers_set_aside(
    plan: Plan, store: Store, value: float
) -> None:
    for path in store.root.glob("*/*/record.json"):
        content = json.loads(path.read_text())
        with (
            np.load(path.parent / "arrays.npz")
            if (path.parent / "arrays.npz").exists()
            else nullcontext({}) as old
        ):
            arrays = {
                name: np.full_like(old[name], value) if old[name].dtype.kind == "f" else old[name]
                for name in old
            }
        np.savez(path.parent / "arrays.npz", **arrays)
        metrics = dict.fromkeys(content.get("metrics", {}), value)
        forge(path, content | {"metrics": metrics, "files": {}})
    render.files(render.make_report(plan, plan.studies[0], Store(store.root)))


@pytest.mark.parametrize(
    "place", ["file:///etc", "/etc", "file:///{store}/mlartifacts/../../x", "file:///{store}/link"]
)
def test_a_database_sends_no_file_out_of_its_store(tmp_path: Path, place: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "outside")
    uri = place.replace("/{store}", str(tmp_path / "store"))
    run: Any = SimpleNamespace(info=SimpleNamespace(artifact_uri=uri))
    with pytest.raises(AblateError, match="outside of"):
        tracking._refuse_other_places(run, ["cells.csv"], tmp_path / "store")


def test_files_of_a_run_go_through_no_link(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(info=SimpleNamespace(artifact_uri=tmp_path.as_uri() + "/own"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "cells.csv").symlink_to(tmp_path / "mine")
    tracking._refuse_other_places(run, ["claims.csv"], None)
    with pytest.raises(AblateError, match="outside of"):
        tracking._refuse_other_places(run, ["cells.csv"], None)
    run.info.artifact_uri = "mlflow-artifacts:/1/2"
    tracking._refuse_other_places(run, ["cells.csv"], None)
