"""The tidy table and the caption of each kind of figure that shows the theory's toy networks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from orchestrator.exhibits import ToyAlignmentFigure, ToyEvolutionFigure, ToySpectrumFigure
from orchestrator.plan import PlannedCell
from orchestrator.report.figures.source import (
    CELL,
    Source,
    joined,
    lines,
    noise_floor,
    noise_text,
    repeats,
    repeats_text,
)

SPECTRUM_COLUMNS = (*CELL, "network", "rank", "singular_value", "noise_floor")
ALIGNMENT_COLUMNS = (*CELL, "row", "column", "mean", "low", "high", "networks")
EVOLUTION_COLUMNS = (*CELL, "of", "iteration", "rank", "low", "median", "high", "networks", "noise_floor")
QUANTILES = (0.1, 0.5, 0.9)
"""Low, middle and high of a line over networks."""


def spectrum(figure: ToySpectrumFigure, source: Source) -> tuple[pd.DataFrame, str]:
    """Figs. 3, 11: singular values at the end, of every network; `rank` 1 is the largest."""
    parts = []
    for name in dict.fromkeys(figure.cells):
        found = source.toy_arrays(name)
        if found is None:
            continue
        cell, arrays = found
        weights = arrays["weight_singular_values"]  # (networks, T, L, dim)
        if figure.of == "weight" and weights.shape[2] > 1:
            source.lacks(
                cell, otherwise=f"has {weights.shape[2]} weights, and this figure shows a single one"
            )
            continue
        final = weights[:, -1, 0] if figure.of == "weight" else arrays["embedding_spectrum"][:, -1]
        kept = source.finite_networks(cell, final)  # (networks, dim)
        network, rank = np.indices(kept.shape)
        values = {"rank": rank.ravel() + 1, "singular_value": kept.ravel()}
        parts.append(lines(cell, network=network.ravel(), **values))
    data = joined(parts, SPECTRUM_COLUMNS[:-1])
    # variances are squares of the singular values of factors of the covariance
    floor = noise_floor(data["singular_value"], data["rank"], squared=figure.of == "embedding")
    data["noise_floor"] = floor
    what = "weight" if figure.of == "weight" else "covariance of the embeddings"
    caption = f"Singular values of the {what} after training" + (
        ", natural logarithm." if figure.log else "."
    )
    caption += _networks(repeats(data, "network"))
    return data, caption + (noise_text(over_networks(data)["low"], floor) if figure.log else "")


def over_networks(data: pd.DataFrame) -> pd.DataFrame:
    """Of a spectrum's table: low, median and high of each cell by rank."""
    if data.empty:
        return pd.DataFrame(columns=["study", "cell", "rank", "low", "median", "high"])
    by_rank = data.groupby(["study", "cell", "rank"], sort=False)["singular_value"]
    quantiles = by_rank.quantile(list(QUANTILES)).unstack()
    return quantiles.set_axis(["low", "median", "high"], axis=1).reset_index()


def alignment(figure: ToyAlignmentFigure, source: Source) -> tuple[pd.DataFrame, str]:
    """Fig. 5: |A|, A = V2^T U1 of the first two layers; `row` k and `column` k' count from 1."""
    caption = "Absolute value of the alignment matrix A = V₂ᵀU₁ after training."
    found = source.toy_arrays(figure.cell)
    if found is not None and not found[1].get("alignment", np.empty(0)).size:
        source.lacks(found[0], otherwise="a single layer has nothing to be aligned with")
    elif found is not None:
        cell, arrays = found
        kept = source.finite_networks(cell, arrays["alignment"][:, 0])  # (networks, dim, dim)
        if len(kept):
            row, column = np.indices(kept.shape[1:]) + 1
            values = {"mean": kept.mean(axis=0), "low": kept.min(axis=0), "high": kept.max(axis=0)}
            flat = {name: matrix.ravel() for name, matrix in values.items()}
            data = lines(cell, row=row.ravel(), column=column.ravel(), **flat, networks=len(kept))
            diagonal = float(values["mean"].diagonal().mean())
            over = repeats_text((len(kept), len(kept)), "network")
            caption += (
                f" Mean over {over}; the diagonal's mean is {diagonal:.3f}, and 1 where layers are aligned."
            )
            return data[list(ALIGNMENT_COLUMNS)], caption
    return joined([], ALIGNMENT_COLUMNS), caption


def evolution(figure: ToyEvolutionFigure, source: Source) -> tuple[pd.DataFrame, str]:
    """Figs. 6a-c: `of` is W1, W2, ... or embedding; median, 10th and 90th percentile over networks."""
    parts = []
    found = source.toy_arrays(figure.cell)
    if found is not None:
        cell, arrays = found
        weights = np.moveaxis(arrays["weight_singular_values"], 2, 0)  # (L, networks, T, dim)
        spectra = {f"W{layer}": values for layer, values in enumerate(weights, start=1)}
        for of, values in (spectra | {"embedding": arrays["embedding_spectrum"]}).items():
            kept = source.finite_networks(cell, values)  # (networks, T, dim)
            if len(kept):
                part = _quantile_lines(cell, of, arrays["iterations"], kept)
                part["noise_floor"] = noise_floor(part["high"], part["rank"], squared=of == "embedding")
                parts.append(part)
    data = joined(parts, EVOLUTION_COLUMNS)
    caption = (
        "Singular values of each weight, and natural logarithm of those of the covariance of the embeddings, "
        "while training; a line a singular value."
    )
    networks = data["networks"].tolist() or [0]
    embedding = data[data["of"] == "embedding"]
    caption += _networks((min(networks), max(networks)))
    return data, caption + noise_text(embedding["low"], embedding["noise_floor"].max())


def _quantile_lines(cell: PlannedCell, of: str, iterations: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    low, median, high = np.quantile(values, QUANTILES, axis=0)  # (T, dim)
    time, rank = np.indices(median.shape)
    columns = {"iteration": iterations[time], "rank": rank + 1, "low": low, "median": median, "high": high}
    flat = {name: array.ravel() for name, array in columns.items()}
    return lines(cell, of=of, **flat, networks=len(values))


def _networks(counts: tuple[int, int]) -> str:
    if counts[1] == 0:
        return ""
    band = ": the line is the median, the band goes from the 10th to the 90th percentile"
    return f" {repeats_text(counts, 'network')}{band if counts[1] > 1 else ''}."
