import copy

import pytest
import torch
from torch import Tensor, nn

from trainers.evaluate.features import extract, full_float32


class Backbone(nn.Module):
    """(B, 1, 2, 2) -> (B, 3), with what must behave otherwise in training: batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)
        self.norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
        self.norm.running_var.copy_(torch.tensor([4.0, 9.0, 16.0]))
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.dtype)
        return self.dropout(self.norm(self.linear(x.flatten(1))))


IMAGES = torch.randn(10, 1, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10)


def batches() -> list[tuple[Tensor, Tensor]]:
    return list(zip(IMAGES.split(4), LABELS.split(4), strict=True))


def test_features_are_those_of_evaluation_mode_in_the_order_of_the_batches() -> None:
    backbone, head = Backbone(), nn.Linear(3, 2)
    features = extract(backbone, head, batches(), 10, "cpu")
    centre, spread = torch.tensor([1.0, 2.0, 3.0]), (torch.tensor([4.0, 9.0, 16.0]) + 1e-5).sqrt()
    r = (IMAGES.flatten(1) @ backbone.linear.weight.t() + backbone.linear.bias - centre) / spread
    torch.testing.assert_close(features.representation, r)
    torch.testing.assert_close(features.embedding, r @ head.weight.t() + head.bias)
    assert features.labels.tolist() == list(range(10))


def test_without_a_head_the_embedding_is_the_representation() -> None:
    for head in (None, nn.Identity()):  # one that returns r is not stored a second time
        features = extract(Backbone(), head, batches(), 10, "cpu")
        assert features.embedding is features.representation


def test_the_model_is_left_as_it_was_module_by_module() -> None:
    backbone, head = Backbone().train(), nn.Linear(3, 2).eval()
    backbone.norm.eval()  # frozen by its owner
    before = copy.deepcopy(backbone.state_dict())
    extract(backbone, head, batches(), 10, "cpu")
    assert (backbone.training, backbone.norm.training, backbone.dropout.training) == (True, False, True)
    assert not head.training
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_the_model_is_left_as_it_was_when_a_batch_fails() -> None:
    backbone = Backbone().train()

    def broken() -> object:
        yield batches()[0]
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        extract(backbone, None, broken(), 10, "cpu")
    assert backbone.training
    assert backbone.norm.training


def test_float64_models_compute_in_float64_and_deliver_float32() -> None:
    backbone = Backbone().double()
    features = extract(backbone, None, batches(), 10, "cpu", "float64")
    assert set(backbone.seen) == {torch.float64}
    assert features.representation.dtype == torch.float32
    reference = extract(backbone.float(), None, batches(), 10, "cpu")
    torch.testing.assert_close(features.representation, reference.representation)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_autocast_and_delivers_float32(precision: str) -> None:
    backbone = Backbone()
    half = extract(backbone, None, batches(), 10, "cpu", precision).representation
    full = extract(backbone, None, batches(), 10, "cpu").representation
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.05


def test_features_can_be_trained_on() -> None:
    features = extract(Backbone(), nn.Linear(3, 2), batches(), 10, "cpu")
    weight = torch.zeros(3, requires_grad=True)
    (features.representation @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, features.representation.sum(dim=0))


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        extract(Backbone(), None, [], 0, "cpu")
    with pytest.raises(ValueError, match=r"^got 10 images to extract features from, expected 11$"):
        extract(Backbone(), None, batches(), 11, "cpu")


def test_full_float32_forbids_tf32_while_it_lasts_and_restores_what_was() -> None:
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    try:
        for state in (True, False):
            convolutions.allow_tf32 = products.allow_tf32 = state
            with pytest.raises(OSError), full_float32():  # noqa: PT011, PT012
                assert not convolutions.allow_tf32
                assert not products.allow_tf32
                raise OSError
            assert (convolutions.allow_tf32, products.allow_tf32) == (state, state)
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
