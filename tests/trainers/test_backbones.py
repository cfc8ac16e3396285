"""Backbones against torchvision's, and their initial weights against what they should be drawn from."""

from __future__ import annotations

from typing import Any

import pytest
import scipy.stats
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck

from trainers import backbones
from trainers.backbones import BottleneckNet, build_backbone
from trainers.config import ResNet, ThinResNet


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def thin(**kwargs: object) -> ThinResNet:
    return ThinResNet(kind="thin_resnet", **kwargs)


def settle(module: nn.Module) -> nn.Module:
    """Batch norms and weights away from their special initial values, so that each one matters."""
    generator = seeded(5)
    for name, tensor in module.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.is_floating_point() and tensor.dim() == 1:
            tensor.normal_(generator=generator)
    return module.eval()


@pytest.mark.parametrize("kind", ["resnet18", "resnet34", "resnet50"])
def test_state_and_output_are_torchvisions_without_fc(kind: str) -> None:
    config = ResNet(kind=kind)
    backbone = settle(build_backbone(config, 3, seeded()))
    theirs = getattr(torchvision.models, kind)()
    missing, unexpected = theirs.load_state_dict(backbone.state_dict(), strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"}
    assert not unexpected
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 40, 40, generator=seeded(1))
    with torch.no_grad():
        got, wanted = backbone(images), theirs.eval()(images)
    assert got.shape == (2, config.representation_dim)
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_a_thin_resnet_of_width_64_is_torchvisions_with_a_small_stem() -> None:
    backbone = settle(build_backbone(thin(width=64, blocks=(1, 2, 1, 1)), 3, seeded()))
    theirs = torchvision.models.ResNet(Bottleneck, [1, 2, 1, 1])
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool, theirs.fc = nn.Identity(), nn.Identity()
    renamed = {
        f"layer{int(k.split('.')[1]) + 1}.{k.split('.', 2)[2]}" if k.startswith("stages.") else k: v
        for k, v in backbone.state_dict().items()
    }
    theirs.load_state_dict(renamed)
    images = torch.randn(2, 3, 16, 16, generator=seeded(1))
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), theirs.eval()(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "dim"),
    [
        (thin(), 512),
        (thin(width=4, blocks=(1,)), 16),
        (thin(width=8, blocks=(1, 3)), 64),
        (thin(width=4, blocks=(1, 1, 1), stem_stride=2), 64),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_thin_resnet_gives_four_widths_doubled_per_stage(
    config: ThinResNet, dim: int, channels: int
) -> None:
    backbone = build_backbone(config, channels, seeded())
    assert backbone.representation_dim == config.representation_dim == dim
    assert backbone(torch.randn(2, channels, 12, 12)).shape == (2, dim)
    blocks = [m for m in backbone.modules() if isinstance(m, Bottleneck)]
    assert len(blocks) == sum(config.blocks)


@pytest.mark.parametrize(("stem_stride", "sizes"), [(1, [16, 16, 8, 4]), (2, [8, 8, 4, 2])])
def test_a_thin_resnet_halves_the_image_in_every_stage_after_the_first(
    stem_stride: int, sizes: list[int]
) -> None:
    backbone = build_backbone(thin(width=2, blocks=(1, 2, 1), stem_stride=stem_stride), 1, seeded())
    seen = []
    for module in (backbone.conv1, *backbone.stages):
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[-1]))
    backbone(torch.randn(2, 1, 16, 16))
    assert seen == sizes


def test_one_channel_images_replace_the_stem_alone() -> None:
    one, three = (build_backbone(ResNet(kind="resnet18"), c, seeded()).state_dict() for c in (1, 3))
    assert one["conv1.weight"].shape == (64, 1, 7, 7)
    assert {k for k in three if one[k].shape != three[k].shape} == {"conv1.weight"}
    assert build_backbone(ResNet(kind="resnet18"), 1, seeded())(torch.randn(2, 1, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize("config", [ResNet(kind="resnet18"), thin(width=4)], ids=lambda c: c.kind)
def test_weights_come_from_the_generator_and_global_random_state_is_left_alone(
    config: ResNet | ThinResNet,
) -> None:
    before = torch.get_rng_state()
    first = build_backbone(config, 3, seeded(7)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    second, third = (build_backbone(config, 3, seeded(seed)).state_dict() for seed in (7, 8))
    assert all(torch.equal(v, second[k]) for k, v in first.items())
    assert all(not torch.equal(v, third[k]) for k, v in first.items() if v.dim() == 4)
    assert not any(v.is_meta for v in first.values())


@pytest.mark.parametrize("zero_init_residual", [True, False])
@pytest.mark.parametrize("kind", ["resnet18", "resnet50", "thin_resnet"])
def test_initial_weights_are_kaiming_normal_with_unit_batch_norms(
    kind: str, zero_init_residual: bool
) -> None:
    if kind == "thin_resnet":
        backbone = build_backbone(thin(zero_init_residual=zero_init_residual), 3, seeded())
    else:
        backbone = build_backbone(ResNet(kind=kind, zero_init_residual=zero_init_residual), 3, seeded())
    last = "bn2" if kind == "resnet18" else "bn3"
    draws = []
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            draws.append(module.weight.detach().flatten() * (fan_out / 2) ** 0.5)
            assert module.bias is None
        elif isinstance(module, nn.BatchNorm2d):
            zero = zero_init_residual and name.endswith(last)
            assert torch.equal(module.weight, torch.full_like(module.weight, 0.0 if zero else 1.0)), name
            assert not module.bias.any()
            assert not module.running_mean.any()
            assert torch.equal(module.running_var, torch.ones_like(module.running_var))
            assert module.num_batches_tracked == 0
    for draw in draws:
        sample = draw[:: max(1, len(draw) // 2000)].numpy()
        assert scipy.stats.kstest(sample, scipy.stats.norm.cdf).pvalue > 1e-5


class _Grown(BottleneckNet):
    """With a layer that the rule of initialisation does not know."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.grown = MAKE[self.kind]()

    kind = "linear"


MAKE = {
    "linear": lambda: nn.Linear(4, 4),
    "bias": lambda: nn.Conv2d(4, 4, 1, bias=True),
    "norm": lambda: nn.LayerNorm(4),
    "parameter": lambda: _Holder(nn.Parameter(torch.empty(3))),
    "buffer": lambda: _Holder(torch.zeros((), dtype=torch.int64)),
}


class _Holder(nn.Module):
    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        if isinstance(tensor, nn.Parameter):
            self.held = tensor
        else:
            self.register_buffer("held", tensor, persistent=False)


@pytest.mark.parametrize("kind", MAKE)
def test_a_backbone_with_a_tensor_that_nothing_initialises_is_refused(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Grown, "kind", kind)
    monkeypatch.setattr(backbones, "BottleneckNet", _Grown)
    with pytest.raises(RuntimeError, match=r"backbone: grown\.\w+ has no initial value"):
        build_backbone(thin(width=4, blocks=(1,)), 3, seeded())


def test_a_backbone_trains() -> None:
    backbone = build_backbone(thin(width=4, blocks=(1, 1), zero_init_residual=False), 1, seeded())
    backbone(torch.randn(4, 1, 8, 8, generator=seeded(1))).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.parameters())


@pytest.mark.parametrize(("blocks", "trained"), [((1, 1), False), ((1, 2), True)])
def test_what_carries_the_rest_of_r_receives_directclrs_gradient_only_through_an_identity_shortcut(
    blocks: tuple[int, ...], trained: bool
) -> None:
    config = ThinResNet(kind="thin_resnet", width=4, blocks=blocks, zero_init_residual=False)
    backbone = build_backbone(config, 1, torch.Generator().manual_seed(0))
    d0 = 8
    r = backbone(torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    nn.functional.normalize(r[:, :d0], dim=1).square().mul(torch.arange(d0)).sum().backward()
    first: Any = backbone.stages[-1][
        0
    ]  # its output is the hidden layer h where another block follows, and r otherwise
    rows = first.downsample[0].weight.grad[d0:].abs().amax(dim=(1, 2, 3)).tolist()
    assert config.ends_in_identity_shortcut == trained
    assert all(row > 0 for row in rows) if trained else not any(rows)


@pytest.mark.parametrize("kind", ["resnet18", "resnet34", "resnet50"])
def test_the_last_block_of_a_torchvision_resnet_has_an_identity_shortcut(kind: Any) -> None:
    backbone: Any = build_backbone(ResNet(kind=kind), 3, torch.Generator().manual_seed(0))
    assert (backbone.layer4[-1].downsample is None) == ResNet(kind=kind).ends_in_identity_shortcut
