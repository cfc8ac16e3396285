"""What is listed in a schema and nowhere else is an error, never another member's behaviour."""

from __future__ import annotations

import ast
import typing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

import orchestrator
import trainers
from orchestrator import exhibits
from orchestrator.packing import Node, Packing
from orchestrator.report import figures
from orchestrator.report.claims import findings
from orchestrator.report.figures import drawing
from orchestrator.spec import EvaluationKind, Evaluations, Resources
from tests.trainers.tiny import tiny_trial
from trainers import config
from trainers.backbones import build_backbone
from trainers.config import (
    Config,
    LinearProbe,
    LossConfig,
    SubvectorHead,
    ToyConfig,
    canonical_head,
    canonical_probe,
)
from trainers.data.datasets import check_data, load_dataset
from trainers.data.loader import ViewLoader
from trainers.evaluate import _MEASURES, evaluate
from trainers.evaluate.linear_probe import linear_probe
from trainers.heads import build_head
from trainers.lars import Lars, build_optimizer
from trainers.losses import contrastive_loss
from trainers.portable import save_backbone
from trainers.precision import autocast
from trainers.theory.contrast import Pairs
from trainers.theory.draws import initial_weights

FILES = [
    file
    for package in (orchestrator, trainers)
    for file in sorted(Path(next(iter(package.__path__))).rglob("*.py"))
]


class Unlisted(Config):
    """A member that a schema could have, with every field that a default branch might ask it for."""

    kind: str = "unlisted"
    test: str = "unlisted"
    name: str = "unlisted"
    d0: int = 4
    cells: tuple[str, ...] = ("a", "b")
    metric: str = "knn/top1"
    margin: float = 1.0
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    representation_dim: int = 8
    zero_init_residual: bool = True


UNLISTED: Any = Unlisted()
IMAGES = torch.zeros(4, 6), torch.tensor([0, 1, 0, 1])


def unlisted(model: Config, **field: str) -> Any:
    """A configuration with a value that its schema does not list."""
    return model.model_copy(update=field)


def toys(**field: str) -> Any:
    return unlisted(ToyConfig(dim=4, noisy_dims=2), **field)


def probe(**field: str) -> Callable[[], object]:
    return lambda: linear_probe(*IMAGES, *IMAGES, 2, unlisted(LinearProbe(epochs=1), **field), 0)


def lars_step() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    Lars([weight], lr=0.1, norm="unlisted").step()  # type: ignore[arg-type]


def first_batch(**field: str) -> object:
    trial = tiny_trial()
    data = load_dataset(trial.data)
    return next(ViewLoader(data, unlisted(trial, augment=unlisted(trial.augment, **field))).epoch(0))


DISPATCHERS: dict[str, Callable[[], object]] = {
    "head, built": lambda: build_head(UNLISTED, 8, 0),
    "head, canonical": lambda: canonical_head(UNLISTED, 8, 8, LossConfig()),
    "backbone": lambda: build_backbone(UNLISTED, 3, torch.Generator()),
    "ResNet": lambda: unlisted(config.ResNet(kind="resnet18"), kind="unlisted").representation_dim,
    "optimizer": lambda: build_optimizer(UNLISTED, [torch.nn.Parameter(torch.ones(2, 2))]),
    "norm of LARS": lars_step,
    "loss": lambda: contrastive_loss(*2 * [torch.ones(3, 4)], unlisted(LossConfig(), kind="unlisted")),
    "augmentation": lambda: first_batch(mode="unlisted"),
    "precision": lambda: autocast("unlisted", torch.device("cpu")),  # type: ignore[arg-type]
    "data, checked": lambda: check_data(unlisted(tiny_trial().data, kind="unlisted", root="/"), 8),
    "data, read": lambda: load_dataset(unlisted(tiny_trial().data, kind="unlisted")),
    "evaluation": lambda: list(evaluate(tiny_trial(), torch.nn.Identity(), None, [UNLISTED], "cpu")),
    "solver of a probe": probe(solver="unlisted"),
    "schedule of a probe": probe(schedule="unlisted"),
    "epoch of a probe": probe(select="unlisted"),
    "protocol, canonical": lambda: canonical_probe(unlisted(LinearProbe(), protocol="unlisted")),
    "solver, canonical": lambda: canonical_probe(unlisted(LinearProbe(), solver="unlisted")),
    "loss of toy networks": lambda: Pairs(*2 * [torch.ones(1, 2, 3)], "unlisted"),  # type: ignore[arg-type]
    "start of toy networks": lambda: initial_weights(toys(initial="unlisted"), 0, range(1)),
    "file format": lambda: save_backbone(
        SimpleNamespace(backbone={}, trial=None),  # type: ignore[arg-type]
        Path("unused"),
        "unlisted",  # type: ignore[arg-type]
    ),
    "placement": lambda: Packing([Node(2, 0), Node(2, 0)]).place(
        unlisted(Resources(workers=2), placement="unlisted")
    ),
    "cells of what is shown": lambda: exhibits.cells_of(UNLISTED),
    "figure, filled": lambda: figures._fill(UNLISTED, None),  # type: ignore[arg-type]
    "figure, drawn": lambda: drawing._draw(UNLISTED, pd.DataFrame()),
    "claim": lambda: findings.find(UNLISTED, 2 * [SimpleNamespace(label="a", repeat="seed")], 0.2),  # type: ignore[list-item]
}


@pytest.mark.parametrize("what", DISPATCHERS)
def test_an_unlisted_member_is_an_error_that_names_it(what: str) -> None:
    with pytest.raises((AssertionError, KeyError, ValueError), match=r"(?i)unlisted"):
        DISPATCHERS[what]()


def members(union: Any) -> list[type[Config]]:
    return list(typing.get_args(typing.get_args(union)[0]))


SMALLEST: dict[type[Config], Config] = {
    config.MlpHead: config.MlpHead(kind="mlp", out_dim=4),
    config.LinearHead: config.LinearHead(kind="linear", out_dim=4),
    config.LowRankHead: config.LowRankHead(kind="low_rank", d0=3),
    config.SubvectorHead: SubvectorHead(kind="subvector", d0=3),
    config.DropoutHead: config.DropoutHead(kind="dropout", d0=3),
    config.ResNet: config.ResNet(kind="resnet18"),
    config.Lars: config.Lars(kind="lars", lr=0.1),
    config.Sgd: config.Sgd(kind="sgd", lr=0.1),
    config.AdamW: config.AdamW(kind="adamw", lr=0.1),
}


def smallest(member: type[Config]) -> Any:
    (kind,) = typing.get_args(member.model_fields["kind"].annotation)[:1]
    return SMALLEST.get(member) or member.model_validate({"kind": kind})


def test_every_listed_head_backbone_optimizer_and_evaluation_has_its_own_implementation() -> None:
    heads = {type(build_head(smallest(member), 8, 0)) for member in members(config.HeadConfig)}
    assert len(heads) == len(members(config.HeadConfig))
    backbones = {
        type(build_backbone(smallest(member), 3, torch.Generator()))
        for member in members(config.BackboneConfig)
    }
    assert len(backbones) == len(members(config.BackboneConfig))
    optimizers = {
        type(build_optimizer(smallest(member), [torch.nn.Parameter(torch.ones(2))]))
        for member in members(config.OptimizerConfig)
    }
    assert len(optimizers) == len(members(config.OptimizerConfig))
    assert set(_MEASURES) == set(members(config.EvaluationConfig))
    kinds = {smallest(member).kind for member in members(config.EvaluationConfig)}
    assert set(typing.get_args(EvaluationKind)) == kinds == set(Evaluations.model_fields)


def test_every_match_ends_in_an_error() -> None:
    matches = [
        (file, node)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Match)
    ]
    assert len(matches) > 15
    assert [f"{file}:{node.lineno}" for file, node in matches if not _raises(node.cases[-1])] == []


def _raises(case: ast.match_case) -> bool:
    if not isinstance(case.pattern, ast.MatchAs) or case.pattern.pattern or case.guard:
        return False
    last = case.body[-1]
    if isinstance(last, ast.Raise):
        return True
    call = last.value if isinstance(last, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "assert_never"
