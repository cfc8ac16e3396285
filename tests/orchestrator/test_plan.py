"""Keys, equivalences and what is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import CapacityError, SpecError
from orchestrator.library import load_recipe
from orchestrator.packing import Node
from orchestrator.plan import Job, estimate, jobs, make_plan
from orchestrator.schedule import concurrency
from orchestrator.spec import Resources, evaluation_key, trial_key
from orchestrator.store import Store
from tests.orchestrator.synthetic import bare_record
from trainers.config import LossConfig, ToyRun, TrialConfig, absolute, canonical_head


def key(*sets: str, seed: int = 0) -> str:
    return trial_key(load_recipe("digits", sets).recipe.trial(seed), 1)


def test_ten_cells_of_both_tables_need_six_trainings_a_seed() -> None:
    plan = make_plan(["quickstart"], seeds=(0, 1))
    assert len({(cell.study, cell.cell) for cell in plan.cells()}) == 10
    assert len(plan.trials) == 12
    of = {(cell.name, cell.seed): cell.trial for cell in plan.cells()}
    for one, other in (
        ("table1/directclr", "table2/low_rank_diagonal"),
        ("table1/linear", "table2/trainable"),
        ("table1/none", "table2/none"),
        ("table1/none", "table2/orthogonal"),
    ):
        assert of[one, 0] == of[other, 0]
        assert of[one, 0] != of[one, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("head={kind: low_rank, d0: 45, diagonal: true}", "head={kind: subvector, d0: 360/2048}"),
        ("head={kind: subvector, d0: 1/1}", "head={kind: none}"),
        ("head={kind: subvector, d0: 256}", "head={kind: none}"),
        ("head={kind: low_rank, d0: 256}", "head={kind: none}"),
        ("head={kind: dropout, d0: 2048/2048}", "head={kind: none}"),
        ("head={kind: grouped, groups: 1}", "head={kind: none}"),
        ("head={kind: orthogonal}", "head={kind: none}"),
        ("head={kind: linear}", "head={kind: linear, out_dim: 64}"),
        ("head={kind: mlp}", "head={kind: mlp, hidden_dim: 256, out_dim: 64}"),
        ("head={kind: subvector, d0: 64}", "head={kind: subvector, d0: 1/4}"),
    ],
)
def test_equivalent_configurations_share_one_key(one: str, other: str) -> None:
    assert key(one) == key(other)


ROTATIONS = (
    "{kind: orthogonal}",
    "{kind: low_rank, d0: 1/1}",
    "{kind: dropout, d0: 1/1}",
    "{kind: grouped, groups: 1}",
)


@pytest.mark.parametrize("head", ROTATIONS)
def test_heads_that_are_equal_but_for_rounding_can_be_trained_apart(head: str) -> None:
    apart = "train_equivalents_apart=true"
    assert key(f"head={head}", apart) != key("head={kind: none}", apart) == key("head={kind: none}")


def test_heads_that_are_the_same_arithmetic_share_a_training_even_apart() -> None:
    apart = "train_equivalents_apart=true"
    assert key("head={kind: subvector, d0: 1/1}", apart) == key("head={kind: none}", apart)
    directclr = key("head={kind: subvector, d0: 45}", apart)
    assert key("head={kind: low_rank, d0: 45, diagonal: true}", apart) == directclr


def test_a_loss_that_is_not_declared_to_see_inner_products_alone_has_no_equivalent_heads() -> None:
    new = LossConfig.model_construct(kind="not_declared", temperature=0.1)
    for fields in (
        {"kind": "orthogonal"},
        {"kind": "low_rank", "d0": 8},
        {"kind": "low_rank", "d0": 4, "diagonal": True},
        {"kind": "dropout", "d0": 8},
        {"kind": "grouped", "groups": 1},
    ):
        assert canonical_head(_head(fields), 8, 8, new) == _head(fields)
        assert canonical_head(_head(fields), 8, 8, LossConfig()) != _head(fields)
    assert canonical_head(_head({"kind": "subvector", "d0": "1/1"}), 8, 8, new).kind == "none"


@pytest.mark.parametrize(
    "change",
    [
        "head={kind: subvector, d0: 44}",
        "head={kind: low_rank, d0: 45}",
        "epochs=41",
        "batch_size=256",
        "precision=bf16",
        "optimizer.lr=4.81",
        "loss.temperature=0.2",
        "loss.kind=ntxent",
        "data.train_images=1000",
        "augment.view2.solarize=0.3",
        "deterministic=false",
    ],
)
def test_what_can_change_numbers_changes_the_key(change: str) -> None:
    base = "head={kind: subvector, d0: 45}"
    assert key(base, change) != key(base)


@pytest.mark.parametrize("change", ["resources.loader_processes=3", "data.root=/elsewhere", "title=x"])
def test_placement_and_labels_are_no_part_of_the_key(change: str) -> None:
    assert key(change) == key()
    assert trial_key(load_recipe("digits").recipe.trial(0), 2) != key()


def test_keys_stay_what_they_are() -> None:
    """Golden: a store is found again by a later version, or the change is deliberate."""
    recipe = load_recipe("imagenet").recipe
    config = recipe.trial(0)
    trial = trial_key(config, 1)
    protocol = recipe.evaluation("linear_probe")
    assert protocol is not None
    assert (trial, evaluation_key(config, trial, protocol, 1)) == GOLDEN_KEYS


def test_a_field_that_is_added_with_a_default_leaves_the_keys() -> None:
    class Later(TrialConfig):
        added: int = 3

    config = load_recipe("digits").recipe.trial(0)
    later = Later.model_validate(config.model_dump())
    assert trial_key(later, 1) == trial_key(config, 1)
    assert trial_key(later.model_copy(update={"added": 4}), 1) != trial_key(config, 1)


def test_a_theory_study_is_one_run_under_any_recipe_and_seeds() -> None:
    plans = [make_plan(["theory_augmentation"], recipe, seeds) for recipe, seeds in
             (("digits", (0,)), ("digits", (3, 4)), ("imagenet", None))]  # fmt: skip
    assert len({tuple(plan.trials) for plan in plans}) == 1
    (plan, *_) = plans
    (run,) = plan.trials.values()
    assert isinstance(run, ToyRun)
    cells = plan.cells()
    assert {cell.case for cell in cells} == set(range(len(run.cases)))
    assert {cell.seed for cell in cells} == set(range(run.networks))
    changed = make_plan(["theory_augmentation"], sets=("faithfulness.toy_loss=as_released",))
    (other,) = changed.trials.values()
    assert isinstance(other, ToyRun)
    assert {case.loss for case in other.cases} == {"inner_product"}
    assert changed.trials.keys() != plan.trials.keys()


def test_toy_networks_whose_arrays_are_gone_are_trained_again(tmp_path: Path) -> None:
    plan, store = make_plan(["theory_depth"]), Store(tmp_path)
    (job,) = jobs(plan, store)
    store.begin_trial(job.trial, {})
    store.commit_trial(job.trial, bare_record(job.trial, "toy"), {"0/iterations": np.arange(3)})
    assert jobs(plan, store) == []
    (store.trial_directory(job.trial) / "arrays.npz").unlink()
    assert [one.train for one in jobs(plan, store)] == [True]


def test_cells_of_included_studies_are_checked_at_every_depth(tmp_path: Path) -> None:
    claim = "{name: c, text: T, source: S, test: order, cells: [table1/mlp, table1/nope]}"
    (tmp_path / "inner.yaml").write_text(
        f"name: inner\ntitle: T\nsource: S\ninclude: [table1]\nclaims: [{claim}]\n", encoding="utf-8"
    )
    outer = tmp_path / "outer.yaml"
    outer.write_text("name: outer\ntitle: T\nsource: S\ninclude: [inner]\n", encoding="utf-8")
    with pytest.raises(SpecError, match=r"inner.yaml: claims.c: got cell 'table1/nope'"):
        make_plan([str(outer)], "digits")


def test_the_whole_paper_shares_its_trainings() -> None:
    plan = make_plan(["paper"], "imagenet", (0,))
    trained = [key for key, config in plan.trials.items() if isinstance(config, TrialConfig)]
    assert len(trained) == 16
    assert len(plan.trials) - len(trained) == 4
    of = {cell.name: cell.trial for cell in plan.cells()}
    assert of["d0_sweep/full"] == of["d0_sweep/none"] == of["table1/none"] == of["spectra/none"]
    assert of["dropout/fixed"] == of["subvector_probe/directclr"] == of["table1/directclr"]
    shown = [figure.name for member in plan.studies[0].members for figure in member.figures]
    assert len(shown) == len(set(shown)) == 9
    claims = [claim for member in plan.studies[0].members for claim in member.claims]
    assert {claim.group for claim in claims} == set(range(1, 8))


def test_what_is_measured_on_changes_the_evaluation_and_retrains_nothing() -> None:
    keys = []
    for sets in ((), ("data.validation_images=100",), ("evaluations.knn.k=5",)):
        recipe = load_recipe("digits", sets).recipe
        config, protocol = recipe.trial(0), recipe.evaluation("knn")
        assert protocol is not None
        keys.append((trial_key(config, 1), evaluation_key(config, trial_key(config, 1), protocol, 1)))
    trials, evaluations = zip(*keys, strict=True)
    assert len(set(trials)) == 1
    assert len(set(evaluations)) == 3


GOLDEN_KEYS = ("d5700f291b5bc760888e", "978c75f748b76428fd71")


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_a_fraction_of_d_scales_with_the_backbone(numerator: int, dim: int) -> None:
    found = absolute(f"{min(numerator, 2048)}/2048", dim)
    assert 1 <= found <= dim
    assert abs(found - min(numerator, 2048) / 2048 * dim) <= max(0.5, 1 - min(numerator, 2048) / 2048 * dim)


@given(st.sampled_from(["low_rank", "subvector", "dropout"]), st.integers(1, 64), st.integers(1, 64))
def test_a_canonical_head_is_its_own_canonical_form(kind: str, d0: int, dim: int) -> None:
    head = _head({"kind": kind, "d0": d0})
    if d0 > dim:
        with pytest.raises(ValueError, match="takes at most"):
            canonical_head(head, dim, 8, LossConfig())
        return
    once = canonical_head(head, dim, 8, LossConfig())
    assert canonical_head(once, dim, 8, LossConfig()) == once
    assert (once.kind == "none") == (d0 == dim)


def _head(fields: dict[str, Any]) -> Any:
    from pydantic import TypeAdapter

    from trainers.config import HeadConfig

    return TypeAdapter(HeadConfig).validate_python(fields)


def test_only_what_the_store_lacks_is_planned(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.prepare()
    plan = make_plan(["table1"], "digits", seeds=(0,))
    everything = jobs(plan, store)
    assert len(everything) == 4
    assert all(job.train and len(job.evaluations) == 3 for job in everything)

    done = everything[0]
    store.begin_trial(done.trial, {})
    record = bare_record(done.trial, "trial", recipe="digits", seconds=40.0, epochs=10)
    store.commit_trial(done.trial, record)
    first, *rest = done.evaluations
    measured = bare_record(first, "evaluation", trial=done.trial, seconds=3.0)
    store.commit_evaluation(first, {}, measured, {})
    left = {job.trial: job for job in jobs(plan, store)}
    assert not left[done.trial].train
    assert list(left[done.trial].evaluations) == rest

    cost = estimate(plan, list(left.values()), store, at_once=2)
    assert cost is not None
    # three trainings of 20 epochs at 4 s, and eleven evaluations at 3 s, two trials at once
    assert cost.seconds == (3 * 20 * 4.0 + 11 * 3.0) / 2
    for evaluation in rest:
        store.commit_evaluation(evaluation, {}, bare_record(evaluation, "evaluation"), {})
    assert done.trial not in {job.trial for job in jobs(plan, store)}


def test_a_new_seed_adds_only_its_own_trials(tmp_path: Path) -> None:
    two, three = (make_plan(["quickstart"], seeds=seeds) for seeds in ((0, 1), (0, 1, 2)))
    assert set(two.trials) < set(three.trials)
    assert {three.trials[new].seed for new in set(three.trials) - set(two.trials)} == {2}


def bare_job(footprint: Resources) -> Job:
    return Job("0" * 20, load_recipe("digits").recipe.trial(0), True, {}, footprint, "a trial")


@pytest.mark.parametrize(
    ("nodes", "footprint", "fits"),
    [
        ([Node(2, 0)], Resources(), 2),
        ([Node(2, 0)], Resources(workers=2), 1),
        ([Node(3, 0), Node(3, 0)], Resources(cpus_per_worker=2), 2),
        ([Node(3, 0), Node(3, 0)], Resources(workers=2, cpus_per_worker=2), 1),
        ([Node(16, 8)] * 4, Resources(workers=32, gpus_per_worker=1), 1),
        ([Node(16, 1)], Resources(gpus_per_worker=0.25), 4),
        ([Node(16, 1)], Resources(gpus_per_worker=0.2), 5),
        ([Node(64, 8)], Resources(gpus_per_worker=0.3), 24),
        ([Node(64, 8)], Resources(workers=4, gpus_per_worker=1), 2),
    ],
)
def test_as_many_trials_as_truly_fit(nodes: list[Node], footprint: Resources, fits: int) -> None:
    many = [bare_job(footprint)] * 100
    assert concurrency(many, nodes, None) == fits
    assert concurrency(many, nodes, 1) == 1


@pytest.mark.parametrize(
    "footprint", [Resources(gpus_per_worker=1), Resources(cpus_per_worker=3), Resources(workers=5)]
)
def test_a_trial_that_can_never_fit_is_refused_with_its_footprint(footprint: Resources) -> None:
    with pytest.raises(CapacityError, match=r"a trial needs \d x .*largest node has 2 CPU, 0 GPU"):
        concurrency([bare_job(footprint)], [Node(2, 0), Node(2, 0)], None)


def test_a_trial_read_back_from_its_record_has_the_same_key() -> None:
    config = load_recipe("digits").recipe.trial(3)
    again = TrialConfig.model_validate_json(config.model_dump_json())
    assert trial_key(again, 1) == trial_key(config, 1)


def test_reports_of_changed_recipes_have_a_place_of_their_own() -> None:
    def label(*sets: str) -> str:
        return make_plan(["table1"], "digits", sets=sets).studies[0].recipe

    assert label() == label("epochs=20") == label("data.root=/x", "resources.loader_processes=2") == "digits"
    assert label("optimizer.lr=1") == label("optimizer.lr=1.0") != label()


def test_data_are_looked_for_where_the_user_is_not_where_a_worker_is() -> None:
    assert load_recipe("digits", ("data.root=data",)).recipe.trial(0).data.root == os.path.abspath("data")


@pytest.mark.parametrize("share", ["1.5", "0.5, resources.workers: 2"])
def test_shares_of_accelerators_that_cannot_be_given_are_refused(share: str) -> None:
    sets = tuple(f"resources.{part.strip()}" if ":" not in part else part.strip().replace(": ", "=")
                 for part in f"gpus_per_worker={share}".split(","))  # fmt: skip
    with pytest.raises(SpecError, match="takes a whole number, or a share of one GPU"):
        load_recipe("digits", sets)
