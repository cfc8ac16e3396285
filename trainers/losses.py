"""Contrastive losses, exact under data parallelism.

Each rank compares its own rows with every rank's columns. Its gradient, averaged over ranks as DDP
does, is that of the loss over the whole batch, on any number of ranks.
"""

from __future__ import annotations

from typing import assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.config import LossConfig
from trainers.distributed import gather_rows, world


def contrastive_loss(z1: Tensor, z2: Tensor, config: LossConfig) -> Tensor:
    """The configured loss of this rank's rows; its mean over ranks is the loss of the global batch.

    Args:
        z1: embedding of view 1, (b, d), or (b, G, d) for G groups of features.
        z2: embedding of view 2, as `z1`; row i of both is the same image.
        config: kind and temperature.

    Returns:
        A scalar in nats, float32 at least; summed over groups.
    """
    match config.kind:
        case "infonce":
            return info_nce(z1, z2, config.temperature)
        case "ntxent":
            return nt_xent(z1, z2, config.temperature)
        case "same_view":
            return same_view(z1, z2, config.temperature)
        case _:
            assert_never(config.kind)


def info_nce(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Cross-view InfoNCE: N - 1 negatives, all from the other view, mean of both directions.

    With s_ij = cos(z1_i, z2_j) / temperature over the N images of the global batch:
    -1/(2N) sum_i [ log softmax_j(s_ij)_i + log softmax_j(s_ji)_i ], the loss of the paper's released
    code (Eq. 3 with normalised embeddings).

    Args:
        z1: (b, d) or (b, G, d).
        z2: as `z1`.
        temperature: divides the cosine similarities.
    """
    with torch.autocast(z1.device.type, enabled=False):
        local1, local2, all1, all2 = _gathered(z1, z2)
        positive = (local1 * local2).sum(-1) / temperature  # (G, b)
        rows = local1 / temperature @ all2.mT  # (G, b, d) x (G, d, N) -> (G, b, N)
        # In one process the other direction's logits are the transpose.
        columns = rows.mT if all1 is local1 else local2 / temperature @ all1.mT
        return ((rows.logsumexp(-1) + columns.logsumexp(-1)) / 2 - positive).mean(-1).sum()


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """NT-Xent (SimCLR, Chen et al. 2020, Eq. 1): 2N - 2 negatives, from both views.

    Args:
        z1: (b, d) or (b, G, d).
        z2: as `z1`.
        temperature: divides the cosine similarities.
    """
    with torch.autocast(z1.device.type, enabled=False):
        local1, local2, all1, all2 = _gathered(z1, z2)
        positive = (local1 * local2).sum(-1) / temperature  # (G, b)
        rows = torch.cat([local1, local2], dim=1)  # (G, 2b, d)
        columns = torch.cat([all1, all2], dim=1)  # (G, 2N, d)
        logits = rows / temperature @ columns.mT  # (G, 2b, 2N)
        images, everywhere = local1.shape[1], all1.shape[1]
        first = world()[0] * images
        for view in range(2):  # no image is its own negative
            itself = logits[:, view * images : (view + 1) * images, view * everywhere + first :]
            itself.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
        return (logits.logsumexp(-1) - torch.cat([positive, positive], dim=1)).mean(-1).sum()


def same_view(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """InfoNCE as the paper prints it: N - 1 negatives, all from the view of the anchor, view 1.

    With s_ij = cos(z1_i, z1_j) / temperature and p_i = cos(z1_i, z2_i) / temperature:
    -1/N sum_i log( e^{p_i} / (sum_{j != i} e^{s_ij} + e^{p_i}) ), which is Eq. 2 with the normalised inner
    products that the text puts in place of its distances, and Section 6.2's loss with Eq. 2's
    denominator. One direction, as printed: the anchors are those of one branch, so that view 2 enters by
    the positives alone. Neither equation has a temperature or says mean for sum.

    Args:
        z1: (b, d) or (b, G, d).
        z2: as `z1`.
        temperature: divides the cosine similarities.
    """
    with torch.autocast(z1.device.type, enabled=False):
        both = _normalised(z1, z2)  # (b, 2, G, d)
        local1, local2 = both.permute(1, 2, 0, 3)  # (b, 2, G, d) -> (2, G, b, d)
        all1 = gather_rows(both[:, 0]).transpose(0, 1)  # (G, N, d)
        positive = (local1 * local2).sum(-1) / temperature  # (G, b)
        logits = local1 / temperature @ all1.mT  # (G, b, N)
        first = world()[0] * local1.shape[1]
        # No image is its own negative: in that place stands the positive.
        logits[:, :, first:].diagonal(dim1=1, dim2=2).copy_(positive)
        return (logits.logsumexp(-1) - positive).mean(-1).sum()


def _gathered(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both views normalised: local (G, b, d) twice, then global (G, N, d) twice."""
    both = _normalised(z1, z2)
    local1, local2 = both.permute(1, 2, 0, 3)  # (b, 2, G, d) -> (2, G, b, d)
    if world()[1] == 1:
        return local1, local2, local1, local2
    all1, all2 = gather_rows(both).permute(1, 2, 0, 3)  # one exchange for both views
    return local1, local2, all1, all2


def _normalised(z1: Tensor, z2: Tensor) -> Tensor:
    """Both views normalised in float32 at least, (b, 2, G, d)."""
    if z1.shape != z2.shape or z1.dim() not in (2, 3):
        raise ValueError(
            "a contrastive loss takes two (b, d) or two (b, G, d), "
            f"got {tuple(z1.shape)} and {tuple(z2.shape)}"
        )
    dtype = torch.promote_types(z1.dtype, torch.float32)
    both = F.normalize(torch.stack([z1, z2], dim=1).to(dtype), dim=-1)  # (b, 2, [G,] d)
    return both.unsqueeze(2) if both.dim() == 3 else both
