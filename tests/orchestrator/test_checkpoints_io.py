"""`ablate evaluate` and `ablate export`: checkpoints of every origin, measured and passed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from orchestrator.checkpoints import export, find_checkpoint, measure
from orchestrator.errors import AblateError, SpecError
from orchestrator.leases import Leases
from orchestrator.plan import Job, jobs, make_plan
from orchestrator.store import Store
from orchestrator.work import evaluate_trial, train_trial
from tests.orchestrator.synthetic import bare_record
from trainers.layouts import load_checkpoint

OURS = (
    "data.image_size=8",
    "data.train_images=200",
    "data.validation_images=60",
    "backbone.width=4",
    "batch_size=64",
    "epochs=1",
    "schedule.warmup_epochs=0",
    "projector_dim=8",
    "channels_last=false",
    "evaluations.linear_probe={protocol: reference, solver: sgd, epochs: 2, select: best}",
)
RELEASED = (
    "backbone={kind: resnet18}",
    "data.image_size=16",
    "data.train_images=60",
    "data.validation_images=40",
    "batch_size=32",
    "evaluations.linear_probe={solver: sgd, epochs: 2}",
    "evaluations.subvector_probe={solver: sgd, epochs: 2}",
)
KINDS = ("linear_probe", "subvector_probe", "knn", "spectrum")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    store.prepare()
    return store


@pytest.fixture(scope="module")
def finished(store: Store) -> dict[str, Job]:
    """Trials trained and measured as a run does, by the kind of their heads."""
    plan = make_plan(["quickstart"], "digits", (3,), OURS)
    wanted = {job.config.head.kind: job for job in jobs(plan, store)}
    trained = {kind: wanted[kind] for kind in ("mlp", "subvector")}
    for job in trained.values():
        with Leases(store.root, "0" * 8).acquire(job.trial) as lease:
            train_trial(job, "digits", store, lease.fence, "inline", {}, report=lambda metrics: None)
            evaluate_trial(job, store, lease.fence, "inline", torch.device("cpu"))
    return trained


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model in each layout of the released code, for images of one channel."""
    torch.manual_seed(0)
    backbone = resnet18()
    backbone.conv1, backbone.fc = nn.Conv2d(1, 64, 7, 2, 3, bias=False), nn.Identity()
    projector = nn.Sequential(
        nn.Linear(512, 32, bias=False),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 8, bias=False),
        nn.BatchNorm1d(8),
    )
    parts = {"backbone": backbone, "projector": projector, "online_head": nn.Linear(512, 10)}
    model = {
        f"module.{name}.{key}": tensor
        for name, part in parts.items()
        for key, tensor in part.state_dict().items()
    }
    folder = tmp_path_factory.mktemp("released")
    contents: dict[str, Any] = {
        "training": {"epoch": 100, "model": model, "optimizer": {"state": {}, "param_groups": []}},
        "export": {"backbone": backbone.state_dict(), "head": projector.state_dict()},
        "spectrum": {"backbone": backbone.state_dict(), "projector": projector.state_dict()},
    }
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in contents}


def measured(path: Path | str, store: Store, **options: Any) -> dict[str, Any]:
    return measure(str(path), "digits", store, **({"sets": RELEASED, "device": "cpu"} | options))


# --- measuring --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "subvector"])
def test_a_trial_of_ours_is_measured_as_the_run_measured_it(
    store: Store, finished: dict[str, Job], kind: str
) -> None:
    job = finished[kind]
    report = measured(job.trial[:8], store, sets=OURS)
    assert (report["layout"], report["epoch"], report["seed"]) == ("model", 1, 3)
    assert report["head"] == job.config.head.model_dump(mode="json")
    assert report["evaluations"].keys() >= {protocol.kind for protocol in job.evaluations.values()}
    for key, protocol in job.evaluations.items():
        record = store.evaluation_record(key)
        assert record is not None
        assert report["evaluations"][protocol.kind]["metrics"] == record["metrics"]
        assert report["evaluations"][protocol.kind]["protocol"] == record["evaluation"]
    assert report["evaluations"]["linear_probe"]["metrics"]["best_epoch"] in (1, 2)
    assert ("subvector_probe" in report["evaluations"]) == (kind == "subvector")


def test_the_layouts_of_the_released_code_give_the_same_numbers(
    store: Store, released: dict[str, Path]
) -> None:
    reports = {name: measured(path, store, d0="1/8") for name, path in released.items()}
    for name, report in reports.items():
        assert report["layout"] == name
        assert report["head"] == {"kind": "mlp", "hidden_dim": 32, "out_dim": 8, "final_norm": True}
        assert tuple(report["evaluations"]) == KINDS
        assert report["evaluations"]["subvector_probe"]["protocol"]["d0"] == 64
        metrics = {kind: one["metrics"] for kind, one in report["evaluations"].items()}
        assert metrics == {kind: one["metrics"] for kind, one in reports["training"]["evaluations"].items()}
        assert metrics["spectrum"]["embedding/directions"] <= 8
    assert reports["training"]["epoch"] == 100


def test_another_head_looks_at_the_representation(store: Store, released: dict[str, Path]) -> None:
    direct = measured(released["export"], store, head="subvector", d0="128")
    assert direct["head"] == {"kind": "subvector", "d0": 128}
    assert direct["evaluations"]["subvector_probe"]["protocol"]["d0"] == 128
    whole = measured(released["export"], store, head="none", kinds="spectrum")
    assert list(whole["evaluations"]) == ["spectrum"]
    spectrum = whole["evaluations"]["spectrum"]["metrics"]
    assert spectrum["embedding/rankme"] == spectrum["representation/rankme"]
    assert measured(released["export"], store, head="mlp", kinds="knn")["head"]["kind"] == "mlp"


def test_numbers_and_arrays_are_written_where_asked(
    tmp_path: Path, store: Store, released: dict[str, Path]
) -> None:
    out = tmp_path / "new" / "folder"
    report = measured(released["spectrum"], store, kinds="knn,spectrum", out=out)
    assert json.loads((out / "metrics.json").read_text()) == report
    with np.load(out / "knn" / "arrays.npz", allow_pickle=False) as arrays:
        correct = arrays["correct"]
    assert 100 * correct.mean() == pytest.approx(report["evaluations"]["knn"]["metrics"]["top1"])
    with np.load(out / "spectrum" / "arrays.npz", allow_pickle=False) as arrays:
        assert arrays["embedding_singular_values"].shape == (8,)


# --- passing on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "subvector"])
def test_an_exported_backbone_is_the_trials_and_measures_alike(
    tmp_path: Path, store: Store, finished: dict[str, Job], kind: str
) -> None:
    key = finished[kind].trial
    told = export(key[:6], "safetensors", tmp_path / "b.safetensors", store)
    assert (told["network"], told["format"]) == (None, "safetensors")
    source = load_checkpoint(find_checkpoint(key, store))
    again = load_checkpoint(tmp_path / "b.safetensors")
    assert again.trial == source.trial == finished[kind].config
    assert again.backbone.keys() == source.backbone.keys()
    assert told["tensors"] == len(again.backbone)
    for name, tensor in source.backbone.items():
        assert torch.equal(again.backbone[name], tensor)
    reports = [measured(path, store, sets=OURS) for path in (key, tmp_path / "b.safetensors")]
    for one in ("linear_probe", "knn"):
        first, second = (report["evaluations"][one]["metrics"] for report in reports)
        assert first == second


def test_a_released_backbone_becomes_torchvisions(tmp_path: Path, store: Store) -> None:
    network = resnet18()
    parts = {f"module.backbone.{k}": v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    torch.save({"model": parts, "epoch": 3}, tmp_path / "checkpoint.pth")
    told = export(str(tmp_path / "checkpoint.pth"), "torchvision", tmp_path / "resnet18.pth", store)
    assert told["network"] == "resnet18"
    fresh = resnet18()
    result = fresh.load_state_dict(torch.load(tmp_path / "resnet18.pth", weights_only=True), strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    assert torch.equal(fresh.layer4[1].conv2.weight, network.layer4[1].conv2.weight)


# --- refusals ---------------------------------------------------------------------------------------


def told(caught: pytest.ExceptionInfo[AblateError]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "linear"}, "--head linear: {path} has mlp; takes that, none or subvector"),
        ({"head": "subvector"}, "--head subvector: lacks its d0, takes --d0 with it, such as --d0 360/2048"),
        ({"head": "subvector", "d0": "513"}, "--d0: got 513, takes at most the representation's dimension D = 512"),
        ({"d0": "513"}, "evaluations.subvector_probe.d0: got 513, takes at most D = 512"),
        ({"d0": "many"}, '--d0: d0: got "many", expected an integer, or a fraction of D'),
        ({"d0": "1.0"}, "--d0: d0: got 1.0, expected an integer, or a fraction of D"),
        ({"kinds": "subvector_probe"}, "--evaluations subvector_probe: has no subvector, takes --d0 with it"),
        ({"kinds": "knn,spectra"}, "--evaluations: got \"spectra\"; did you mean 'spectrum'?; takes linear_probe,"),
        ({"sets": ()}, "{path} (export layout): its backbone has 'layer1.0.conv1.weight' (and"),
        ({"sets": (*RELEASED, "data.train_images=9999")}, "recipe digits: data.train_images: got 9999, takes at"),
        ({"sets": (*RELEASED, "evaluations.knn.k=100"), "kinds": "knn"}, "knn.k: got 100, takes at most the 60"),
        ({"out": Path(__file__)}, f"--out {__file__}: cannot be written: File exists"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_told_in_one_line(
    store: Store, released: dict[str, Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        measured(released["export"], store, **options)
    assert told(caught).startswith(message.format(path=released["export"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(store: Store, released: dict[str, Path]) -> None:
    with pytest.raises(SpecError, match=r"^--device cuda: there is none here; takes auto or cpu$"):
        measured(released["export"], store, device="cuda")


def test_what_else_can_be_measured_is_where_one_evaluation_cannot(
    store: Store, released: dict[str, Path]
) -> None:
    sets = (*RELEASED, "evaluations.knn.k=100")
    report = measured(released["export"], store, sets=sets, kinds="knn,spectrum")
    assert report["failed"] == {"knn": "knn.k: got 100, takes at most the 60 training images"}
    assert set(report["evaluations"]) == {"spectrum"}


def test_a_probe_that_diverges_is_told(store: Store, released: dict[str, Path]) -> None:
    sets = (*RELEASED, "evaluations.linear_probe.lr=1e38", "evaluations.linear_probe.weight_decay=1.0")
    with pytest.raises(
        AblateError, match=r"^linear_probe: the classifier is not finite; lower its lr"
    ) as caught:
        measured(released["export"], store, sets=sets, kinds="linear_probe")
    assert caught.value.exit_code == 1


def test_a_recipe_with_another_backbone_than_the_trials_is_told(
    store: Store, finished: dict[str, Job]
) -> None:
    key = finished["mlp"].trial
    with pytest.raises(SpecError) as caught:
        measured(key, store, sets=(*OURS, "backbone.width=8"))
    assert told(caught).endswith(
        "model.safetensors: backbone.width: its trial has 4, recipe digits 8; takes a recipe with the trial's backbone"
    )
    with pytest.raises(
        SpecError, match=r'backbone\.kind: its trial has "thin_resnet", recipe digits "resnet18"'
    ):
        measured(key, store)


def test_bad_files_are_told_by_both_verbs(tmp_path: Path, store: Store) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    torch.save({"model": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "bomb.pth").read_bytes()[:-30])
    for name in ("bomb.pth", "cut.pth", "nowhere.pth", "a" * 300):
        for use in (measured, lambda path, store: export(path, "safetensors", tmp_path / "out", store)):
            with pytest.raises(SpecError) as caught:
                use(str(tmp_path / name), store)
            assert told(caught).startswith(str(tmp_path / name))
    assert not (tmp_path / "exploded").exists()
    assert not (tmp_path / "out").exists()


def test_export_refuses_what_the_format_or_the_place_cannot_take(
    tmp_path: Path, store: Store, finished: dict[str, Job]
) -> None:
    key = finished["mlp"].trial
    with pytest.raises(SpecError) as caught:
        export(key, "torchvision", tmp_path / "b.pth", store)
    assert "its backbone has the names of none of torchvision's resnet18, " in told(caught)
    for place, reason in (
        (tmp_path / "nowhere" / "b", "cannot be written: No such file or directory"),
        (tmp_path, "is a folder, takes a file to write"),
        (Path(), "is a folder, takes a file to write"),
    ):
        with pytest.raises(SpecError) as caught:
            export(key, "safetensors", place, store)
        assert told(caught) == f"--out {place}: {reason}"
    assert list(tmp_path.iterdir()) == []


# --- keys -------------------------------------------------------------------------------------------


def test_a_key_may_be_cut_to_six_digits_where_that_is_one_trial(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    keys = ["0123456789abcdef0123", "0123456fffffffffffff", "ffffffffffffffffffff", "eeeeeeeeeeeeeeeeeeee"]
    for key, kind in zip(keys, ("trial", "trial", "toy", None), strict=True):
        store.begin_trial(key, {})
        if kind:
            store.commit_trial(key, bare_record(key, kind))
    assert (
        find_checkpoint("01234567", store) == tmp_path / "trials" / keys[0] / "checkpoints/model.safetensors"
    )
    for name, message in (
        ("012345", rf"^012345: got the beginning of 2 keys \({keys[0]}, {keys[1]}, …\), takes one's$"),
        ("abcdef", r"^abcdef: no such file, and no trial of the store .* has a key that begins so$"),
        ("ffffff", r"^trial f{20}: it is of toy networks, which leave no checkpoint$"),
        ("eeeeee", r"^trial e{20}: not finished; `ablate run` takes it up again$"),
    ):
        with pytest.raises(SpecError, match=message):
            find_checkpoint(name, store)


@pytest.mark.parametrize("name", ["01234", "0123456.pth", "./0123456", "012345G"])
def test_what_is_no_key_is_a_file(tmp_path: Path, name: str) -> None:
    assert find_checkpoint(name, Store(tmp_path)) == Path(name)


def test_a_file_named_like_a_key_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("abcdef").touch()
    assert find_checkpoint("abcdef", Store(tmp_path)) == Path("abcdef")
