"""The durable truth: records of trials and evaluations under one root.

    <root>/trials/<key>/        config.json, history.jsonl, checkpoints/, record.json | failure.json;
                                arrays.npz of toy networks
    <root>/evaluations/<key>/   config.json, arrays.npz, record.json
    <root>/studies/<study>@<recipe>/report/

`record.json` is written last and atomically: where it is, the work is done. Nothing is ever
unpickled from a store.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.errors import AblateError, SpecError
from trainers.files import HISTORY, STATE, write_atomically

Record = dict[str, Any]
Arrays = dict[str, np.ndarray]
ARRAYS = "arrays.npz"
_KEY = re.compile(r"[0-9a-f]{20}")


class Store:
    """A store on a path that every worker sees."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(os.path.abspath(os.path.expanduser(root)))

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
        path = self.trial_directory(key) / "record.json"
        record = _read(path)
        if record is not None and "kind" not in record:
            raise AblateError(f"{path}: not a record; remove it to have its work done again")
        return record

    def trial_failure(self, key: str) -> Record | None:
        """Why the last attempt failed, at its training or, where there is a record, at an evaluation."""
        return _read(self.trial_directory(key) / "failure.json")

    def history(self, key: str) -> list[dict[str, float]]:
        """One entry per finished epoch, of a running trial too."""
        path = self.trial_directory(key) / HISTORY
        if not path.exists():
            return []
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError:
            raise AblateError(f"{path}: not valid JSON lines; remove its folder to train it again") from None

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
        _write(directory / "record.json", record)
        (directory / "checkpoints" / STATE).unlink(missing_ok=True)
        self.clear_failure(key)

    def trial_arrays(self, key: str) -> Arrays | None:
        return _read_arrays(self.trial_directory(key) / ARRAYS)

    def has_arrays(self, key: str) -> bool:
        """Whether a run of toy networks still has what its figure is drawn from."""
        return (self.trial_directory(key) / ARRAYS).is_file()

    def clear_failure(self, key: str) -> None:
        (self.trial_directory(key) / "failure.json").unlink(missing_ok=True)

    def fail_trial(self, key: str, failure: Record) -> None:
        directory = self.trial_directory(key)
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / "failure.json", failure)

    def trial_records(self) -> Iterator[Record]:
        """Every finished trial."""
        for directory in sorted((self.root / "trials").glob("*")):
            if _KEY.fullmatch(directory.name) and (record := _read(directory / "record.json")):
                yield record

    def status(self) -> Iterator[Record]:
        """One line for every trial that was ever begun: its state, and why it failed."""
        for directory in sorted((self.root / "trials").glob("*")):
            key = directory.name
            config = _read(directory / "config.json") if _KEY.fullmatch(key) else None
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
        records = [record for folder in folders if (record := _read(folder / "record.json"))]
        return [record["seconds"] for record in records if record.get("trial") in trials]

    # --- evaluations ---

    def evaluation_record(self, key: str) -> Record | None:
        return _read(self.evaluation_directory(key) / "record.json")

    def evaluation_arrays(self, key: str) -> Arrays | None:
        return _read_arrays(self.evaluation_directory(key) / ARRAYS)

    def commit_evaluation(self, key: str, config: Record, record: Record, arrays: Arrays) -> None:
        directory = self.evaluation_directory(key)
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / "config.json", config)
        _write_arrays(directory / ARRAYS, arrays)
        _write(directory / "record.json", record)


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise AblateError(f"key {key[:40]!r}: takes 20 hexadecimal digits, as `ablate status` shows them")
    return key


def _read(path: Path) -> Record | None:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SpecError(f"--store: {path}: {error.strerror}") from None
    try:
        record = json.loads(text)
    except ValueError:
        raise AblateError(f"{path}: not valid JSON; remove it to have its work done again") from None
    if not isinstance(record, dict):
        raise AblateError(f"{path}: not a record; remove it to have its work done again")
    return record


def _read_arrays(path: Path) -> Arrays | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, zipfile.BadZipFile):
        raise AblateError(f"{path}: not readable; remove its folder to have its work done again") from None


def _write_arrays(path: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def _write(path: Path, content: Record) -> None:
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
