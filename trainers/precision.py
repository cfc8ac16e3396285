"""The one rule for which precision runs under autocast: half precisions do, float32 and float64 don't."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["float64", "float32", "bf16", "fp16"]
_AUTOCAST = {"float64": None, "float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context for forward passes in a precision on a device."""
    dtype = _AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
