"""The contrastive losses of the toy networks and their gradients in closed form (Sections 4.2 and 5.2).

Everything is batched over M networks, with samples as columns: z (M, d, N) are the embeddings of the N
samples of a batch, z2 those of their augmented views. That layout halves the time of the products with an
N x N matrix. All gradients are those of the loss summed over the batch, as in Eq. 2.
"""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

ToyLoss = Literal["eq2", "inner_product"]


class Pairs:
    """The softmax weights alpha_ij between the samples of a batch (Eq. 4), and what follows from them.

    `eq2`: Eq. 2, whose negatives are the other samples of the same view; it has no temperature.
    `inner_product`: one-way InfoNCE with logits z_i . z2_j / temperature, whose negatives are the other
    samples of the augmented view; the loss of the released toy code.

    Attributes:
        loss: (M,), the mean over the batch, in nats.
    """

    def __init__(
        self, z: Tensor, z2: Tensor, kind: ToyLoss, temperature: float = 1.0, out: Tensor | None = None
    ) -> None:
        """`out` (M, N, N) is overwritten: fresh memory each step would cost as much as a product."""
        self.z, self.z2, self.kind, self.temperature = z, z2, kind, temperature
        match kind:
            case "eq2":
                logits = _negative_distances(z, z2, out)
            case "inner_product":
                logits = _products(z, z2 / temperature, out)
            case _:
                assert_never(kind)
        positive = logits.diagonal(dim1=1, dim2=2).clone()
        largest = logits.amax(dim=2, keepdim=True)
        alpha = logits.sub_(largest).exp_()
        total = alpha.sum(dim=2, keepdim=True)
        alpha.div_(total)
        self.loss = ((total.log_() + largest).squeeze(2) - positive).mean(dim=1)
        own = alpha.diagonal(dim1=1, dim2=2)
        if kind == "eq2":
            own.zero_()
            self._from = alpha.sum(dim=2).unsqueeze(1)  # 1 - alpha_ii, without its cancellation: (M, 1, N)
            self._to = alpha.sum(dim=1).unsqueeze(1)  # sum of alpha_ji over j, j != i: (M, 1, N)
        else:
            own.sub_(1.0)
        self._weights = alpha

    def matrix(self, x: Tensor, noise: Tensor) -> Tensor:
        """X of a linear network, (M, d, d): the gradient on its end-to-end matrix W is G = -W X (Eq. 5).

        For `eq2` it is computed as Lemma 2 has it: the weighted covariance of the data less that of the
        augmentation.

        Args:
            x: (M, d, N), the samples.
            noise: (M, d, N), their augmentation x' - x.
        """
        if self.kind == "inner_product":
            half = x @ (self._weights @ (x + noise).mT) / -self.temperature
            return half + half.mT
        half = (x @ self._weights) @ x.mT
        data = (x * (self._from + self._to)) @ x.mT - half - half.mT
        return data - (noise * self._from) @ noise.mT

    def embedding_gradients(self) -> tuple[Tensor, Tensor]:
        """The gradients on z and z2 (Eq. 4), each (M, d, N)."""
        z, z2 = self.z, self.z2
        if self.kind == "inner_product":
            return (
                z2 @ self._weights.mT / self.temperature,
                z @ self._weights / self.temperature,
            )
        on_z = z @ self._weights + z @ self._weights.mT - self._from * z2 - self._to * z
        return on_z, self._from * (z2 - z)


def _products(a: Tensor, b: Tensor, out: Tensor | None) -> Tensor:
    """a_i . b_j, (M, N, N)."""
    return torch.bmm(a.mT, b) if out is None else torch.bmm(a.mT, b, out=out)


def _negative_distances(z: Tensor, z2: Tensor, out: Tensor | None) -> Tensor:
    """-|z_i - z_j|^2 / 2, on the diagonal -|z_i - z2_i|^2 / 2, plus |z_i|^2 / 2, which a softmax ignores."""
    squares = z.square().sum(dim=1, keepdim=True) / -2  # (M, 1, N)
    # One more row in the product costs less than an addition to its N x N result.
    logits = _products(torch.cat([z, torch.ones_like(squares)], 1), torch.cat([z, squares], 1), out)
    logits.diagonal(dim1=1, dim2=2).copy_((z * z2).sum(dim=1) - z2.square().sum(dim=1) / 2)
    return logits
