"""The contrastive trainer: views, forward, head, loss, step, report. Read it top to bottom.

The same function runs in one process or on every rank of a process group. A global batch gives the
same training on any number of workers, up to the order of float summation: draws are made per
global batch, batch norm is synchronised, and the loss has the gradient of the full matrix.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from trainers import checkpoint
from trainers.backbones import build_backbone
from trainers.checkpoint import DamagedError, Progress, StateWriter
from trainers.collapse import CollapseWatch
from trainers.config import LossConfig, SubvectorHead, TrialConfig
from trainers.context import Interrupted, TrialContext
from trainers.data.corrupt import CorruptImages
from trainers.data.datasets import Dataset, load_dataset
from trainers.data.loader import ViewLoader
from trainers.distributed import at_own_pace, from_rank_0, gather_rows, synchronise_batch_norm
from trainers.files import HISTORY, MODEL, PATIENCE_S, SPECTRA, write_atomically
from trainers.gradient_cache import backward_in_parts
from trainers.heads import build_head
from trainers.lars import build_optimizer
from trainers.losses import contrastive_loss
from trainers.pace import Pace
from trainers.precision import autocast
from trainers.randomness import generator
from trainers.schedules import learning_rate


class NonFiniteLossError(Exception):
    """The loss stopped being a number; says at which step."""


class TrainingMemoryError(Exception):
    """A step needed more memory than there is; says which step, and what takes less."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training leaves: last epoch's metrics, one history entry per epoch, the model's file.

    `dataset_fingerprint` is that of `Dataset.fingerprint` on rank 0 and empty on the others. `corrupt_images` are
    those that could not be decoded, by their paths below the data's root.
    """

    metrics: dict[str, float]
    history: list[dict[str, float]]
    model_path: Path
    dataset_fingerprint: str
    corrupt_images: list[str]


class Outputs(NamedTuple):
    """What the model says of a batch.

    Attributes:
        z1, z2: embeddings of both views, (B, d) or (B, G, d).
        logits: of the online probe, (B, classes); (B, 0) without one.
        r1: representation of view 1, (B, D), detached.
    """

    z1: torch.Tensor
    z2: torch.Tensor
    logits: torch.Tensor
    r1: torch.Tensor


class Losses(NamedTuple):
    """Of one batch, on this rank; the mean over ranks is that of the global batch.

    Attributes:
        total: what is minimised: the contrastive loss and the online probe's.
        contrastive: detached.
        correct: how many images the online probe got right.
    """

    total: torch.Tensor
    contrastive: torch.Tensor
    correct: torch.Tensor


class ContrastiveModel(nn.Module):
    """Backbone, head and the online linear probe: two views in, embeddings and the probe's logits out.

    The probe reads the detached representation of view 1, so it sends no gradient into the backbone.
    """

    def __init__(self, config: TrialConfig, channels: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = build_backbone(config.backbone, channels, generator(config.seed, "backbone"))
        dim = config.backbone.representation_dim
        self.head = build_head(config.head, dim, config.seed)
        self.online_probe = nn.Linear(dim, num_classes) if config.online_probe else None
        if self.online_probe is not None:
            bound = dim**-0.5
            draws = generator(config.seed, "probe")
            nn.init.uniform_(self.online_probe.weight, -bound, bound, generator=draws)
            nn.init.uniform_(self.online_probe.bias, -bound, bound, generator=draws)

    def forward(self, view1: torch.Tensor, view2: torch.Tensor, step: int) -> Outputs:
        """(B, C, H, W) twice; random heads draw by the step."""
        r1, r2 = self.backbone(view1), self.backbone(view2)  # (B, D)
        with parametrize.cached():  # the orthogonal head's matrix exponential, once for both views
            z1, z2 = self.head(r1, step), self.head(r2, step)  # (B, d)
        r1 = r1.detach()
        logits = r1.new_empty(len(r1), 0) if self.online_probe is None else self.online_probe(r1).float()
        return Outputs(z1, z2, logits, r1)


def objective(outputs: Outputs, labels: torch.Tensor, config: LossConfig) -> Losses:
    """The losses of what the model says of images with labels (B,), -1 where they have none."""
    contrastive = contrastive_loss(outputs.z1, outputs.z2, config)
    logits = outputs.logits
    if not logits.shape[1]:
        return Losses(contrastive, contrastive.detach(), torch.zeros((), device=labels.device))
    probe_loss = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    correct = (logits.argmax(1) == labels).sum()
    return Losses(contrastive + probe_loss / _mean_labelled(labels), contrastive.detach(), correct)


def train(config: TrialConfig, context: TrialContext, dataset: Dataset | None = None) -> TrainingResult:
    """Train one trial from its newest state, or from the start, to its end.

    A state is saved after each epoch, every `context.state_seconds` within one, and when asked to stop. A trial
    whose finished model is there is not trained again.

    Args:
        dataset: the trial's data, if they are loaded already.

    Raises:
        NonFiniteLossError: the loss became infinite or NaN.
        trainers.context.Interrupted: `context.stopping` became true; the state is saved.
        TrainingMemoryError: a step needed more memory than there is.
        trainers.checkpoint.StateError: a state could not be written.
        OSError: the history or the model could not be written.
        trainers.data.datasets.DataError: the data is not where the config says.
        ValueError: the global batch does not divide over the workers and the parts of the gradient cache,
            or exceeds the data.
    """
    pieces = context.world_size * config.gradient_cache
    if config.batch_size % pieces:
        raise ValueError(
            f"batch_size: got {config.batch_size}, takes a multiple of workers x gradient_cache = {pieces}"
        )
    make_reproducible(config, context)
    if isinstance(config.head, SubvectorHead) and not config.backbone.ends_in_identity_shortcut:
        context.note(
            "r[d0:] receives no gradient: the last stage has one block, without the identity shortcut that DirectCLR "
            "trains it through (Figure 10)"
        )
    states = context.directory / "checkpoints"
    if finished := _finished(states, config, context):
        return finished
    dataset = _loaded(config, context, dataset)
    loader = ViewLoader(
        dataset, config, context.rank, context.world_size, context.device, context.loader_processes
    )
    model = build_model(config, dataset, context)
    optimizer = build_optimizer(config.optimizer, model.parameters())
    scaler = torch.amp.GradScaler(context.device.type, enabled=config.precision == "fp16")
    trial = config.model_dump(mode="json")
    progress = _resume(states, model, optimizer, scaler, context)
    progress.workers = context.world_size
    writer = StateWriter(states, context.guard)
    parallel = _parallelise(model, context)
    cast = partial(autocast, config.precision, context.device)
    watch = CollapseWatch(config, context, not model.head.evaluates_to_r, progress.spectra, progress.partial)
    corrupt = CorruptImages(
        dataset.train, dataset.root, context.corrupt_images, context.note, progress.corrupt
    )
    pace = Pace(context)

    with writer, _naming_the_step(progress):
        while progress.epoch < config.epochs:
            started = time.perf_counter() - progress.seconds
            totals = _Totals(context, progress.partial)
            first = progress.step - progress.epoch * loader.steps_per_epoch
            batches = enumerate(loader.epoch(progress.epoch, first), start=first)
            for batch, (view1, view2, labels) in batches:
                corrupt.add(loader.corrupt)
                lr = learning_rate(
                    progress.step,
                    base_lr=config.optimizer.lr,
                    epochs=config.epochs,
                    steps_per_epoch=loader.steps_per_epoch,
                    warmup_epochs=config.schedule.warmup_epochs,
                    final_factor=config.schedule.final_factor,
                )
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.zero_grad(set_to_none=True)
                compare = partial(objective, labels=labels, config=config.loss)
                if config.gradient_cache > 1:
                    outputs, losses = backward_in_parts(
                        parallel, (view1, view2), progress.step, config.gradient_cache, compare, scaler, cast
                    )
                else:
                    with cast():
                        outputs = parallel(view1, view2, progress.step)
                        losses = compare(outputs)
                    scaler.scale(losses.total).backward()
                scaler.step(optimizer)
                scaler.update()
                totals.add(batch, losses, labels)
                watch.see(outputs.r1, outputs.z1)
                progress.step += 1
                context.beat(f"step {progress.step}")
                wish = pace.wish()
                if wish != "go on" and batch + 1 < loader.steps_per_epoch:
                    progress.seconds = time.perf_counter() - started
                    progress.corrupt = corrupt.met()
                    progress.partial = totals.state() | watch.state()
                    if context.rank == 0:
                        writer.save(checkpoint.snapshot(trial, progress, model, optimizer, scaler))
                    pace.saved()
                    if wish == "stop":
                        _stop(progress, writer, context)
            metrics = totals.reduce(context, progress.step - loader.steps_per_epoch)
            metrics |= watch.measure(progress.epoch)
            metrics |= {"epoch": progress.epoch, "lr": lr}
            progress.corrupt = corrupt.met()
            if progress.corrupt:
                metrics["corrupt_images"] = len(progress.corrupt)
            seconds = time.perf_counter() - started
            metrics |= {
                "seconds": seconds,
                "images_per_second": loader.steps_per_epoch * config.batch_size / seconds,
            }
            progress.epoch += 1
            progress.history.append(metrics)
            progress.seconds, progress.partial = 0.0, {}
            if context.rank == 0:
                _write_course(context, progress.history, progress.spectra)
                writer.save(checkpoint.snapshot(trial, progress, model, optimizer, scaler))
            pace.saved()
            context.report(metrics)
            if wish == "stop" and progress.epoch < config.epochs:
                _stop(progress, writer, context)

    fingerprint = dataset.fingerprint() if context.rank == 0 else ""
    result = TrainingResult(
        progress.history[-1], progress.history, states / MODEL, fingerprint, progress.corrupt
    )
    if context.rank == 0:
        told = {
            "history": result.history,
            "spectra": progress.spectra,
            "fingerprint": fingerprint,
            "corrupt": progress.corrupt,
        }
        checkpoint.save_model(states, trial, model, told, context.guard)
    return result


@contextmanager
def _naming_the_step(progress: Progress) -> Iterator[None]:
    """What ends the training inside gets a note: "step N"."""
    try:
        yield
    except Exception as error:
        told: Exception = error
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error):
            told = TrainingMemoryError(
                f"out of memory at step {progress.step}; lower batch_size or raise gradient_cache"
            )
        told.add_note(f"step {progress.step}")
        if told is error:
            raise
        raise told from error


def _stop(progress: Progress, writer: StateWriter, context: TrialContext) -> NoReturn:
    writer.wait()
    if context.world_size > 1:
        torch.distributed.barrier()  # a rank that ends may take the others with it
    raise Interrupted(f"stopped at step {progress.step}")


def _finished(states: Path, config: TrialConfig, context: TrialContext) -> TrainingResult | None:
    """The result of a training that ended and was not recorded, or whose record was lost; from its model's file.

    As rank 0 finds it: what a network file system shows the others may be older.
    """
    told = None
    if context.rank == 0:
        try:
            told = checkpoint.told_of_model(states)
        except DamagedError as error:
            checkpoint.set_aside(states / MODEL)
            context.note(f"{MODEL} {error}; set aside, the trial is trained again")
    told = from_rank_0(told, context.device)
    if told is None or len(told["history"]) != config.epochs:
        return None
    history = told["history"]
    if context.rank == 0:
        _write_course(context, history, told["spectra"])
    return TrainingResult(history[-1], history, states / MODEL, told["fingerprint"], told["corrupt"])


def _loaded(config: TrialConfig, context: TrialContext, given: Dataset | None) -> Dataset:
    """The data on every rank; shards may have to come from afar first, which may take hours."""

    def beat(where: str) -> None:
        context.beat(where)
        if context.rank == 0 and context.stopping():
            raise Interrupted(f"stopped {where}")

    def load() -> Dataset:
        if given is not None:
            return given
        return load_dataset(config.data, beat, context.note if context.rank == 0 else lambda text: None)

    return at_own_pace(load, beat, context.device)


def _resume(
    states: Path,
    model: ContrastiveModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    context: TrialContext,
) -> Progress:
    """Every rank goes on from the state that rank 0 chose."""
    if context.rank == 0:
        progress = checkpoint.load_state(states, model, optimizer, scaler, context.note)
        if progress.workers not in (0, context.world_size):
            context.note(
                f"from step {progress.step} on with {context.world_size} worker(s), before with {progress.workers}; "
                "the global batch is the same"
            )
        from_rank_0(progress.step, context.device)
        return progress
    step = from_rank_0(None, context.device)
    return checkpoint.load_same_state(states, step, model, optimizer, scaler)


def build_model(config: TrialConfig, dataset: Dataset, context: TrialContext) -> ContrastiveModel:
    """The untrained model of a trial on its device, in its precision and memory layout."""
    model = ContrastiveModel(config, dataset.channels, dataset.num_classes)
    if config.precision == "float64":
        model = model.double()
    if context.world_size > 1:
        synchronise_batch_norm(model, context.device.type)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    return model.to(context.device).to(memory_format=layout)


def load_model(path: Path, config: TrialConfig, dataset: Dataset, context: TrialContext) -> ContrastiveModel:
    """A finished model, in evaluation mode."""
    model = build_model(config, dataset, context)
    tensors, _ = checkpoint.read(path)
    model.load_state_dict(tensors)
    return model.eval()


def make_reproducible(config: TrialConfig, context: TrialContext) -> None:
    """Set what a trial's numbers depend on for this process: threads, deterministic kernels, no TF32.

    For training and for evaluation alike.
    """
    torch.set_num_threads(context.threads)
    torch.use_deterministic_algorithms(config.deterministic)
    # filling fresh memory guards against reading it uninitialised; it costs time and changes no result
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not config.deterministic
    torch.backends.cudnn.allow_tf32 = False  # precision: float32 means float32
    torch.backends.cuda.matmul.allow_tf32 = False


def _parallelise(model: ContrastiveModel, context: TrialContext) -> nn.Module:
    if context.world_size == 1:
        return model
    device_ids = [context.device.index] if context.device.type == "cuda" else None
    # synchronised batch norm already keeps buffers equal on all ranks
    return DistributedDataParallel(model, device_ids=device_ids, forward_sync_buffers=False)


def _mean_labelled(labels: torch.Tensor) -> torch.Tensor:
    """Labelled images per rank, averaged over ranks: the divisor that makes the rank mean a global mean."""
    count = (labels >= 0).sum().to(torch.float32)
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(count)
        count /= torch.distributed.get_world_size()
    return count.clamp(min=1)


def _write_course(
    context: TrialContext, history: list[dict[str, float]], spectra: list[dict[str, Any]]
) -> None:
    """What of a training people look at while it goes on, a line for each epoch."""
    for name, entries in ((HISTORY, history), (SPECTRA, spectra)):
        if entries:
            lines = "".join(json.dumps(entry) + "\n" for entry in entries)
            write_atomically(context.directory / name, lines, context.guard, PATIENCE_S)


class _Totals:
    """One epoch's sums, kept on the device so that no step waits for the host."""

    def __init__(self, context: TrialContext, before: dict[str, torch.Tensor]) -> None:
        """Args: before: of `state`, of as many ranks as there are now or another number; or empty."""
        self._context = context
        # contrastive loss, correct, labelled; the first step of the epoch whose loss was not finite; batches
        self.sums = torch.zeros(3, dtype=torch.float64, device=context.device)
        self.first_bad = torch.full((), torch.inf, dtype=torch.float64, device=context.device)
        self.batches = 0
        if "sums" not in before:
            return
        sums, self.batches = before["sums"], int(before["batches"])
        if len(sums) == context.world_size:
            self.sums += sums[context.rank].to(context.device)
        elif context.rank == 0:  # another number of ranks: the loss is summed as a mean over them
            ranks = torch.tensor([context.world_size / len(sums), 1, 1], dtype=torch.float64)
            self.sums += (sums.sum(0).cpu() * ranks).to(context.device)
        self.first_bad = before["first_bad"].to(context.device)

    def state(self) -> dict[str, torch.Tensor]:
        """What a state within an epoch keeps: sums (W, 3), first_bad (), batches (). Called by all ranks."""
        sums, first_bad = self.sums[None], self.first_bad.clone()
        if self._context.world_size > 1:
            sums = gather_rows(sums)
            torch.distributed.all_reduce(first_bad, op=torch.distributed.ReduceOp.MIN)
        return {"sums": sums, "first_bad": first_bad, "batches": torch.tensor(self.batches)}

    def add(self, batch: int, losses: Losses, labels: torch.Tensor) -> None:
        counts = losses.correct.double(), (labels >= 0).sum().double()
        self.sums += torch.stack([losses.contrastive.double(), *counts])
        self.batches += 1
        bad_here = torch.where(torch.isfinite(losses.total.detach()), torch.inf, float(batch)).double()
        self.first_bad = torch.minimum(self.first_bad, bad_here)

    def reduce(self, context: TrialContext, first_step: int) -> dict[str, float]:
        """The epoch's means over all ranks; raises on every rank alike if the loss was not finite on one."""
        if context.world_size > 1:
            torch.distributed.all_reduce(self.sums)
            torch.distributed.all_reduce(self.first_bad, op=torch.distributed.ReduceOp.MIN)
        if bool(torch.isfinite(self.first_bad)):
            raise NonFiniteLossError(
                f"loss is not finite at step {first_step + int(self.first_bad)}; "
                "lower optimizer.lr or raise loss.temperature"
            )
        loss, correct, labelled = self.sums.tolist()
        metrics = {"loss": loss / (self.batches * context.world_size)}
        if labelled:
            metrics["online_top1"] = 100 * correct / labelled
        return metrics
