"""Two hundred inputs that can't be used: each ends with exit code 2 and a short message, before Ray is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import cli

STUDY: dict[str, Any] = {
    "name": "mine",
    "title": "Mine",
    "source": "Section 1",
    "recipe": "digits",
    "cells": [{"name": "simclr", "label": "SimCLR", "set": {"head": {"kind": "mlp"}}}],
    "tables": [
        {
            "name": "t",
            "title": "T",
            "source": "Table 1",
            "columns": ["Method"],
            "rows": [{"cell": "simclr", "columns": ["SimCLR"]}],
        }
    ],
}
RECIPE: dict[str, Any] = {
    "name": "mine",
    "title": "Mine",
    "data": {"kind": "digits", "image_size": 16},
    "backbone": {"kind": "thin_resnet", "width": 16, "blocks": [1, 1, 1], "stem_stride": 2},
    "augment": {"mode": "batched"},
    "optimizer": {"kind": "lars", "lr": 4.8},
    "schedule": {"warmup_epochs": 1},
    "epochs": 2,
    "batch_size": 128,
}
SECRET = "hunter2"


def without(content: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != field}


def study(**changes: Any) -> str:
    return yaml.safe_dump(STUDY | changes, allow_unicode=True)


def recipe(**changes: Any) -> str:
    return yaml.safe_dump(RECIPE | changes, allow_unicode=True)


def cell(**changes: Any) -> str:
    return study(cells=[STUDY["cells"][0] | changes])


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)
TEXT = study()

HOSTILE_YAML: dict[str, str | bytes] = {
    "empty": "",
    "only a comment": "# nothing\n",
    "a list": "- a\n- b\n",
    "a scalar": "word",
    "null": "~",
    "two documents": TEXT + "---\n" + TEXT,
    "billion laughs": LAUGHS,
    "an alias": "a: &x 1\nb: *x\n",
    "an alias to itself": "a: &x [*x]\n",
    "a merge key": "base: &b {name: x}\nstudy: {<<: *b}\n",
    "a tag that calls": "!!python/object/apply:os.system ['true']\n",
    "a tag that imports": "name: !!python/name:os.system ''\n",
    "a tag of its own": "name: !mine x\n",
    "binary that is no base64": "name: !!binary '*'\n",
    "a timestamp by tag": "name: !!timestamp 2020-01-01\n",
    "a bad timestamp": "name: !!timestamp yesterday\n",
    "a set by tag": "name: !!set {a, b}\n",
    "an int tag on a word": "name: !!int word\n",
    "a float tag on a word": "name: !!float word\n",
    "a bool tag on a word": "name: !!bool word\n",
    "a key twice": "name: mine\nname: mine\n",
    "a key that is a number": "1: 2\n",
    "a key that is a list": "? [a, b]\n: 1\n",
    "a key that is a mapping": "? {a: b}\n: 1\n",
    "a key that is null": "~: 1\n",
    "deep lists": "name: " + "[" * 20_000 + "]" * 20_000,
    "deep mappings": "name: " + "{a: " * 5_000 + "1" + "}" * 5_000,
    "deep blocks": "".join(" " * depth + "a:\n" for depth in range(900)),
    "an open bracket": "name: [",
    "an open quote": 'name: "mine',
    "a tab": "name:\n\t- x\n",
    "no indentation": "cells:\n- name: a\nlabel: b\n c: d\n",
    "a bad escape": 'name: "\\q"\n',
    "NUL": "name: a\0b\n",
    "NUL by escape": 'name: "a\\0b"\n',
    "an escape code": "name: \x1b[31mred\n",
    "an escape code by escape": 'name: "\\e[31mred"\n',
    "bidi override in a name": study(name="mi\u202ene"),
    "bidi override in a field": "na\u202eme: mine\n",
    "a lone surrogate": b"name: \xed\xa0\x80\n",
    "a lone surrogate by escape": 'name: "\\ud800"\ntitle: "\\udfff"\n',
    "not UTF-8": b"name: \xff\xfe\n",
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-32": TEXT.encode("utf-32"),
    "BOM alone": b"\xef\xbb\xbf",
    "Latin-1": "name: étude\n".encode("latin-1"),
    "bytes at random": bytes(range(256)),
    "zeros": b"\0" * 4096,
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "over a megabyte": "# " + "x" * 1_000_001,
    "a string of nearly a megabyte": "name: " + "x" * 990_000,
    "a key of nearly a megabyte": "x" * 990_000 + ": 1\n",
    "a key of nearly a megabyte, quoted": '"' + "x" * 990_000 + '": 1\n',
    "ten thousand unknown fields": "".join(f"f{number}: 1\n" for number in range(10_000)),
    "a number of 5,000 digits": "name: mine\nseeds: [" + "9" * 5_000 + "]\n",
    "a directive": "%YAML 9.9\n---\nname: mine\n",
    "a tag directive": "%TAG ! tag:evil,2020:\n---\nname: !x mine\n",
    "HTML": "<!DOCTYPE html><html></html>",
    "JSON with a comma too many": '{"name": "mine",, }',
    "Windows line ends and a tab": "name:\r\n\tmine\r\n",
}

STUDIES: dict[str, str] = {
    "no name": yaml.safe_dump(without(STUDY, "name")),
    "no title": yaml.safe_dump(without(STUDY, "title")),
    "no source": yaml.safe_dump(without(STUDY, "source")),
    "no cells": yaml.safe_dump(without(STUDY, "cells")),
    "empty cells": study(cells=[]),
    "another's name": study(name="other"),
    "a name that climbs": study(name="../mine"),
    "an absolute name": study(name="/etc/passwd"),
    "an empty name": study(name=""),
    "a name of dots": study(name=".."),
    "a name with a line break": study(name="mine\nyours"),
    "a name of a number": study(name=3),
    "a title too long": study(title="x" * 301),
    "an empty title": study(title=""),
    "a title that is a list": study(title=["a"]),
    "a misspelt field": study(titel="x"),
    "an unknown recipe": study(recipe="digitz"),
    "a recipe that climbs": study(recipe="../../etc/passwd"),
    "seeds of a word": study(seeds="0"),
    "no seeds": study(seeds=[]),
    "a negative seed": study(seeds=[-1]),
    "a fraction of a seed": study(seeds=[0.5]),
    "a boolean seed": study(seeds=[True]),
    "a seed twice": study(seeds=[1, 1]),
    "a seed too large": study(seeds=[2**31]),
    "too many seeds": study(seeds=list(range(1001))),
    "include of itself": study(include=["mine"]),
    "include of nothing known": study(include=["nowhere"]),
    "include twice": study(include=["table1", "table1"]),
    "include that climbs": study(include=["../mine"]),
    "an unknown evaluation": study(evaluations=["linear"]),
    "evaluations of a word": study(evaluations="linear_probe"),
    "a cell twice": study(cells=STUDY["cells"] * 2),
    "a cell that is a word": study(cells=["simclr"]),
    "a cell without a label": study(cells=[{"name": "simclr"}]),
    "a cell with an empty label": cell(label=""),
    "a cell with a long label": cell(label="x" * 201),
    "a cell whose name has a slash": cell(name="a/b"),
    "a cell's unknown field": cell(sets={}),
    "a cell's unknown override": cell(set={"hed": 1}),
    "a cell's override of a list": cell(set=[1]),
    "a cell's override with an empty path": cell(set={"": 1}),
    "a cell's override with dots alone": cell(set={"..": 1}),
    "a cell's override through a number": cell(set={"epochs.x": 1}),
    "a cell's unknown head": cell(set={"head": {"kind": "mpl"}}),
    "a cell's head without a kind": cell(set={"head": {"dim": 3}}),
    "a cell's d0 too large": cell(set={"head": {"kind": "subvector", "d0": 10**6}}),
    "a cell's d0 of zero": cell(set={"head": {"kind": "subvector", "d0": 0}}),
    "a cell's d0 over zero": cell(set={"head": {"kind": "subvector", "d0": "1/0"}}),
    "a cell's name of the recipe": cell(set={"name": "../x"}),
    "a cell's switch that is a list": cell(set={"faithfulness": ["negatives"]}),
    "a cell's switch of a number": cell(set={"faithfulness": 3}),
    "a table of an unknown cell": study(
        tables=[STUDY["tables"][0] | {"rows": [{"cell": "x", "columns": ["x"]}]}]
    ),
    "a table of an unknown metric": study(tables=[STUDY["tables"][0] | {"metric": "knn/top1"}]),
    "a table twice": study(tables=STUDY["tables"] * 2),
    "a table whose name climbs": study(tables=[STUDY["tables"][0] | {"name": "../../t"}]),
    "tables of a mapping": study(tables={"a": 1}),
    "a figure of a word": study(figures=["f"]),
    "a claim of a word": study(claims=["c"]),
    "a claim of an unknown test": study(claims=[{"name": "c", "test": "magic"}]),
    "toy of a word": study(toy="yes"),
    "toy with too few networks": study(toy={"networks": 1}),
    "a summary too long": study(summary="x" * 2001),
    "statistics of a list": study(statistics=[]),
}

RECIPES: dict[str, str] = {
    **{
        f"no {field}": yaml.safe_dump(without(RECIPE, field))
        for field in RECIPE
        if field not in ("augment", "schedule")
    },
    "another's name": recipe(name="other"),
    "epochs of zero": recipe(epochs=0),
    "epochs of a fraction": recipe(epochs=1.5),
    "epochs of a word": recipe(epochs="ten"),
    "epochs of a number in quotes": recipe(epochs="10"),
    "epochs of true": recipe(epochs=True),
    "epochs of null": recipe(epochs=None),
    "a batch of one": recipe(batch_size=1),
    "a batch past all": recipe(batch_size=2**21),
    "a batch that does not divide": recipe(resources={"workers": 3}),
    "no workers": recipe(resources={"workers": 0}),
    "a share of a GPU for two": recipe(resources={"workers": 2, "gpus_per_worker": 0.5}),
    "negative GPUs": recipe(resources={"gpus_per_worker": -1}),
    "infinite lr": recipe(optimizer={"kind": "lars", "lr": float("inf")}),
    "lr not a number": recipe(optimizer={"kind": "lars", "lr": float("nan")}),
    "unknown optimizer": recipe(optimizer={"kind": "adam", "lr": 1.0}),
    "optimizer of a word": recipe(optimizer="lars"),
    "unknown data": recipe(data={"kind": "mnist"}),
    "data of a word": recipe(data="digits"),
    "data.root of a number": recipe(data={"kind": "cifar10", "root": 3}),
    "image of zero": recipe(data={"kind": "digits", "image_size": 0}),
    "unknown backbone": recipe(backbone={"kind": "vgg"}),
    "blocks of none": recipe(backbone={"kind": "thin_resnet", "width": 16, "blocks": []}),
    "unknown precision": recipe(precision="fp8"),
    "an unknown switch": recipe(faithfulness={"nothing": "corrected"}),
    "an unknown version": recipe(faithfulness={"negatives": "mine"}),
    "switches of a list": recipe(faithfulness=["negatives"]),
    "toy of an unknown field": recipe(toy={"x": 1}),
    "limits of a word": recipe(limits="none"),
    "negative limits": recipe(limits={"state_seconds": -1}),
    "an unknown limit": recipe(limits={"patience": 1}),
    "cost of nothing": recipe(cost={"seconds": 0, "hardware": "x"}),
    "warm-up past the end": recipe(schedule={"warmup_epochs": 99}),
    "gradient_cache of zero": recipe(gradient_cache=0),
    "lr_batch of zero": recipe(lr_batch=0),
    "negative spread": recipe(seed_sd=-1),
    "crop upside down": recipe(augment={"crop_scale": [0.9, 0.1]}),
    "evaluations of a list": recipe(evaluations=[]),
    "a probe of another kind": recipe(evaluations={"linear_probe": {"kind": "knn"}}),
}

SETS = [
    "epochs", "=", "=3", "epochs=", "epochs=[", "epochs={", "epochs=*x", "epochs=&x 1 *x", "epochs=!!python/none x",
    ".=1", "a..b=1", ".epochs=1", "epochs.=1", "epochs.x=1", "epoch=1", "epochs=1e999", "optimizer.lr=-.inf",
    "epochs=0x10", "epochs=1_000", "epochs=" + "9" * 5000, "epochs=" + "[" * 5000, "x" * 100_000 + "=1",
    "epochs=" + "x" * 100_000, "name=../../x", "name=a/b", "title=''", "data.root=[1]", "\x1b[31m=1", "\u202e=1",
    "epochs=\ud800", "\ud800=1", "limits=3", "limits.silent_seconds=0", "resources.workers=1e3",
    "evaluations.knn.k=0", "toy=1", "toy.x=1", "loss.temperature=0", "head=none", "head={kind: none, dim: 3}",
    "data={kind: folder}", "cost=1", "epochs=2 # two\n--- 3", "epochs=\t", "__class__=1", "model_config={}",
]  # fmt: skip

FLAGS: dict[str, list[str]] = {
    "no arguments of plan": ["plan"],
    "an unknown verb": ["plann"],
    "an unknown option": ["plan", "quickstart", "--sedes", "1"],
    "an empty study": ["plan", ""],
    "a study of a dot": ["plan", "."],
    "a study of a slash": ["plan", "/"],
    "a study of a long name": ["plan", "x" * 100_000],
    "a study of a long path": ["plan", "/" + "x" * 100_000],
    "a study of a lone surrogate": ["plan", "a\udc80b"],
    "a path of a lone surrogate": ["plan", "./a\udc80b.yaml"],
    "a study with line breaks": ["plan", "a\nb\nc\nd"],
    "a path with line breaks": ["plan", "./a\nb\nc\nd.yaml"],
    "seeds with a space for a comma": ["plan", "quickstart", "--seeds", "0 1"],
    "seeds with a comma too many": ["plan", "quickstart", "--seeds", "0,1,"],
    "seeds of a falling range": ["plan", "quickstart", "--seeds", "4-0"],
    "seeds of 5,000 digits": ["plan", "quickstart", "--seeds", "9" * 5_000],
    "seeds without end": ["plan", "quickstart", "--seeds", ",".join(map(str, range(20_000))) + ",x"],
    "too many seeds": ["plan", "quickstart", "--seeds", ",".join(map(str, range(1_001)))],
    "an unknown recipe": ["plan", "quickstart", "--recipe", "digit"],
    "a recipe that is a device": ["plan", "quickstart", "--recipe", "/dev/zero"],
    "a study that is a device": ["plan", "/dev/null"],
    "a process's memory": ["plan", "/proc/self/mem"],
    "zero at once": ["run", "quickstart", "--max-concurrent", "0"],
    "a word at once": ["run", "quickstart", "--max-concurrent", "two"],
    "an unknown executor": ["run", "quickstart", "--executor", "x"],
    "an unknown source": ["report", "quickstart", "--source", "x"],
    "a port of zero": ["ui", "--port", "0"],
    "a port past the last": ["ui", "--port", "65536"],
    "an unknown schema": ["schema", "plan"],
    "show of nothing known": ["show", "nowhere"],
    "ledger of nothing known": ["ledger", "--recipe", "nowhere"],
    "tracking at an unknown scheme": ["run", "quickstart", "--tracking-uri", f"gopher://me:{SECRET}@x/"],
    "tracking at a port of words": [
        "sync",
        "quickstart",
        "--tracking-uri",
        f"http://me:{SECRET}@127.0.0.1:x",
    ],
    "tracking at nothing": ["sync", "quickstart", "--tracking-uri", ""],
    "data that are not there": ["run", "quickstart", "--recipe", "cifar10", "--set", "data.root=/nowhere"],
    "data that are a file": ["run", "quickstart", "--recipe", "cifar10", "--set", f"data.root={__file__}"],
    "data with NUL": ["run", "quickstart", "--recipe", "cifar10", "--set", 'data.root="a\\0b"'],
    "data of a long path": ["run", "quickstart", "--recipe", "cifar10", "--set", "data.root=/" + "x" * 5_000],
    "images of ImageNet nowhere": [
        "run",
        "quickstart",
        "--recipe",
        "imagenet",
        "--set",
        "data.root=/nowhere",
    ],
    "a checkpoint nowhere": ["evaluate", "./no.pth", "--recipe", "digits"],
    "a checkpoint that is no key": ["evaluate", "zz", "--recipe", "digits"],
    "a checkpoint of a long name": ["evaluate", "x" * 5_000, "--recipe", "digits"],
    "a checkpoint that climbs": ["export", "../../etc", "--format", "safetensors", "--out", "x"],
    "a checkpoint of an unknown format": ["export", "abcdef", "--format", "onnx", "--out", "x"],
}


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_empty(path: Path) -> None:
    path.touch()


def make_noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def make_huge_header(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")


def make_pickle(path: Path) -> None:
    path.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")


def make_zip(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04" + b"\0" * 64)


NOT_A_FILE: list[Callable[[Path], None]] = [make_fifo, make_loop, make_folder, make_dangling]
BAD_FILE = [*NOT_A_FILE, make_empty, make_noise, make_huge_header, make_pickle, make_zip]


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the command says on refusing; Ray can't be imported meanwhile."""
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(sys, "argv", ["ablate", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 2, said[-2000:]
    assert said.strip()
    assert len(said) <= 500, f"{len(said)} characters: {said[:600]}"
    assert said.count("\n") <= 2
    assert "Traceback" not in said
    assert SECRET not in said
    assert all(character.isprintable() or character == "\n" for character in said), repr(said)
    return said


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ABLATE_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("what", ["study", "recipe"])
@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml_is_refused(
    name: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = HOSTILE_YAML[name]
    (tmp_path / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = ["./mine.yaml"] if what == "study" else ["table1", "--recipe", "./mine.yaml"]
    assert "mine.yaml" in refused(capsys, monkeypatch, "plan", *arguments)


@pytest.mark.parametrize("name", STUDIES)
def test_a_bad_study_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(STUDIES[name])
    refused(capsys, monkeypatch, "plan", "./mine.yaml")


@pytest.mark.parametrize("name", RECIPES)
def test_a_bad_recipe_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPES[name])
    assert "mine.yaml" in refused(capsys, monkeypatch, "plan", "table1", "--recipe", "./mine.yaml")


@pytest.mark.parametrize("assignment", SETS, ids=range(len(SETS)))
def test_a_bad_override_is_refused(
    assignment: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--set" in refused(capsys, monkeypatch, "plan", "table1", "--set", assignment)


@pytest.mark.parametrize("name", FLAGS)
def test_bad_flags_are_refused(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(capsys, monkeypatch, *FLAGS[name])


@pytest.mark.parametrize("make", NOT_A_FILE)
@pytest.mark.parametrize("what", ["study", "recipe"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    what: str,
    make: Callable[[Path], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path / "mine.yaml")
    refused(
        capsys,
        monkeypatch,
        "plan",
        *(["./mine.yaml"] if what == "study" else ["table1", "--recipe", "./mine.yaml"]),
    )


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("make", BAD_FILE)
def test_a_checkpoint_that_holds_no_weights_is_refused(
    make: Callable[[Path], None],
    suffix: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path / f"mine.{suffix}")
    refused(capsys, monkeypatch, "evaluate", f"./mine.{suffix}", "--recipe", "digits", "--head", "none")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("verb", ["run", "status", "report", "sync", "ui"])
@pytest.mark.parametrize("make", [make_fifo, make_loop, make_empty])
def test_a_store_that_is_no_folder_is_refused(
    make: Callable[[Path], None],
    verb: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make(tmp_path / "store")
    studies = [] if verb in ("status", "ui") else ["table1"]
    refused(capsys, monkeypatch, verb, *studies, "--store", "store")


def test_the_process_itself_says_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "plan", "table1", "--set", "epochs=0"],
        cwd=Path(cli.__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "epochs" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_studies_and_recipes_that_the_cases_damage_are_good_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise every case above might be refused for one and the same fault."""
    (tmp_path / "mine.yaml").write_text(study())
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "mine.yaml").write_text(recipe())
    monkeypatch.setattr(sys, "argv", ["ablate", "plan", "./mine.yaml", "--recipe", "./recipes/mine.yaml"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0, capsys.readouterr().err
