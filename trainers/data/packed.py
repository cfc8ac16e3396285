"""Images inside tar files, read by their place there: nothing is ever unpacked."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packed:
    """Where each of N images lies.

    It holds no open file, so that processes may be forked from it or be sent it.

    Attributes:
        tars: paths of the tar files.
        tar: int64 (N,): in which of them.
        start: int64 (N,): at which byte.
        size: int64 (N,): how many bytes.
    """

    tars: tuple[str, ...]
    tar: np.ndarray
    start: np.ndarray
    size: np.ndarray

    def chosen(self, indices: np.ndarray) -> Packed:
        """Those of some images."""
        return Packed(self.tars, self.tar[indices], self.start[indices], self.size[indices])

    def read(self, index: int) -> bytes:
        """An image's file.

        Raises:
            OSError: its tar is gone or cannot be read.
            EOFError: its tar, whose path it tells, has become shorter.
        """
        path, size = self.tars[self.tar[index]], int(self.size[index])
        tar = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.pread(tar, size, int(self.start[index]))
        finally:
            os.close(tar)
        if len(content) < size:
            raise EOFError(path)
        return content
