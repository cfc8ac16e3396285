"""The durable truth: records of trials and evaluations under one root.

    <root>/trials/<key>/        config.json, history.jsonl, checkpoints/, record.json | failure.json;
                                arrays.npz of toy networks
    <root>/evaluations/<key>/   config.json, arrays.npz, record.json
    <root>/studies/<study>@<recipe>/report/

`record.json` is written last and atomically: where it is, the work is done. It carries a checksum of itself and of
the files beside it. What does not meet its checksum counts as not there: it is kept in <root>/damaged/ and its
work is done again. Nothing is ever unpickled from a store.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import AblateError, SpecError
from trainers.files import HISTORY, MODEL, SPECTRA, STATES, sha256_of, write_atomically

Record = dict[str, Any]
Arrays = dict[str, np.ndarray]
ARRAYS = "arrays.npz"
RECORD = "record.json"
NOTES = "notes.jsonl"
_WEIGHTS = f"checkpoints/{MODEL}"
_SEALED = (ARRAYS, HISTORY, SPECTRA, _WEIGHTS)
"""Files whose checksums a record keeps, where they exist."""
_KEY = re.compile(r"[0-9a-f]{20}")


class Store:
    """A store on a path that every worker sees.

    Attributes:
        damage: what was met and not believed since this object was made, and why; `set_aside_damaged` moves it.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(os.path.abspath(os.path.expanduser(root)))
        self.damage: dict[Path, str] = {}
        self._verified: dict[Path, tuple[int, int, str]] = {}  # size, time and checksum of what was read

    def prepare(self) -> None:
        """Make the folders.

        Raises:
            AblateError: the root can't be written.
        """
        try:
            for folder in ("trials", "evaluations", "studies"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(f"--store {self.root}: cannot be written: {error.strerror}") from None

    def require(self) -> None:
        """Refuse a store that isn't there, for verbs that only look.

        Raises:
            SpecError: the root holds no store.
        """
        if not (self.root / "trials").is_dir():
            raise SpecError(f"--store {self.root}: no store there; `ablate run` makes one")

    # --- places ---

    def trial_directory(self, key: str) -> Path:
        return self.root / "trials" / _checked(key)

    def evaluation_directory(self, key: str) -> Path:
        return self.root / "evaluations" / _checked(key)

    def report_directory(self, study_at_recipe: str) -> Path:
        return self.root / "studies" / study_at_recipe / "report"

    # --- trials ---

    def trial_record(self, key: str) -> Record | None:
        """The record of a finished trial; None where there is none, or one that is not to be believed."""
        return _told(self._record(self.trial_directory(key)))

    def trial_failure(self, key: str) -> Record | None:
        """Why the last attempt failed, at its training or, where there is a record, at an evaluation."""
        failure = self._json(self.trial_directory(key) / "failure.json")
        return failure if failure and "error" in failure else None

    def history(self, key: str) -> list[dict[str, float]]:
        """One entry per finished epoch, of a running trial too; none where the file was altered since."""
        path = self.trial_directory(key) / HISTORY
        record = self._record(path.parent)
        if not path.exists() or (record is not None and not self._meets(path, record)):
            return []
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError:
            self.damage[path] = "not valid JSON lines"
            return []

    def note(self, key: str, text: str) -> None:
        """Keep a sentence about a trial that people should know and that did not end it."""
        line = json.dumps({"when": _now(), "text": text})
        with (self.trial_directory(key) / NOTES).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def notes(self, key: str) -> list[dict[str, str]]:
        """What was noted of a trial: `when` and `text`."""
        try:
            lines = (self.trial_directory(key) / NOTES).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        found = []
        for line in lines:
            try:
                note = json.loads(line)
                found.append({"when": str(note["when"]), "text": str(note["text"])})
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill
        return found

    def begin_trial(self, key: str, config: Record) -> Path:
        """The trial's directory, with its configuration; what an earlier attempt left is kept to resume from."""
        directory = self.trial_directory(key)
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / "config.json", config)
        self.clear_failure(key)
        return directory

    def commit_trial(self, key: str, record: Record, arrays: Arrays | None = None) -> None:
        directory = self.trial_directory(key)
        if arrays is not None:
            _write_arrays(directory / ARRAYS, arrays)
        _write(directory / RECORD, _sealed(record, directory))
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
        directory.mkdir(parents=True, exist_ok=True)
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
            config = self._json(directory / "config.json") if _KEY.fullmatch(key) else None
            if config is None:
                continue
            record, failure, history = self.trial_record(key), self.trial_failure(key), self.history(key)
            state = "failed" if failure else "finished" if record else "unfinished"
            yield {
                "trial": key,
                "recipe": record["recipe"] if record else "",
                "head": config["head"]["kind"]
                if "head" in config
                else f"{len(config['cases'])} toy networks",
                "seed": config["seed"],
                "state": state,
                "epochs": f"{len(history)}/{config['epochs']}" if "epochs" in config else "",
                "loss": f"{history[-1]['loss']:.4f}" if history else "",
                "seconds": f"{record['seconds']:.1f}" if record else "",
                "error": failure["error"] if failure else None,
            }

    def seconds_per_epoch(self, recipe: str) -> list[float]:
        """Of every finished trial of a recipe, whatever its overrides."""
        return [
            record["seconds"] / record["epochs"]
            for record in self.trial_records()
            if record.get("recipe") == recipe
        ]

    def evaluation_seconds(self, recipe: str) -> list[float]:
        """Of every evaluation of a recipe's trials."""
        trials = {record["key"] for record in self.trial_records() if record.get("recipe") == recipe}
        folders = sorted((self.root / "evaluations").glob("*"))
        records = [record for folder in folders if (record := self._record(folder))]
        return [record["seconds"] for record in records if record.get("trial") in trials]

    # --- evaluations ---

    def evaluation_record(self, key: str) -> Record | None:
        return _told(self._record(self.evaluation_directory(key), whole=True))

    def evaluation_arrays(self, key: str) -> Arrays | None:
        return self._arrays(self.evaluation_directory(key))

    def commit_evaluation(self, key: str, config: Record, record: Record, arrays: Arrays) -> None:
        directory = self.evaluation_directory(key)
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / "config.json", config)
        _write_arrays(directory / ARRAYS, arrays)
        _write(directory / RECORD, _sealed(record, directory))

    # --- what is not to be believed ---

    def set_aside_damaged(self) -> list[str]:
        """Move what was met and is damaged into <root>/damaged/; a sentence for each. Nothing is deleted."""
        sentences = []
        for path, reason in sorted(self.damage.items()):
            relative = path.relative_to(self.root)
            when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
            place = self.root / "damaged" / "-".join((*relative.parts, when))
            try:
                place.parent.mkdir(exist_ok=True)
                path.rename(place)
            except FileNotFoundError:  # another command was faster
                continue
            except OSError as error:
                raise SpecError(f"--store {self.root}: cannot be written: {error.strerror}") from None
            sentences.append(
                f"{relative}: {reason}; set aside as damaged/{place.name}, its work is done again"
            )
        self.damage.clear()
        return sentences

    def _record(self, directory: Path, whole: bool = False) -> Record | None:
        """A record that meets its checksum; `whole`: and whose arrays do."""
        path = directory / RECORD
        record = self._json(path)
        if record is None:
            return None
        if record.get("checksum") != _checksum(record):
            self.damage[path] = "was altered, or is of an older version: it does not meet its checksum"
            return None
        if whole and not self._meets(directory / ARRAYS, record):
            self.damage[path] = f"its {ARRAYS} is missing or was altered"
            return None
        return record

    def _meets(self, path: Path, record: Record) -> bool:
        """Whether a file beside a record is the one that it was written with."""
        sealed = record.get("files", {}).get(path.name)
        try:
            status = path.stat()
        except OSError:
            return sealed is None
        if sealed is None:
            return True
        if status.st_size == sealed["bytes"]:
            seen = self._verified.get(path)
            if seen is None or seen[:2] != (status.st_size, status.st_mtime_ns):
                seen = self._verified[path] = (status.st_size, status.st_mtime_ns, sha256_of(path))
            if seen[2] == sealed["sha256"]:
                return True
        self.damage[path] = "was altered: it does not meet the checksum in its record"
        return False

    def _arrays(self, directory: Path) -> Arrays | None:
        path = directory / ARRAYS
        record = self._record(directory)
        if record is not None and not self._meets(path, record):
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            self.damage[path] = "not readable as arrays"
            return None

    def _json(self, path: Path) -> Record | None:
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SpecError(f"--store: {path}: {error.strerror}") from None
        except (ValueError, RecursionError):
            self.damage[path] = "not valid JSON"
            return None
        if not isinstance(record, dict):
            self.damage[path] = "not a record"
            return None
        return record


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
    record = {**record, "files": files}
    return {**record, "checksum": _checksum(record)}


def _told(record: Record | None) -> Record | None:
    """A record as it was given: what guards it is no part of what it says."""
    return record and {name: value for name, value in record.items() if name not in ("files", "checksum")}


def _checksum(record: Record) -> str:
    content = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _write_arrays(path: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def _write(path: Path, content: Record) -> None:
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
