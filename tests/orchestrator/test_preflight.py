"""What is looked at on every node before anything is trained, and what of it ends a run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from heads import Head, standing_head, started

from orchestrator import preflight
from orchestrator.errors import AblateError, CapacityError
from orchestrator.packing import Node
from orchestrator.preflight import NOT_ASKED, PROBLEM, WARNING, Finding, Found, Gpu, Looked, Wanted
from trainers.config import DataConfig

HERE = Found(
    {"python": "3.11.7", "torch": "2.14.0", "torchvision": "0.29", "ray": "2.60.0", "numpy": "2.4", "mlflow": "3.17",
     "pandas": "3.1"},
    (1, 2, 1),
)  # fmt: skip
NODE = Node(cpus=8, gpus=2, id="n", name="big (192.0.2.1)", memory=64 * 2**30, accelerator="A100")
WANTED = Wanted("/shared", ("mark", "content"))
GPUS = Gpu(2, bf16=True, nccl=True, free=(70 * 2**30,) * 2, total=(80 * 2**30,) * 2)


def judged(
    found: Found, wanted: Wanted = WANTED, node: Node = NODE, workers: bool = True, drivers: bool = True
) -> list[tuple[str, str]]:
    findings = preflight.judge(found, HERE, wanted, node, workers, drivers)
    return [(one.check, one.level) for one in findings if one.level != NOT_ASKED]


def with_version(**changes: str | None) -> Found:
    told = HERE.versions | changes
    return replace(HERE, versions={name: value for name, value in told.items() if value is not None})


def test_a_node_like_this_machine_is_fine() -> None:
    assert judged(HERE) == []
    assert judged(replace(HERE, gpu=GPUS), replace(WANTED, gpu=True, bf16=True, gangs=True)) == []


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"python": "3.11.9"}, None),
        ({"python": "3.12.7"}, PROBLEM),
        ({"torch": "2.13.0"}, PROBLEM),
        ({"ray": "2.59.0"}, PROBLEM),
        ({"numpy": None}, PROBLEM),
        ({"mlflow": "3.16"}, WARNING),
        ({"pandas": None}, WARNING),
    ],
)
def test_packages_that_compute_or_send_must_be_the_same_and_others_should(
    changes: dict[str, str | None], level: str | None
) -> None:
    assert judged(with_version(**changes)) == ([("packages", level)] if level else [])


def test_other_numerics_of_the_trainers_are_a_problem_that_names_both() -> None:
    findings = preflight.judge(replace(HERE, numerics=(2, 2, 1)), HERE, WANTED, NODE, True, True)
    assert [(one.check, one.level) for one in findings[:1]] == [("packages", PROBLEM)]
    assert "2.2.1" in findings[0].reason
    assert "1.2.1" in findings[0].reason


def test_where_no_worker_fits_data_and_accelerators_do_not_matter() -> None:
    bad = replace(HERE, data="/data: missing", gpu=Gpu(0, False, False))
    assert judged(bad, replace(WANTED, gpu=True), workers=False) == []
    assert ("data", PROBLEM) in judged(bad, replace(WANTED, gpu=True))


def test_where_nothing_runs_at_all_nothing_ends_a_run() -> None:
    bad = replace(with_version(torch="1.0"), store="cannot be written", numerics=(9,))
    assert {level for _, level in judged(bad, workers=False, drivers=False)} == {WARNING}
    assert {level for _, level in judged(bad, workers=False, drivers=True)} == {PROBLEM}


@pytest.mark.parametrize(
    ("gpu", "wanted", "expected"),
    [
        (Gpu(0, False, True), {}, [PROBLEM]),
        (replace(GPUS, count=1), {}, [PROBLEM]),
        (replace(GPUS, nccl=False), {}, []),
        (replace(GPUS, nccl=False), {"gangs": True}, [PROBLEM]),
        (replace(GPUS, bf16=False), {}, []),
        (replace(GPUS, bf16=False), {"bf16": True}, [WARNING]),
        (replace(GPUS, free=(2**30, 70 * 2**30)), {}, [WARNING]),
    ],
)
def test_accelerators_are_asked_for_what_the_trainings_need(
    gpu: Gpu, wanted: dict[str, bool], expected: list[str]
) -> None:
    assert [
        level for _, level in judged(replace(HERE, gpu=gpu), replace(WANTED, gpu=True, **wanted))
    ] == expected


def looked(*findings: Finding, name: str = "a") -> Looked:
    return Looked(replace(NODE, name=name), (4,), list(findings))


def test_a_refusal_names_node_check_and_reason_and_counts_the_rest() -> None:
    missing = Finding("data", PROBLEM, "/data/imagenet: no such folder")
    nodes = [
        looked(missing, name="a"),
        looked(missing, Finding("store", PROBLEM, "full"), name="b"),
        looked(),
    ]
    with pytest.raises(CapacityError) as caught:
        preflight.refuse(nodes)
    assert caught.value.exit_code == 4
    assert str(caught.value) == "preflight: a and 1 more: data: /data/imagenet: no such folder (and 1 more)"


def test_warnings_let_a_run_go_on_unless_no_node_answers() -> None:
    late = Finding("answers", WARNING, "not within 60 s")
    preflight.refuse([looked(late), looked()])
    with pytest.raises(AblateError, match="no node answered"):
        preflight.refuse([looked(late)])


def test_nodes_of_one_kind_are_one_class_though_their_systems_take_a_little() -> None:
    one, two = replace(NODE, memory=62.1 * 2**30), replace(NODE, memory=58.9 * 2**30, id="m", name="other")
    assert preflight.node_class(one) == preflight.node_class(two) == "8 CPU, 2 GPU A100, about 60 GiB"
    assert preflight.node_class(replace(one, custom=(("slot", 1.0),))) != preflight.node_class(one)


def test_a_store_is_seen_written_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("content")
    assert preflight._store_problem(str(tmp_path), "mark", "content") is None
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]


def test_another_folder_of_the_same_name_is_not_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_VISIBLE_SECONDS", 0.0)
    problem = preflight._store_problem(str(tmp_path), "mark", "content")
    assert problem
    assert "not the one that this command writes to" in problem


def test_a_store_that_takes_no_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("content")
    # of root too, whom no mode keeps out: a name that is too long once something is put after it
    name = "m" * 250
    (tmp_path / name).write_text("content")
    problem = preflight._store_problem(str(tmp_path), name, "content")
    assert problem
    assert problem.startswith("cannot be written: File name too long")


def test_data_that_a_node_lacks_is_told_as_the_reader_tells_it() -> None:
    data = DataConfig(kind="cifar10", root="/nowhere", image_size=32)
    problem = preflight._data_problem([(data, 64)])
    assert problem
    assert "/nowhere" in problem
    assert preflight._data_problem([(DataConfig(kind="digits", image_size=8), 64)]) is None


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head without CPUs, and one node with two and with other numerics, as of an image that was not built anew."""
    folder = tmp_path_factory.mktemp("head")
    with standing_head(folder, cpus=0, alone=False) as one:
        shutil.copytree(one.code, folder / "older")
        init = folder / "older" / "trainers" / "__init__.py"
        init.write_text(re.sub(r"NUMERICS_VERSION = \d+", "NUMERICS_VERSION = 0", init.read_text()))
        older = one.environment | {"PYTHONPATH": str(folder / "older")}
        with started("--address", one.address, "--num-cpus", "2", environment=older):
            one.await_nodes(2)
            yield one


def installed(head: Head, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The console script: its folder is not the code's, of which Ray would tell the nodes."""
    script = Path(sys.executable).parent / "ablate"
    return subprocess.run(
        [script, *arguments],
        env=head.environment,
        cwd=head.folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.cluster
def test_a_node_with_other_code_ends_a_run_with_4_before_anything_is_trained(
    head: Head, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    done = installed(
        head, "run", "table1", "--recipe", "digits", "--address", head.address, "--store", str(store)
    )
    assert done.returncode == 4, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("2 CPU"))
    assert re.search(r"1 +✓ +✗ +✓ +✓ +– +2", row), row
    assert len(done.stderr.strip().splitlines()) == 1
    assert "packages: `trainers` of numerics 0." in done.stderr
    assert not list((store / "trials").iterdir())
    assert not [path for path in store.iterdir() if path.name.startswith(".preflight")]


@pytest.mark.slow
@pytest.mark.cluster
def test_every_node_is_looked_at_and_the_verb_trains_nothing(head: Head, tmp_path: Path) -> None:
    store = tmp_path / "store"
    where = ("--address", head.address, "--store", str(store), "--json")
    # with the code's own folder, which Ray tells the nodes of: all have the same
    done = head.ablate("preflight", "table1", "--recipe", "digits", *where)
    assert done.returncode == 0, done.stderr
    told = sorted((node["workers"], node["findings"]) for node in json.loads(done.stdout))
    assert told == [([0], []), ([2], [])]
    assert not list((store / "trials").iterdir())
