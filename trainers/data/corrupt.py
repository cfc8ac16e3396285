"""Images that cannot be decoded: counted, named, and at most so many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

import torch

from trainers.data.formats import DataError, Split
from trainers.distributed import gather_rows, world


class CorruptImages:
    """Those of one split that were met so far, by their paths below the data's root.

    Args:
        known: met before a restart.
        limit: more raise.
        note: told of each once, on rank 0.
    """

    NAMED = 10
    """So many are named in a sentence; all are in the record."""

    def __init__(
        self,
        split: Split,
        root: object,
        limit: int,
        note: Callable[[str], None],
        known: Sequence[str] = (),
    ) -> None:
        self._split, self._root, self._limit, self._note = split, root, limit, note
        self._names = set(known)
        self._here: set[int] = set()

    def add(self, indices: Iterable[int]) -> None:
        """Met by this rank: their numbers in the split.

        Raises:
            DataError: they are more than the limit.
        """
        if not self._here.issuperset(indices):
            self._here.update(indices)
            self._refuse_more(self._names | {self._name(index) for index in self._here})

    def met(self) -> list[str]:
        """Sorted, of all ranks; called by all alike.

        Raises:
            DataError: together they are more than the limit.
        """
        indices = self._gathered() if self._split.paths is not None else set()
        new = {self._name(index) for index in indices} - self._names
        if new and world()[0] == 0:
            self._note(f"{self._told(new)}; another of the same class stands in for each")
        self._names |= new
        self._refuse_more(self._names)
        return sorted(self._names)

    def _gathered(self) -> set[int]:
        if world()[1] == 1:
            return self._here
        device = torch.device("cuda") if torch.distributed.get_backend() == "nccl" else torch.device("cpu")
        # the limit is the most that a rank can have
        mine = torch.full((1, self._limit + 1), -1, dtype=torch.int64, device=device)
        mine[0, : len(self._here)] = torch.tensor(sorted(self._here), dtype=torch.int64)
        return set(gather_rows(mine).flatten().tolist()) - {-1}

    def _name(self, index: int) -> str:
        assert self._split.paths is not None
        return os.path.relpath(self._split.paths[index], str(self._root))

    def _told(self, names: set[str]) -> str:
        some = ", ".join(sorted(names)[: self.NAMED])
        rest = f" and {len(names) - self.NAMED} more" if len(names) > self.NAMED else ""
        return f"{len(names)} image{'s' if len(names) > 1 else ''} cannot be decoded ({some}{rest})"

    def _refuse_more(self, names: set[str]) -> None:
        if len(names) > self._limit:
            raise DataError(
                f"{self._root}: {self._told(names)}, takes at most limits.corrupt_images = {self._limit}; replace or "
                "remove them, or raise the limit"
            )
