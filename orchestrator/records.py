"""What records, failures and histories may say, whoever wrote them: files of a store and tags of MLflow's alike.

Who writes a record writes its checksum too, so types and ranges are looked at where it is read, once. What comes out
of here needs no further care but that of any text, to be escaped where it is shown.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Record = dict[str, Any]
Arrays = dict[str, np.ndarray]

MOST_BYTES = 2**28
"""Of a JSON file; ours have at most some megabytes, those of many toy networks."""
MOST_ARRAY_BYTES = 2**32
"""Of all arrays of a file, unpacked: a few kilobytes can be packed gigabytes."""
LARGEST = 1e100
"""Of finite numbers: nothing that is measured comes near, and sums and axes of larger ones overflow."""
_DEEPEST = 20
_LATEST_YEAR = 2999


class RecordError(ValueError):
    """Not what may stand there; the message goes after a name, as in "record.json: seconds: takes a number"."""


def _time(stamp: str) -> str:
    try:
        when = datetime.fromisoformat(stamp)
    except ValueError:
        raise ValueError("takes a time in ISO 8601") from None
    if not 1970 < when.year <= _LATEST_YEAR:
        raise ValueError(f"takes a time from 1971 to {_LATEST_YEAR}")
    return stamp


def _drawable(value: float) -> float:
    if math.isfinite(value) and abs(value) > LARGEST:
        raise ValueError(f"takes a number up to {LARGEST:g}, or none that is finite")
    return value


_Key = Annotated[str, Field(pattern=r"^[0-9a-f]{20}$")]
_Text = Annotated[str, Field(max_length=100_000)]
_Stamp = Annotated[str, Field(max_length=40), AfterValidator(_time)]
_Metric = Annotated[str, Field(pattern=r"^[a-z0-9_]+(/[a-z0-9_]+)*$", max_length=100)]
_Value = Annotated[float, AfterValidator(_drawable)]
_Metrics = dict[_Metric, _Value]
_Count = Annotated[int, Field(ge=0, lt=2**53)]


class _Checked(BaseModel):
    """Further fields are let through: they are shown as text, if at all."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Environment(_Checked):
    executor: _Text | None = None
    commit: _Text | None = None
    code: _Text | None = None
    versions: dict[_Text, _Text] = {}
    peak_memory_bytes: _Count | None = None


class _Dataset(_Checked):
    name: _Text
    fingerprint: _Text
    signature: _Text | None = None


class _Seal(_Checked):
    sha256: str
    bytes: _Count


class _Common(_Checked):
    key: _Key
    started: _Stamp
    finished: _Stamp
    seconds: float = Field(ge=0, le=1e12)
    numerics_version: _Count
    environment: _Environment
    recipe: _Text = ""
    files: dict[str, _Seal] = {}


class _Trial(_Common):
    kind: Literal["trial"]
    epochs: int = Field(ge=1, lt=2**31)
    metrics: _Metrics
    config: Record
    dataset: _Dataset


class _Toy(_Common):
    kind: Literal["toy"]
    cases: list[dict[_Metric, Annotated[list[_Value], Field(min_length=1)]]]
    config: Record


class _Evaluation(_Common):
    kind: Literal["evaluation"]
    trial: _Key | None = None
    metrics: _Metrics
    evaluation: Record


class _Failure(_Checked):
    error: _Text
    type: _Text = ""
    when: _Stamp | Literal[""] | None = None
    run: _Text = ""
    evaluations: dict[_Key, _Text] = {}


class _Note(_Checked):
    when: _Stamp
    text: _Text


class _Epoch(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: _Metrics
    epoch: float = Field(ge=0, lt=2**31)


_TRIAL: TypeAdapter[Any] = TypeAdapter(Annotated[_Trial | _Toy, Field(discriminator="kind")])
_EVALUATION, _FAILURE, _NOTE = TypeAdapter(_Evaluation), TypeAdapter(_Failure), TypeAdapter(_Note)
_HISTORY = TypeAdapter(list[_Epoch])


def parse(text: str | bytes) -> Any:
    """JSON as plain data that is not deep and holds no lone surrogates, which no file takes.

    Raises:
        RecordError: it is not.
    """
    try:
        return plain(json.loads(text))
    except RecordError:
        raise
    except (ValueError, RecursionError):
        raise RecordError("not valid JSON") from None


def parse_lines(text: str | bytes) -> list[Any]:
    """As `parse`, of JSON lines."""
    return [parse(line) for line in text.splitlines()]


def trial(raw: Any) -> Record:
    """The record of a training or of toy networks, as it is, once all that is read of it is known to be good.

    Raises:
        RecordError: it is not. So do the functions below.
    """
    return _as_is(_TRIAL, raw)


def evaluation(raw: Any) -> Record:
    """The record of an evaluation."""
    return _as_is(_EVALUATION, raw)


def failure(raw: Any) -> Record:
    """Why an attempt failed."""
    return _as_is(_FAILURE, raw)


def note(raw: Any) -> dict[str, str]:
    """A sentence about a trial."""
    checked = _as_is(_NOTE, raw)
    return {"when": checked["when"], "text": checked["text"]}


def history(raw: list[Any]) -> list[dict[str, float]]:
    """An entry per epoch."""
    _as_is(_HISTORY, raw)
    return raw


def arrays(content: bytes) -> Arrays:
    """Arrays of numbers out of an .npz file.

    Raises:
        RecordError: it is none, holds anything else, or unpacks to more than `MOST_ARRAY_BYTES`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            packed = sum(member.file_size for member in archive.infolist())
        if packed > MOST_ARRAY_BYTES:
            raise RecordError(f"unpacks to {packed} bytes, takes at most {MOST_ARRAY_BYTES}")
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            loaded = dict(found)
    except RecordError:
        raise
    except Exception:  # whatever numpy, zipfile and the decompressors stumble over
        raise RecordError("not readable as arrays") from None
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in "biuf" for array in loaded.values()):
        raise RecordError("holds something else than arrays of numbers")
    if any(
        array.size and np.abs(array[np.isfinite(array)]).max(initial=0) > LARGEST for array in loaded.values()
    ):
        raise RecordError(f"holds numbers beyond {LARGEST:g}")
    return loaded


def _as_is(adapter: TypeAdapter[Any], raw: Any) -> Any:
    try:
        adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        raise RecordError(f"{where}: {first['msg']}" if where else first["msg"]) from None
    return raw


def plain(value: Any, depth: int = _DEEPEST) -> Any:
    """A copy of plain data whose texts hold no lone surrogates, such as names of files that are not UTF-8.

    Raises:
        RecordError: it is nested too deep.
    """
    if isinstance(value, float):
        return value
    if not depth:
        raise RecordError("nested too deep")
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [plain(one, depth - 1) for one in value]
    if isinstance(value, dict):
        return {plain(name, depth): plain(one, depth - 1) for name, one in value.items()}
    return value
