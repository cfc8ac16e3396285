"""Checkpoint files from anywhere: measured under a recipe's protocols, or written for others to load."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from orchestrator import yaml_files
from orchestrator.errors import AblateError, SpecError
from orchestrator.library import load_recipe
from orchestrator.messages import did_you_mean, shorten, validate
from orchestrator.records import Arrays
from orchestrator.spec import EvaluationKind, Recipe
from orchestrator.store import ARRAYS, Store
from trainers import EVALUATION_VERSION
from trainers.config import Dimension, EvaluationConfig, HeadConfig, NoHead, SubvectorHead, TrialConfig
from trainers.context import TrialContext
from trainers.contrastive import make_reproducible
from trainers.data.datasets import DataError, Dataset, check_data, load_dataset
from trainers.evaluate import evaluate
from trainers.files import MODEL, write_atomically
from trainers.layouts import Checkpoint, CheckpointError, load_checkpoint
from trainers.portable import build_model, save_backbone, torchvision_name

HeadName = Literal["none", "linear", "mlp", "subvector"]
FileFormat = Literal["torchvision", "safetensors"]
_BEGINNING_OF_A_KEY = re.compile(r"[0-9a-f]{6,20}")


def measure(
    name: str,
    recipe_name: str,
    store: Store,
    *,
    sets: tuple[str, ...] = (),
    head: HeadName | None = None,
    d0: str | None = None,
    kinds: str | None = None,
    device: str = "auto",
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint, training nothing but probes.

    The recipe says on which data and how; the file itself which head it has. Ours also says its seed and
    precision, so that a finished trial is measured as `ablate run` would.

    Args:
        name: a file, or the key of a finished trial in the store.
        head: instead of the file's own: `none` and `subvector` look at the representation.
        d0: of `--head subvector`; otherwise of the subvector probe. A number, or a fraction of D.
        kinds: of evaluations, with commas; default: all that apply.
        device: auto, cpu or cuda.
        out: folder for metrics.json, and for an arrays.npz of each evaluation.

    Returns:
        What was measured and how; `evaluations` maps each kind to its protocol, metrics and seconds, `failed` those
        that could not be made to their reasons.

    Raises:
        SpecError: the file, the recipe, the data or a flag can't be used, or no evaluation can be made.
        AblateError: every probe diverged, or the device has too little memory.
    """
    source = load_recipe(recipe_name, sets)
    with _for_people(""):
        checkpoint = load_checkpoint(find_checkpoint(name, store))
    recipe = _with_head(source.recipe, checkpoint, head, d0)
    trial = _trial(recipe, checkpoint)
    protocols = _protocols(recipe, kinds)
    place = _device(device)
    if out is not None:
        _make_folder(out)
    with _for_people(f"recipe {recipe.name}: "):
        check_data(trial.data, batch_size=1)
        dataset = load_dataset(trial.data)
    report: dict[str, Any] = {
        "checkpoint": str(checkpoint.path),
        "layout": checkpoint.layout,
        "epoch": checkpoint.epoch,
        "head": trial.head.model_dump(mode="json"),
        "backbone": trial.backbone.model_dump(mode="json"),
        "recipe": source.label,
        "data": dataset.name,
        "seed": trial.seed,
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
        "numerics_version": EVALUATION_VERSION,
        "evaluations": {},
        "failed": {},
    }
    _measure(checkpoint, trial, recipe, dataset, protocols, place, report, out)
    return report


def export(name: str, file_format: FileFormat, out: Path, store: Store) -> dict[str, Any]:
    """Write the backbone of a finished trial, or of a checkpoint file, for others to load.

    Returns:
        The checkpoint, the file written, its format and number of tensors, and the network of
        torchvision's that takes it (None for safetensors).

    Raises:
        SpecError: there is no such checkpoint, it doesn't fit the format, or `out` can't be written.
    """
    if not out.name or out.is_dir():
        raise SpecError(f"--out {out}: is a folder, takes a file to write")
    with _for_people(""):
        checkpoint = load_checkpoint(find_checkpoint(name, store))
        network = torchvision_name(checkpoint) if file_format == "torchvision" else None
    try:
        save_backbone(checkpoint, out, file_format)
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written: {error.strerror}") from None
    return {
        "checkpoint": str(checkpoint.path),
        "file": str(out),
        "format": file_format,
        "network": network,
        "tensors": len(checkpoint.backbone),
    }


def find_checkpoint(name: str, store: Store) -> Path:
    """A file by its path, or a finished trial's model by its key, of which six digits are enough if unique.

    Raises:
        SpecError: the key is of no finished training, or of several.
    """
    path = Path(name).expanduser()
    if not _BEGINNING_OF_A_KEY.fullmatch(name) or path.is_file():
        return path
    keys = sorted(found.name for found in (store.root / "trials").glob(f"{name}*"))
    if not keys:
        raise SpecError(
            f"{name}: no such file, and no trial of the store {store.root} has a key that begins so"
        )
    if len(keys) > 1:
        raise SpecError(
            f"{name}: got the beginning of {len(keys)} keys ({', '.join(keys[:3])}, …), takes one's"
        )
    record = store.trial_record(keys[0])
    if record is None:
        raise SpecError(f"trial {keys[0]}: not finished; `ablate run` takes it up again")
    model = store.trial_directory(keys[0]) / "checkpoints" / MODEL
    if record["kind"] != "trial":
        raise SpecError(f"trial {keys[0]}: it is of toy networks, which leave no checkpoint")
    return model


# --- what is measured -----------------------------------------------------------------------------


def _with_head(recipe: Recipe, checkpoint: Checkpoint, head: HeadName | None, d0: str | None) -> Recipe:
    """The recipe with the head that is measured, and d0 for the subvector probe."""
    dimension = None if d0 is None else _dimension(d0)
    changed: dict[str, Any] = {"head": _head(checkpoint, head, dimension)}
    if dimension is not None:
        probe = recipe.evaluations.subvector_probe.model_copy(update={"d0": dimension})
        changed["evaluations"] = recipe.evaluations.model_copy(update={"subvector_probe": probe})
    return recipe.model_copy(update=changed)


def _dimension(text: str) -> Dimension:
    raw = {"kind": "subvector", "d0": yaml_files.parse(text, "--d0")}
    return validate(SubvectorHead, raw, "--d0").d0


def _head(checkpoint: Checkpoint, wanted: HeadName | None, d0: Dimension | None) -> HeadConfig:
    own = checkpoint.head_config
    if wanted is None or wanted == own.kind != "subvector":
        return own
    if wanted == "none":
        return NoHead(kind="none")
    if wanted == "subvector":
        if d0 is not None:
            return SubvectorHead(kind="subvector", d0=d0)
        if isinstance(own, SubvectorHead):
            return own
        raise SpecError("--head subvector: lacks its d0, takes --d0 with it, such as --d0 360/2048")
    raise SpecError(f"--head {wanted}: {checkpoint.path} has {own.kind}; takes that, none or subvector")


def _trial(recipe: Recipe, checkpoint: Checkpoint) -> TrialConfig:
    """The configuration that names data, backbone, head, seed and precision of a measurement."""
    try:
        trial = recipe.trial(seed=0)
    except ValueError as error:
        raise SpecError(f"--d0: {str(error).removeprefix('head.d0: ')}") from None
    if checkpoint.trial is None:
        return trial
    own = checkpoint.trial.backbone.model_dump(exclude={"zero_init_residual"})
    for field, value in trial.backbone.model_dump(exclude={"zero_init_residual"}).items():
        if own.get(field) != value:
            raise SpecError(
                f"{checkpoint.path}: backbone.{field}: its trial has {shorten(own.get(field))}, recipe "
                f"{recipe.name} {shorten(value)}; takes a recipe with the trial's backbone"
            )
    return checkpoint.trial.model_copy(
        update={"head": trial.head, "data": trial.data, "augment": trial.augment}
    )


def _protocols(recipe: Recipe, kinds: str | None) -> dict[EvaluationKind, EvaluationConfig]:
    known: tuple[EvaluationKind, ...] = get_args(EvaluationKind)
    wanted = known if kinds is None else tuple(dict.fromkeys(kinds.split(",")))
    protocols: dict[EvaluationKind, EvaluationConfig] = {}
    for kind in wanted:
        if kind not in known:
            hint = did_you_mean(kind, list(known))
            raise SpecError(
                f"--evaluations: got {shorten(kind)}{hint}; takes {', '.join(known)}, with commas"
            )
        try:
            protocol = recipe.evaluation(kind)
        except ValueError as error:
            raise SpecError(str(error)) from None
        if protocol is not None:
            protocols[kind] = protocol
        elif kinds is not None:
            raise SpecError(
                f"--evaluations {kind}: has no subvector, takes --d0 with it, such as --d0 360/2048"
            )
    return protocols


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise SpecError("--device cuda: there is none here; takes auto or cpu")
    return torch.device(name)


def _measure(
    checkpoint: Checkpoint,
    trial: TrialConfig,
    recipe: Recipe,
    dataset: Dataset,
    protocols: dict[EvaluationKind, EvaluationConfig],
    device: torch.device,
    report: dict[str, Any],
    out: Path | None,
) -> None:
    """Add each evaluation to the report as soon as it is there, and write it."""
    resources = recipe.resources
    make_reproducible(trial, TrialContext(Path(), device=device, threads=resources.cpus_per_worker))
    with _for_people(""):
        backbone, head = build_model(checkpoint, trial, dataset.channels, device)
        evaluations: Sequence[EvaluationConfig] = list(protocols.values())
        waiting, errors = dict(protocols), list[Exception]()

        def failed(error: Exception) -> None:
            kind = next(iter(waiting))
            del waiting[kind]
            errors.append(error)
            report["failed"][kind] = str(error)

        clock = time.perf_counter()
        results = evaluate(
            trial,
            backbone,
            head,
            evaluations,
            device,
            resources.loader_processes,
            dataset,
            recipe.limits.corrupt_images,
            failed=failed,
        )
        for result in results:
            kind = next(iter(waiting))
            protocol = waiting.pop(kind)
            report["evaluations"][kind] = {
                "protocol": protocol.model_dump(mode="json"),
                "metrics": result.metrics,
                "seconds": time.perf_counter() - clock,  # the first also computes the features
                **({"corrupt_images": result.corrupt_images} if result.corrupt_images else {}),
            }
            if out is not None:
                _make_folder(out / kind)
                _write(out, kind, result.arrays, report)
            clock = time.perf_counter()
        if errors and not report["evaluations"]:
            raise errors[0]


def _write(out: Path, kind: str, arrays: Arrays, report: dict[str, Any]) -> None:
    try:
        np.savez_compressed(out / kind / ARRAYS, **arrays)  # type: ignore[arg-type]
        write_atomically(out / "metrics.json", json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written: {error.strerror}") from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"--out {folder}: cannot be written: {error.strerror}") from None


@contextmanager
def _for_people(where: str) -> Iterator[None]:
    """Errors of files, data and probes as those that are shown in one line."""
    try:
        yield
    except CheckpointError as error:
        raise SpecError(str(error)) from None
    except (DataError, ValueError) as error:
        raise SpecError(f"{where}{error}") from None
    except FloatingPointError as error:
        raise AblateError(str(error)) from None
    except torch.OutOfMemoryError:
        raise AblateError("--device cuda: out of memory; takes cpu, or smaller images") from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        raise AblateError(f"{where or 'checkpoint: '}does not fit into memory") from None
