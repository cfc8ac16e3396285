"""The durable truth: records of trials and evaluations under one root.

    <root>/trials/<key>/        config.json, history.jsonl, checkpoints/, record.json | failure.json;
                                arrays.npz of toy networks
    <root>/evaluations/<key>/   config.json, arrays.npz, record.json
    <root>/studies/<study>@<recipe>/report/

`record.json` is written last and atomically: where it is, the work is done. It carries a checksum of itself and of
the files beside it. What does not meet its checksum, or says what `orchestrator.records` does not take, counts as not
there: it is kept in <root>/damaged/ and its work is done again. A store may be anybody's: nothing is ever unpickled
from it, and no link leads a write out of it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from orchestrator import records
from orchestrator.errors import AblateError, SpecError
from orchestrator.records import Arrays, Record, RecordError
from orchestrator.untrusted import UntrustedFolder
from trainers.files import (
    HISTORY,
    MODEL,
    PATIENCE_S,
    SPECTRA,
    STATES,
    append_line,
    make_folder,
    read_regular,
    remove_partial,
    sha256_of,
    write_atomically,
)
from trainers.locations import is_local
from trainers.node_cache import cache_folder

ARRAYS = "arrays.npz"
RECORD = "record.json"
NOTES = "notes.jsonl"
_WEIGHTS = f"checkpoints/{MODEL}"
_SEALED = (ARRAYS, HISTORY, SPECTRA, _WEIGHTS)
"""Files whose checksums a record keeps, where they exist."""
Guard = Callable[[], None]
_Read = TypeVar("_Read")
_AT_ONCE = 32
_Version = tuple[int, object]
"""A file's size, and what changes when it is written anew."""
_KEY = re.compile(r"[0-9a-f]{20}")


class Store(UntrustedFolder):
    """A store in a folder that every worker sees, or at a URL."""

    def __init__(self, root: Path | str) -> None:
        super().__init__(root)
        self._verified: dict[Path, tuple[_Version, str]] = {}  # and the checksum of what was read

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            AblateError: the root can't be written.
        """
        try:
            if not is_local(self.root):
                self._try_to_write()
                return
            self.root.mkdir(parents=True, exist_ok=True)
            self.refuse_links()
            for folder in ("trials", "evaluations", "studies"):
                (self.root / folder).mkdir(exist_ok=True)
        except OSError as error:
            raise SpecError(f"--store {self.root}: cannot be written: {error.strerror or error}") from None
        if not os.access(self.root / "trials", os.W_OK):
            raise SpecError(
                f"--store {self.root}: cannot be written: a read-only file system, or another's folder; make it "
                "writable, and the same command goes on"
            )

    def _try_to_write(self) -> None:
        """Folders of an object store need no making; keys, bucket and endpoint are found out now."""
        probe = self.root / ".probes" / secrets.token_hex(8)
        write_atomically(probe, "written")
        probe.unlink()

    def require(self) -> None:
        """Refuse a store that isn't there, for verbs that only look.

        Raises:
            SpecError: the root holds no store.
        """
        if not (self.root / "trials").is_dir():
            raise SpecError(f"--store {self.root}: no store there; `ablate run` makes one")
        self.refuse_links()

    # --- places ---

    @property
    def is_remote(self) -> bool:
        """Whether it is at a URL."""
        return not is_local(self.root)

    @property
    def on_this_machine(self) -> Path:
        """Where a database can lie: the store itself, or, where that is at a URL, a folder of the user's cache."""
        if is_local(self.root):
            return self.root
        return cache_folder() / "stores" / hashlib.sha256(str(self.root).encode()).hexdigest()[:16]

    def trial_directory(self, key: str) -> Path:
        return self.inside(self.root / "trials" / _checked(key))

    def evaluation_directory(self, key: str) -> Path:
        return self.inside(self.root / "evaluations" / _checked(key))

    def report_directory(self, study_at_recipe: str) -> Path:
        return self.inside(self.root / "studies" / study_at_recipe / "report")

    def each(self, read: Callable[[str], _Read], keys: Iterable[str]) -> list[_Read]:
        """What is read of each key, in their order; of a store at a URL many at once: each takes some round trips."""
        if is_local(self.root):
            return [read(key) for key in keys]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(read, keys))

    # --- trials ---

    def trial_record(self, key: str) -> Record | None:
        """The record of a finished trial; None where there is none, or one that is not to be believed."""
        return _told(self._record(self.trial_directory(key)))

    def trial_failure(self, key: str) -> Record | None:
        """Why the last attempt failed, at its training or, where there is a record, at an evaluation."""
        return self.read(self.trial_directory(key) / "failure.json", records.failure)

    def history(self, key: str) -> list[dict[str, float]]:
        """One entry per finished epoch, of a running trial too; none where the file was altered since."""
        path = self.trial_directory(key) / HISTORY
        record = self._record(path.parent)
        if record is not None and not self._meets(path, record):
            return []
        found: list[dict[str, float]] | None = self.read(path, records.history, records.parse_lines)
        return found or []

    def note(self, key: str, text: str) -> None:
        """Keep a sentence about a trial that people should know and that did not end it."""
        append_line(self.trial_directory(key) / NOTES, json.dumps({"when": _now(), "text": text}))

    def notes(self, key: str) -> list[dict[str, str]]:
        """What was noted of a trial: `when` and `text`."""
        try:
            lines = read_regular(self.trial_directory(key) / NOTES, records.MOST_BYTES).splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with suppress(RecordError):  # cut off by a kill
                found.append(records.note(records.parse(line)))
        return found

    def begin_trial(self, key: str, config: Record) -> Path:
        """The trial's directory, with its configuration; what an earlier attempt left is kept to resume from.

        To be called under the trial's lease: files that a killed process left half written are removed.
        """
        directory = self.trial_directory(key)
        make_folder(directory)
        for folder in (directory, self.inside(directory / "checkpoints")):
            remove_partial(folder)
        _write(directory / "config.json", config)
        self.clear_failure(key)
        return directory

    def commit_trial(
        self, key: str, record: Record, arrays: Arrays | None = None, guard: Guard = lambda: None
    ) -> None:
        """Keep a finished trial's record, last; its states are needed no more.

        Args:
            guard: asked just before each file appears; raises where this process must not write.
        """
        directory = self.trial_directory(key)
        if arrays is not None:
            _write_arrays(directory / ARRAYS, arrays, guard)
        _write(directory / RECORD, _sealed(record, directory), guard)
        for state in (directory / "checkpoints").glob(STATES):
            state.unlink(missing_ok=True)
        self.clear_failure(key)

    def trial_arrays(self, key: str) -> Arrays | None:
        return self._arrays(self.trial_directory(key))

    def has_arrays(self, key: str) -> bool:
        """Whether a run of toy networks still has what its figure is drawn from."""
        directory = self.trial_directory(key)
        record = self._record(directory)
        return (
            (directory / ARRAYS).is_file() and record is not None and self._meets(directory / ARRAYS, record)
        )

    def clear_failure(self, key: str) -> None:
        (self.trial_directory(key) / "failure.json").unlink(missing_ok=True)

    def fail_trial(self, key: str, failure: Record) -> None:
        directory = self.trial_directory(key)
        make_folder(directory)
        _write(directory / "failure.json", failure)

    def trial_records(self) -> Iterator[Record]:
        """Every finished trial."""
        for directory in sorted((self.root / "trials").glob("*")):
            if _KEY.fullmatch(directory.name) and (record := self._record(directory)):
                yield record

    def status(self) -> Iterator[Record]:
        """One line for every trial that was ever begun: its state, and why it failed."""
        for directory in sorted((self.root / "trials").glob("*")):
            key = directory.name
            config = self.read(directory / "config.json", _mapping) if _KEY.fullmatch(key) else None
            if config is None:
                continue
            record, failure, history = self.trial_record(key), self.trial_failure(key), self.history(key)
            state = "failed" if failure else "finished" if record else "unfinished"
            loss = history[-1].get("loss") if history else None
            yield {
                "trial": key,
                "recipe": record.get("recipe", "") if record else "",
                "head": _head(config),
                "seed": config.get("seed"),
                "state": state,
                "epochs": f"{len(history)}/{config['epochs']}" if "epochs" in config else "",
                "loss": "" if loss is None else f"{loss:.4f}",
                "seconds": f"{record['seconds']:.1f}" if record else "",
                "error": failure["error"] if failure else None,
            }

    def seeds(self) -> set[int]:
        """Of every training that was ever begun, whatever its study and recipe."""
        keys = [path.name for path in (self.root / "trials").glob("*") if _KEY.fullmatch(path.name)]
        configs = self.each(lambda key: self.read(self.trial_directory(key) / "config.json", _mapping), keys)
        seeds = [config.get("seed") for config in configs if config and "cases" not in config]
        return {seed for seed in seeds if type(seed) is int and 0 <= seed < 2**31}

    def seconds_per_epoch(self, recipe: str) -> list[float]:
        """Of every finished trial of a recipe, whatever its overrides."""
        return [
            record["seconds"] / record["epochs"]
            for record in self.trial_records()
            if record["kind"] == "trial" and record.get("recipe") == recipe
        ]

    def evaluation_seconds(self, recipe: str) -> list[float]:
        """Of every evaluation of a recipe's trials."""
        trials = {record["key"] for record in self.trial_records() if record.get("recipe") == recipe}
        folders = sorted((self.root / "evaluations").glob("*"))
        found = [self._record(folder, evaluation=True) for folder in folders if _KEY.fullmatch(folder.name)]
        return [record["seconds"] for record in found if record and record.get("trial") in trials]

    # --- evaluations ---

    def evaluations_of(self, trial: str) -> list[str]:
        """Keys of all finished evaluations of a trial, those that no study asks for any more included."""
        folders = sorted((self.root / "evaluations").glob("*"))
        keys = [folder.name for folder in folders if _KEY.fullmatch(folder.name)]
        records = self.each(lambda key: self._record(self.evaluation_directory(key), evaluation=True), keys)
        return [
            key for key, record in zip(keys, records, strict=True) if record and record.get("trial") == trial
        ]

    def evaluation_record(self, key: str) -> Record | None:
        directory = self.evaluation_directory(key)
        record = self._record(directory, evaluation=True)
        if record is not None and not self._meets(directory / ARRAYS, record):
            self.damage[directory / RECORD] = f"its {ARRAYS} is missing or was altered"
            return None
        return _told(record)

    def evaluation_arrays(self, key: str) -> Arrays | None:
        return self._arrays(self.evaluation_directory(key), evaluation=True)

    def commit_evaluation(
        self, key: str, config: Record, record: Record, arrays: Arrays, guard: Guard = lambda: None
    ) -> None:
        """Keep a measurement, its record last. Args: as of `commit_trial`."""
        directory = self.evaluation_directory(key)
        make_folder(directory)
        remove_partial(directory)
        _write(directory / "config.json", config, guard)
        _write_arrays(directory / ARRAYS, arrays, guard)
        _write(directory / RECORD, _sealed(record, directory), guard)

    # --- what is not to be believed ---

    def _record(self, directory: Path, evaluation: bool = False) -> Record | None:
        """A record that meets its checksum, and is one of what its folder is named for."""

        def checked(raw: Any) -> Record:
            if not isinstance(raw, dict) or raw.get("checksum") != _checksum(raw):
                raise RecordError("was altered, or is of an older version: it does not meet its checksum")
            record = records.evaluation(raw) if evaluation else records.trial(raw)
            if record["key"] != directory.name:
                raise RecordError(f"is of another trial or evaluation, {record['key']}")
            return record

        return self.read(directory / RECORD, checked)

    def _meets(self, path: Path, record: Record) -> bool:
        """Whether a file beside a record is the one that it was written with."""
        sealed = record.get("files", {}).get(path.name)
        try:
            version = _version(path)
        except OSError:
            return sealed is None
        if sealed is None:
            return True
        if version and version[0] == sealed["bytes"]:
            seen = self._verified.get(path)
            if seen is None or seen[0] != version:
                seen = self._verified[path] = (version, sha256_of(path))
            if seen[1] == sealed["sha256"]:
                return True
        self.damage[path] = "was altered: it does not meet the checksum in its record"
        return False

    def _arrays(self, directory: Path, evaluation: bool = False) -> Arrays | None:
        path = directory / ARRAYS
        record = self._record(directory, evaluation)
        if record is not None and not self._meets(path, record):
            return None
        return self.read(path, records.arrays, bytes, records.MOST_ARRAY_BYTES)


def _mapping(raw: Any) -> Record:
    if not isinstance(raw, dict):
        raise RecordError("not a configuration")
    return raw


def _head(config: Record) -> str:
    """What a configuration trains, in a word or two; whoever wrote it."""
    cases, head = config.get("cases"), config.get("head")
    if isinstance(cases, list):
        return f"{len(cases)} toy networks"
    return str(head.get("kind")) if isinstance(head, dict) else ""


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise AblateError(f"key {key[:40]!r}: takes 20 hexadecimal digits, as `ablate status` shows them")
    return key


def _sealed(record: Record, directory: Path) -> Record:
    """A record with the checksums of the files beside it, and its own."""
    files = {}
    for name in _SEALED:
        path = directory / name
        if path.is_file():
            files[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    record = {**records.plain(record), "files": files}
    return {**record, "checksum": _checksum(record)}


def _told(record: Record | None) -> Record | None:
    """A record as it was given: what guards it is no part of what it says."""
    return record and {name: value for name, value in record.items() if name not in ("files", "checksum")}


def _checksum(record: Record) -> str:
    content = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _version(path: Path) -> _Version | None:
    """None of what is no regular file."""
    status = path.stat()
    if not is_local(path):
        told = cast(Any, status).as_info()
        return status.st_size, told.get("ETag") or told.get("LastModified") or told.get("created")
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _write_arrays(path: Path, arrays: Arrays, guard: Guard) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue(), guard, PATIENCE_S)


def _write(path: Path, content: Record, guard: Guard = lambda: None) -> None:
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n", guard, PATIENCE_S)
