"""Checkpoint files of every layout, good and bad. The oracle of a model's tensors is torch's own state dict."""

import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_trial
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from trainers.config import LinearHead, MlpHead, NoHead, TrialConfig
from trainers.context import TrialContext
from trainers.contrastive import load_model, train
from trainers.data.datasets import load_dataset
from trainers.layouts import Checkpoint, CheckpointError, load_checkpoint
from trainers.portable import build_model, save_backbone, torchvision_name

State = dict[str, Tensor]
CPU = torch.device("cpu")


def released_backbone(network: Callable[..., nn.Module] = resnet18) -> nn.Module:
    """As the released code builds it: torchvision's, without its classifier."""
    torch.manual_seed(0)
    backbone = network(zero_init_residual=True)
    backbone.fc = nn.Identity()
    with torch.no_grad():  # statistics that a fresh network would not have
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.weight.uniform_(0.5, 1)
    return backbone


def two_layers(dim: int = 512) -> nn.Module:
    return nn.Sequential(
        nn.Linear(dim, 24, bias=False),
        nn.BatchNorm1d(24),
        nn.ReLU(inplace=True),
        nn.Linear(24, 10, bias=False),
        nn.BatchNorm1d(10),
    )


PROJECTORS: dict[str, Callable[[], nn.Module]] = {
    "mlp": two_layers,
    "linear": lambda: nn.Linear(512, 10, bias=False),
    "linear in a Sequential": lambda: nn.Sequential(nn.Linear(512, 10, bias=False)),
    "none": nn.Identity,
}


def training_layout(backbone: nn.Module, projector: nn.Module) -> dict[str, Any]:
    """With what DistributedDataParallel and the optimizer put there."""
    model = nn.Module()
    model.backbone, model.projector = backbone, projector
    model.online_head = nn.Linear(512, 10)
    wrapped = nn.Module()
    wrapped.module = model
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in wrapped.parameters()).backward()
    optimizer.step()
    return {"epoch": 7, "model": wrapped.state_dict(), "optimizer": optimizer.state_dict()}


def export_layout(backbone: nn.Module, projector: nn.Module) -> dict[str, Any]:
    return {"backbone": backbone.state_dict(), "head": projector.state_dict()}


def spectrum_layout(backbone: nn.Module, projector: nn.Module) -> dict[str, Any]:
    return {"backbone": backbone.state_dict(), "projector": projector.state_dict()}


LAYOUTS = {"training": training_layout, "export": export_layout, "spectrum": spectrum_layout}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def resnet_trial(**changes: Any) -> TrialConfig:
    return tiny_trial(backbone={"kind": "resnet18"}, **changes)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- the released code's files ------------------------------------------------------------------------


@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_released_checkpoint_computes_what_its_modules_compute(
    tmp_path: Path, layout: str, projector: str
) -> None:
    backbone, head = released_backbone(), PROJECTORS[projector]()
    loaded = load_checkpoint(saved(tmp_path / "file.pth", LAYOUTS[layout](backbone, head)))
    assert loaded.layout == layout
    assert loaded.epoch == (7 if layout == "training" else None)
    assert loaded.trial is None
    kind = projector.split()[0]
    assert (
        loaded.head_config
        == {
            "mlp": MlpHead(kind="mlp", hidden_dim=24, out_dim=10),
            "linear": LinearHead(kind="linear", out_dim=10),
            "none": NoHead(kind="none"),
        }[kind]
    )
    trial = resnet_trial(head=loaded.head_config.model_dump())
    ours, our_head = build_model(loaded, trial, 3, CPU)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        r = backbone.eval()(images)
        assert torch.equal(ours(images), r)
        assert torch.equal(our_head(r), head.eval()(r))


def test_the_online_classifier_is_kept(tmp_path: Path) -> None:
    content = training_layout(released_backbone(), nn.Identity())
    loaded = load_checkpoint(saved(tmp_path / "file.pth", content))
    assert loaded.classifier is not None
    assert torch.equal(loaded.classifier["weight"], content["model"]["module.online_head.weight"])
    assert torch.equal(loaded.classifier["bias"], content["model"]["module.online_head.bias"])


def test_a_head_that_is_a_classifier_is_no_projector(tmp_path: Path) -> None:
    loaded = load_checkpoint(
        saved(tmp_path / "file.pth", export_layout(released_backbone(), nn.Linear(512, 10)))
    )
    assert loaded.head_config == NoHead(kind="none")
    assert loaded.classifier is not None
    assert loaded.classifier["weight"].shape == (10, 512)


def test_names_under_module_are_those_of_one_process(tmp_path: Path) -> None:
    backbone, head = released_backbone(), two_layers()
    wrapped = {
        name: {f"module.{key}": tensor for key, tensor in state.items()}
        for name, state in spectrum_layout(backbone, head).items()
    }
    loaded = load_checkpoint(saved(tmp_path / "file.pth", wrapped))
    assert same(loaded.backbone, backbone.state_dict())


def exclude_bias_and_norm(parameter: Tensor) -> bool:
    return parameter.ndim == 1


def test_functions_of_the_training_script_are_read_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released LARS keeps filters among its param groups, which torch alone would refuse."""
    content = training_layout(released_backbone(), nn.Identity())
    monkeypatch.setattr(exclude_bias_and_norm, "__module__", "__main__")
    monkeypatch.setitem(__import__("__main__").__dict__, "exclude_bias_and_norm", exclude_bias_and_norm)
    content["optimizer"]["param_groups"][0]["weight_decay_filter"] = exclude_bias_and_norm
    path = saved(tmp_path / "file.pth", content)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert load_checkpoint(path).epoch == 7


@pytest.mark.parametrize("with_classifier", [True, False])
def test_a_torchvision_state_dict_is_a_backbone(tmp_path: Path, with_classifier: bool) -> None:
    network = resnet18()
    state = network.state_dict()
    if not with_classifier:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    loaded = load_checkpoint(saved(tmp_path / "file.pth", state))
    network.fc = nn.Identity()
    assert loaded.layout == "backbone"
    assert loaded.head_config == NoHead(kind="none")
    assert same(loaded.backbone, network.state_dict())


def test_files_of_an_old_torch_are_read(tmp_path: Path) -> None:
    content = export_layout(released_backbone(), two_layers())
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=False)
    assert same(load_checkpoint(tmp_path / "file.pth").backbone, dict(content["backbone"]))


# --- our own files --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["mlp", "orthogonal", "low_rank", "subvector", "none"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrialConfig, Path]:
    head: dict[str, Any] = {"kind": request.param}
    if request.param == "mlp":
        head |= {"hidden_dim": 24, "out_dim": 10}
    if request.param in ("low_rank", "subvector"):
        head["d0"] = 6
    config = tiny_trial(head=head, epochs=1, schedule={"warmup_epochs": 0})
    directory = tmp_path_factory.mktemp(request.param)
    train(config, TrialContext(directory))
    return config, directory / "checkpoints"


@pytest.mark.parametrize("name", ["model", "state"])
def test_our_own_files_are_whole_models(trained: tuple[TrialConfig, Path], name: str) -> None:
    config, folder = trained
    (path,) = folder.glob(f"{name}*.safetensors")
    loaded = load_checkpoint(path)
    assert (loaded.layout, loaded.epoch, loaded.trial) == (name, 1, config)
    assert loaded.head_config == config.head
    dataset = load_dataset(config.data)
    expected = load_model(folder / "model.safetensors", config, dataset, TrialContext(folder))
    backbone, head = build_model(loaded, config, dataset.channels, CPU)
    assert same(backbone.state_dict(), expected.backbone.state_dict())
    assert same(head.state_dict(), expected.head.state_dict())
    assert loaded.classifier is not None
    assert same(loaded.classifier, expected.online_probe.state_dict())
    assert not backbone.training
    assert not head.training


# --- writing ----------------------------------------------------------------------------------------


def exported(tmp_path: Path, source: Checkpoint, file_format: Any) -> tuple[Path, Checkpoint]:
    path = tmp_path / f"backbone.{file_format}"
    save_backbone(source, path, file_format)
    assert sorted(tmp_path.glob(".*")) == []
    return path, load_checkpoint(path)


@pytest.mark.parametrize("network", [resnet18, resnet50])
def test_torchvision_takes_a_written_backbone_whole(
    tmp_path: Path, network: Callable[..., nn.Module]
) -> None:
    backbone = released_backbone(network)
    content = training_layout(backbone, nn.Identity())
    source = load_checkpoint(saved(tmp_path / "file.pth", content))
    path, again = exported(tmp_path, source, "torchvision")
    assert torchvision_name(source) == network.__name__
    fresh = network()
    result = fresh.load_state_dict(torch.load(path, weights_only=True), strict=False)
    assert result.missing_keys == ["fc.weight", "fc.bias"]
    assert result.unexpected_keys == []
    fresh.fc = nn.Identity()
    assert same(fresh.state_dict(), backbone.state_dict())
    assert same(again.backbone, backbone.state_dict())


def test_safetensors_hold_any_backbone_and_its_trial(
    tmp_path: Path, trained: tuple[TrialConfig, Path]
) -> None:
    config, folder = trained
    source = load_checkpoint(folder / "model.safetensors")
    _, again = exported(tmp_path, source, "safetensors")
    assert again.layout == "backbone"
    assert again.trial == config
    assert same(again.backbone, source.backbone)
    # a head with tensors is not in the file; one without is known by the trial
    assert again.head_config == (config.head if config.head.kind == "subvector" else NoHead(kind="none"))


def test_a_backbone_that_torchvision_lacks_is_refused(
    tmp_path: Path, trained: tuple[TrialConfig, Path]
) -> None:
    source = load_checkpoint(trained[1] / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"none of torchvision's .*; the safetensors format holds any$"):
        save_backbone(source, tmp_path / "backbone.pth", "torchvision")
    gray = released_backbone()
    gray.conv1 = nn.Conv2d(1, 64, 7, bias=False)
    source = load_checkpoint(saved(tmp_path / "gray.pth", gray.state_dict()))
    with pytest.raises(
        CheckpointError, match=r"resnet18 .*'conv1.weight': got shape \(64, 1, 7, 7\), takes \(64, 3, 7, 7\)"
    ):
        save_backbone(source, tmp_path / "backbone.pth", "torchvision")
    assert [path.name for path in tmp_path.iterdir()] == ["gray.pth"]


def test_a_place_that_cannot_be_written_is_the_systems_error(tmp_path: Path) -> None:
    source = load_checkpoint(saved(tmp_path / "file.pth", resnet18().state_dict()))
    for file_format in ("torchvision", "safetensors"):
        with pytest.raises(FileNotFoundError):
            save_backbone(source, tmp_path / "nowhere" / "file", file_format)


# --- refusals ---------------------------------------------------------------------------------------


def refusal(path: Path, trial: TrialConfig | None = None, channels: int = 3) -> str:
    """The one line with which a file is refused."""

    def use() -> None:
        build_model(load_checkpoint(path), trial or resnet_trial(head={"kind": "none"}), channels, CPU)

    with pytest.raises(CheckpointError) as caught:
        use()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "\x1b" not in message
    return message.removeprefix(str(path))


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Command(Bomb):
    def __reduce__(self) -> tuple[Any, ...]:
        return __import__("os").system, (f"touch {self.path}",)


@pytest.mark.parametrize("bomb", [Bomb, Command])
@pytest.mark.parametrize(
    "write",
    [
        torch.save,
        lambda bomb, path: torch.save(bomb, path, _use_new_zipfile_serialization=False),
        lambda bomb, path: torch.save(bomb, path, pickle_protocol=4),
        lambda bomb, path: path.write_bytes(pickle.dumps(bomb, 2)),
        lambda bomb, path: path.write_bytes(pickle.dumps(bomb)),
        lambda bomb, path: torch.save({"model": {"module.backbone.conv1.weight": bomb}, "epoch": 1}, path),
    ],
    ids=["zip", "old", "protocol 4", "pickle", "new pickle", "inside"],
)
def test_a_hostile_pickle_is_refused_in_one_line_and_nothing_of_it_runs(
    tmp_path: Path, write: Callable[[Any, Path], None], bomb: type[Bomb]
) -> None:
    write(bomb(tmp_path / "exploded"), tmp_path / "file.pth")
    told = refusal(tmp_path / "file.pth")
    assert told.startswith(": not readable as a checkpoint: its pickle ")
    assert told.endswith("nothing of it was run")
    assert not (tmp_path / "exploded").exists()


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere.pth") == ": no such file"
    assert refusal(tmp_path) == ": not a file"
    assert "cannot be read" in refusal(tmp_path / ("a" * 300))


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    for path in (tmp_path / "file.pth", tmp_path / "file.safetensors"):
        if path.suffix == ".pth":
            torch.save(resnet18().state_dict(), path)
        else:
            save_file(resnet18().state_dict(), path)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
        assert "not readable as" in refusal(path)


@pytest.mark.parametrize(
    "content", [b"\x00" * 200, b"hello world, this is text", b"PK\x03\x04" + b"x" * 99, b"{}"]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.pth").write_bytes(content)
    assert "not readable as" in refusal(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (torch.zeros(3), "holds a strided tensor on cpu, takes a checkpoint"),
        ([1, 2], "holds a list, takes a checkpoint"),
        ({}, "takes a checkpoint"),
        ({"weight": torch.zeros(3)}, "has 'weight', takes a checkpoint"),
        ({"model": torch.zeros(3)}, "model: got a strided tensor on cpu, takes a state dict"),
        ({"model": {3: torch.zeros(3)}}, "got the key 3, takes names of tensors"),
        ({"model": {"backbone.x": 4}}, "'backbone.x': got 4, takes a dense tensor"),
        ({"model": {"backbone.x": torch.zeros(3).to_sparse()}}, "got a sparse_coo tensor on cpu, takes a dense"),
        ({"model": {"backbone.x": torch.zeros(3, device="meta")}}, "got a strided tensor on meta, takes a dense"),
        ({"model": {"encoder.x": torch.zeros(3)}}, "has the tensor 'encoder.x', takes those of backbone, head"),
        ({"backbone": {}, "head": {}, "neck": {}}, "has 'neck', takes backbone and head"),
        ({"backbone": {}, "projector": {"0.scale": torch.zeros(3)}}, "its head has '0.scale', takes those of"),
        ({"backbone": {}, "projector": {"weight": torch.zeros(())}}, "its head has 'weight', takes those of"),
        ({"backbone": {}, "projector": {"weight": torch.zeros(0, 3)}}, "its head has 'weight', takes those of"),
        ({"backbone": {}, "head": {}}, "its backbone lacks 'conv1.weight' (and 119 more), which resnet18 on 3-"),
    ],
)  # fmt: skip
def test_a_file_without_a_model_is_told_what_it_has_and_what_is_taken(
    tmp_path: Path, content: Any, told: str
) -> None:
    assert told in refusal(saved(tmp_path / "file.pth", content))


def test_another_network_is_told_by_its_first_strange_tensor(tmp_path: Path) -> None:
    path = saved(tmp_path / "file.pth", {"backbone": released_backbone(resnet50).state_dict()})
    message = refusal(path)
    assert message.startswith(" (export layout): its backbone has 'layer1.0.conv3.weight' (and ")
    assert message.endswith(" more), which resnet18 on 3-channel images doesn't take")


def test_missing_and_misshapen_tensors_are_named_with_their_shapes(tmp_path: Path) -> None:
    state = OrderedDict(released_backbone().state_dict())
    del state["bn1.running_var"]
    lacks = saved(tmp_path / "lacks.pth", {"backbone": state})
    assert "its backbone lacks 'bn1.running_var', which resnet18 on 3-channel images takes" in refusal(lacks)
    whole = saved(tmp_path / "whole.pth", export_layout(released_backbone(), two_layers()))
    told = refusal(whole, channels=1)
    assert told == (
        " (export layout): backbone: 'conv1.weight': got shape (64, 3, 7, 7), "
        "resnet18 on 1-channel images takes (64, 1, 7, 7)"
    )
    narrow = saved(tmp_path / "narrow.pth", export_layout(released_backbone(), two_layers(256)))
    trial = resnet_trial(head={"kind": "mlp", "hidden_dim": 24, "out_dim": 10})
    told = refusal(narrow, trial)
    assert "head: 'layers.0.weight': got shape (24, 256), the mlp head takes (24, 512)" in told
    biased = two_layers()
    biased[0] = nn.Linear(512, 24)
    path = saved(tmp_path / "biased.pth", export_layout(released_backbone(), biased))
    assert "its head has 'layers.0.bias', which the mlp head doesn't take" in refusal(path, trial)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state = released_backbone().state_dict()
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    path = saved(tmp_path / "file.pth", state)
    assert "'layer2.0.conv1.weight': holds values that are not finite" in refusal(path)


def test_our_own_file_without_its_trial_or_with_a_strange_one_is_refused(tmp_path: Path) -> None:
    tensors = {"backbone.conv1.weight": torch.zeros(3)}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    assert "lacks its trial's configuration" in refusal(path)
    save_file(tensors, path, {"trial": json.dumps({"seed": -1})})
    assert "its trial is not one that this version knows (seed: " in refusal(path)
    save_file(tensors, path, {"trial": "{"})
    assert "its trial is not one that this version knows" in refusal(path)
    trial = json.dumps(tiny_trial().model_dump(mode="json"))
    for progress in ("{", "{}", '{"epoch": "x"}', "3"):
        save_file(tensors, path, {"trial": trial, "progress": progress})
        assert "its metadata are damaged" in refusal(path)


def test_reading_leaves_the_list_of_trusted_names_as_it_was(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    load_checkpoint(saved(tmp_path / "file.pth", resnet18().state_dict()))
    assert torch.serialization.get_safe_globals() == before
