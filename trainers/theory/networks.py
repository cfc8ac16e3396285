"""The toy networks: L square layers, batched over M networks, with gradients in closed form (App. B).

Without ReLU and bias the samples are never passed through the layers: the end-to-end matrix W is
formed first, and the gradient on it is -W X (Lemma 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainers.theory.contrast import Pairs, ToyLoss


@dataclass
class Networks:
    """M networks of one architecture.

    Attributes:
        weights: first layer first, each (M, d, d).
        biases: each (M, d, 1), or none at all.
        relu: between layers, not after the last.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    relu: bool
    _pairs: Tensor | None = field(default=None, init=False)  # (M, N, N), kept between steps

    @property
    def affine(self) -> bool:
        """z = W x + b: there is no ReLU, or but one layer."""
        return not self.relu or len(self.weights) == 1

    @property
    def linear(self) -> bool:
        """z = W x."""
        return self.affine and not self.biases

    def gradients(
        self, x: Tensor, noise: Tensor, kind: ToyLoss, temperature: float
    ) -> tuple[Tensor, list[Tensor]]:
        """The mean loss (M,), and the gradients of the loss's sum over the batch.

        Args:
            x: (M, d, N), the samples of the batch.
            noise: (M, d, N), x' - x.

        Returns:
            Loss and gradients, those of the weights first, then those of the biases.
        """
        samples = x.shape[2]
        if self._pairs is None or self._pairs.shape[1] != samples:
            self._pairs = x.new_empty(len(x), samples, samples)
        both = torch.cat([x, x + noise], dim=2)
        if self.linear:
            total = end_to_end(self.weights)
            z = total @ both
            pairs = Pairs(z[:, :, :samples], z[:, :, samples:], kind, temperature, self._pairs)
            return pairs.loss, linear_gradients(self.weights, -total @ pairs.matrix(x, noise))
        inputs, z = self._forward(both)
        pairs = Pairs(z[:, :, :samples], z[:, :, samples:], kind, temperature, self._pairs)
        return pairs.loss, self._backward(inputs, torch.cat(pairs.embedding_gradients(), dim=2))

    def part(self, first: int, last: int) -> Networks:
        """The networks from `first` up to `last`, which it leaves out; their parameters are views of these."""
        weights = [weight[first:last] for weight in self.weights]
        return Networks(weights, [bias[first:last] for bias in self.biases], self.relu)

    def embed(self, x: Tensor) -> Tensor:
        """(M, d, n) samples -> (M, d, n) embeddings."""
        return self._forward(x)[1]

    def descend(self, gradients: list[Tensor], rates: Tensor) -> None:
        """One step of plain SGD. `rates` (M, 1, 1) are those of the loss's sum over the batch."""
        for parameter, gradient in zip(self.weights + self.biases, gradients, strict=True):
            parameter.addcmul_(rates, gradient, value=-1)

    def _forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The input of every layer, and the output of the last."""
        inputs: list[Tensor] = []
        for layer, weight in enumerate(self.weights):
            inputs.append(x)
            x = weight @ x
            if self.biases:
                x += self.biases[layer]
            if self.relu and layer < len(self.weights) - 1:
                x.clamp_(min=0)
        return inputs, x

    def _backward(self, inputs: list[Tensor], on_output: Tensor) -> list[Tensor]:
        on_weights: list[Tensor] = []
        on_biases: list[Tensor] = []
        for layer in reversed(range(len(self.weights))):
            on_weights.append(on_output @ inputs[layer].mT)
            if self.biases:
                on_biases.append(on_output.sum(dim=2, keepdim=True))
            if layer:
                on_output = self.weights[layer].mT @ on_output
                if self.relu:
                    on_output *= inputs[layer] > 0
        return on_weights[::-1] + on_biases[::-1]


def end_to_end(weights: list[Tensor]) -> Tensor:
    """W_L ... W_1, (M, d, d)."""
    total = weights[0]
    for weight in weights[1:]:
        total = weight @ total
    return total


def linear_gradients(weights: list[Tensor], on_total: Tensor) -> list[Tensor]:
    """The gradient on each layer from G, that on the end-to-end matrix (Eq. 8, for any depth).

    With W = A W_l B it is A^T G B^T.
    """
    gradients: list[Tensor] = []
    above = on_total  # A^T G
    for layer in reversed(range(len(weights))):
        gradients.append(above @ end_to_end(weights[:layer]).mT if layer else above)
        above = weights[layer].mT @ above
    return gradients[::-1]
