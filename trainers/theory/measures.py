"""What is measured on toy networks: spectra, alignment, the conserved quantity, growth (Sections 4 and 5).

The singular values of a covariance are computed as squares of singular values of its root, never from the
covariance itself: a float64 singular value is wrong by about d * 1e-16 of the largest, so that a variance is
known down to about 1e-29 of the largest (d = 16). What lies below is numerical noise.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainers.evaluate.spectrum import COLLAPSED
from trainers.theory.contrast import Pairs, ToyLoss
from trainers.theory.networks import Networks, end_to_end

VANISHED = COLLAPSED**0.5
"""A direction of W has vanished at this share of the largest singular value: its variance has collapsed."""
ALIGNED = 0.9
"""|A_kk| from which on a pair of singular directions counts as aligned in the test of Theorem 3."""

GROWN = 1e-2
"""Share of the largest singular value of W from which a direction counts as grown. One that never grew keeps
the alignment of the start: Theorem 2 speaks of weights that outgrow the conserved matrix."""

Array = np.ndarray


def covariance_root(samples: Tensor) -> Tensor:
    """R of the samples (..., n, d), with R^T R their covariance (Eq. 1): (..., d, d)."""
    centred = samples - samples.mean(dim=-2, keepdim=True)
    return torch.linalg.qr(centred, mode="r").R / samples.shape[-2] ** 0.5


def embedding_spectrum(networks: Networks, samples: Tensor, root: Tensor) -> Tensor:
    """Singular values of the covariance of the embeddings of all samples (Eq. 1): (M, d), descending.

    Args:
        samples: (B, n, d), shared by the M / B cases.
        root: their `covariance_root` for every network, (M, d, d).
    """
    sets = len(samples)
    if networks.affine:
        of_embedding = root @ end_to_end(networks.weights).mT
    else:  # case by case: the activations of all at once would not fit a cache
        parts = (networks.part(first, first + sets) for first in range(0, len(root), sets))
        of_embedding = torch.cat([covariance_root(part.embed(samples.mT).mT) for part in parts])
    return torch.linalg.svdvals(of_embedding).square()


def contrast_matrix(
    networks: Networks, probes: list[tuple[Tensor, Tensor]], loss: ToyLoss, temperature: float
) -> Tensor:
    """X (Eq. 6) of linear networks, averaged over batches (x, noise), each (M, d, N): (M, d, d)."""
    total = end_to_end(networks.weights)
    matrices = [
        Pairs(total @ x, total @ (x + noise), loss, temperature).matrix(x, noise) for x, noise in probes
    ]
    return torch.stack(matrices).mean(dim=0)


def alignment(u: Tensor, vh: Tensor) -> Tensor:
    """|V_{l+1}^T U_l| of adjacent layers, from the singular vectors (M, L, d, d): (M, L - 1, d, d)."""
    return (vh[:, 1:] @ u[:, :-1]).abs()


def layer_gaps(weights: Tensor) -> Tensor:
    """W_l W_l^T - W_{l+1}^T W_{l+1} (App. B.5), constant under gradient flow: (M, L, d, d) -> (M, L - 1, d, d)."""
    lower, upper = weights[:, :-1], weights[:, 1:]
    return lower @ lower.mT - upper.mT @ upper


def gap_drift(gaps: Tensor, first: Tensor) -> Tensor:
    """The Frobenius norm of the change of `layer_gaps` over that of the first: the worst pair's, (M,)."""
    norm = torch.linalg.matrix_norm
    return (norm(gaps - first) / norm(first)).amax(dim=1)


def growth_rate(x: Tensor, values: Tensor, vh: Tensor) -> Tensor:
    """The right side of Eq. 10, for any depth: sigma_1^k (sigma_2^k ... sigma_L^k)^2 v_1^kT X v_1^k, (M, d)."""
    first = vh[:, 0]  # its rows are the v_1^k
    return values[:, 0] * values[:, 1:].square().prod(dim=1) * ((first @ x) * first).sum(dim=2)


def effective_rank(spectrum: Array) -> Array:
    """exp of the entropy of the normalised singular values (Roy & Vetterli 2007): (..., d) -> (...)."""
    total = spectrum.sum(axis=-1, keepdims=True)
    share = spectrum / np.maximum(total, np.finfo(float).tiny)  # of dead networks too: rank 1
    return np.exp(-np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=-1))


def growth_agreement(
    iterations: Array, first_layer: Array, predicted: Array, aligned: Array
) -> tuple[float, float]:
    """How Eq. 10 meets the measured growth of one network, over recorded times and aligned pairs.

    Args:
        iterations: (T,).
        first_layer: sigma_1^k, (T, d).
        predicted: its growth per iteration by Eq. 10, (T, d).
        aligned: |A_kk|, the least over adjacent layers, (T, d).

    Returns:
        Pearson correlation, and the slope through the origin of measured over predicted growth (1 in theory);
        both NaN where fewer than three points are aligned.
    """
    measured = np.diff(first_layer, axis=0) / np.diff(iterations)[:, None]
    expected = (predicted[:-1] + predicted[1:]) / 2
    met = np.minimum(aligned[:-1], aligned[1:]) >= ALIGNED
    if met.sum() < 3:
        return float("nan"), float("nan")
    measured, expected = measured[met], expected[met]
    with np.errstate(invalid="ignore", divide="ignore"):  # nothing grew at all: NaN
        correlation = np.corrcoef(measured, expected)[0, 1]
        return float(correlation), float(measured @ expected / (expected @ expected))


def summarise(series: dict[str, Array]) -> dict[str, list[float]]:
    """The metrics of one case at the end of its training, each with one value per network.

    Of all networks: the loss; how many directions of the embedding have collapsed (variance at most 1e-6 of
    the largest), now, at the start and by training; and the effective rank of the embedding's covariance. Without ReLU
    also how many directions of W have vanished (at most 1e-3 of the largest), and the smallest over the
    largest singular value. Of linear networks with more than one layer Theorem 2 (mean |A_kk|, of all and of
    grown directions, and mean |A_kl|), the drift of the conserved matrix, and Theorem 3 by `growth_agreement`,
    unless it speaks of no pair because one of the networks never aligned.
    """
    variances = series["embedding_spectrum"]
    collapsed = (variances <= COLLAPSED * variances[:, :, :1]).sum(axis=2)  # (networks, T)
    found: dict[str, Array] = {
        "loss": series["loss"],
        "collapsed_directions": collapsed[:, -1],
        "collapsed_directions_at_start": collapsed[:, 0],
        "newly_collapsed_directions": collapsed[:, -1] - collapsed[:, 0],
        "embedding_effective_rank": effective_rank(variances[:, -1]),
    }
    if "product_singular_values" in series:
        share = series["product_singular_values"][:, -1]
        share = share / share[:, :1]
        found["vanished_weight_directions"] = (share <= VANISHED).sum(axis=1)
        found["smallest_weight_ratio"] = share[:, -1]
        if "conserved_drift" in series:
            found |= _of_layers(series, grown=share >= GROWN)
    return {f"theory/{name}": [float(value) for value in values] for name, values in found.items()}


def _of_layers(series: dict[str, Array], grown: Array) -> dict[str, Array]:
    overlap = series["alignment"].mean(axis=1)  # (networks, d, d)
    diagonal = overlap.diagonal(axis1=1, axis2=2)
    dim = diagonal.shape[1]
    found = {
        "alignment_diagonal": diagonal.mean(axis=1),
        "alignment_top_diagonal": (diagonal * grown).sum(axis=1) / grown.sum(axis=1),
        "alignment_off_diagonal": (overlap.sum(axis=(1, 2)) - diagonal.sum(axis=1)) / (dim * (dim - 1)),
        "conserved_drift": series["conserved_drift"][:, -1],
    }
    first_layers = series["weight_singular_values"][:, :, 0]
    growth = np.array(
        [
            growth_agreement(series["iterations"], *of_network)
            for of_network in zip(first_layers, series["predicted_growth"], series["aligned"], strict=True)
        ]
    )
    if np.isfinite(growth).all():
        found |= {"growth_correlation": growth[:, 0], "growth_slope": growth[:, 1]}
    return found
