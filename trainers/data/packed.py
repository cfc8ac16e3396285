"""Images inside tar files, read by their place there: nothing is ever unpacked."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np


def version(status: os.stat_result) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns: what tells one version of a tar from another."""
    return status.st_size, status.st_mtime_ns


class ChangedError(Exception):
    """A tar, whose path it tells, is another than when its members were listed: bytes there may be another image's."""


@dataclass(frozen=True)
class Packed:
    """Where each of N images lies.

    It holds no open file, so that processes may be forked from it or be sent it.

    Attributes:
        tars: paths of the tar files.
        versions: of each tar when its members were listed, as `version` tells.
        tar: int64 (N,): in which of them.
        start: int64 (N,): at which byte.
        size: int64 (N,): how many bytes.
    """

    tars: tuple[str, ...]
    versions: tuple[tuple[int, int], ...]
    tar: np.ndarray
    start: np.ndarray
    size: np.ndarray

    def chosen(self, indices: np.ndarray) -> Packed:
        """Those of some images."""
        return Packed(self.tars, self.versions, self.tar[indices], self.start[indices], self.size[indices])

    def read(self, index: int) -> bytes:
        """An image's file.

        Raises:
            OSError: its tar is gone or cannot be read.
            ChangedError: its tar was replaced, cut off or written to.
        """
        number = self.tar[index]
        path, size = self.tars[number], int(self.size[index])
        tar = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if version(os.fstat(tar)) != self.versions[number]:
                raise ChangedError(path)
            content = os.pread(tar, size, int(self.start[index]))
        finally:
            os.close(tar)
        if len(content) < size:
            raise ChangedError(path)
        return content
