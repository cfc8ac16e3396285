"""The learning rate as a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

import math


def learning_rate(
    step: int,
    *,
    base_lr: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: float,
    final_factor: float,
) -> float:
    """Linear warm-up from 0 to `base_lr`, then half a cosine down to `base_lr * final_factor`.

    Args:
        step: optimizer steps done before this one, 0-based over the whole run.
        base_lr: the peak, not scaled by the batch size.
        epochs: length of the run, warm-up included.
        steps_per_epoch: optimizer steps in one epoch.
        warmup_epochs: length of the warm-up; may be a fraction, or 0 for none.
        final_factor: the cosine's end, as a fraction of `base_lr`; held after the last step.
    """
    warmup = warmup_epochs * steps_per_epoch
    if step < warmup:
        return base_lr * step / warmup
    decay = epochs * steps_per_epoch - warmup
    progress = min((step - warmup) / decay, 1.0) if decay > 0 else 1.0
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return base_lr * (cosine + final_factor * (1.0 - cosine))
