"""Seeds where they decide: real records in a real store, with numbers of a known truth instead of trainings."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from synthetic import fill

from orchestrator import allocation, cli
from orchestrator.allocation import Allocation, allocate
from orchestrator.errors import SpecError
from orchestrator.exhibits import Claim
from orchestrator.plan import Job, Plan, StudyPlan, jobs
from orchestrator.report.claims import judge
from orchestrator.report.claims.outlook import MOST_LOOKS, Outlook, State
from orchestrator.report.frames import Records, cells_frame
from orchestrator.seeds import with_every_seed
from orchestrator.store import Store
from orchestrator.submit import Asked
from orchestrator.until_decided import Budget, End, forecast, parse_budget, until_decided
from trainers.config import TrialConfig

STUDY = """
name: mine
title: Five heads
source: nowhere
seeds: [0, 1]
cells:
  - {name: high, label: high, set: {head: {kind: mlp}}}
  - {name: low, label: low, set: {head: {kind: linear}}}
  - {name: left, label: left, set: {head: {kind: diagonal}}}
  - {name: right, label: right, set: {head: {kind: low_rank, d0: 4}}}
  - {name: same_as_right, label: the same, set: {head: {kind: low_rank, d0: 4}}}
  - {name: unclaimed, label: in no claim, set: {head: {kind: dropout, d0: 4}}}
evaluations: [linear_probe]
claims:
  - {name: clear, text: high exceeds low, source: nowhere, test: order, cells: [high, low]}
  - {name: narrow, text: left exceeds right, source: nowhere, test: order, cells: [left, right]}
"""
HEADS = {"mlp": "high", "linear": "low", "diagonal": "left", "low_rank": "right", "dropout": "unclaimed"}


class Truth:
    """Accuracies of cells with known means and spread, and a runner that writes them as records.

    Attributes:
        fails: (cell, seed) of trainings that fail.
        survive: trainings until the process is killed; None: it is not.
        trained: (cell, seed) of every training in turn.
    """

    def __init__(self, folder: Path, spread: float, gap: float, draw: int = 0) -> None:
        self.store = Store(folder / "store")
        self.study = folder / "mine.yaml"
        self.study.write_text(STUDY)
        self._means = {"high": 90.0, "low": 60.0, "left": 70.0 + gap, "right": 70.0, "unclaimed": 50.0}
        self._spread, self._draw = spread, draw
        self.fails: Collection[tuple[str, int]] = ()
        self.survive: int | None = None
        self.trained: list[tuple[str, int]] = []
        self.said: list[str] = []

    def top1(self, config: TrialConfig) -> float:
        cell = HEADS[config.head.kind]
        noise = np.random.default_rng([self._draw, config.seed, list(HEADS).index(config.head.kind)]).normal()
        return float(self._means[cell] + self._spread * noise)

    def train(self, plan: Plan, missing: list[Job]) -> None:
        for job in missing:
            assert isinstance(job.config, TrialConfig)
            name = HEADS[job.config.head.kind], job.config.seed
            if self.survive is not None and len(self.trained) >= self.survive:
                raise KeyboardInterrupt
            self.trained.append(name)
            others = plan.trials.keys() - {job.trial}
            fail = [job.trial] if name in self.fails else []
            fill(plan, self.store, fail=fail, skip=others, top1=self.top1)

    def allocation(self, max_seeds: int = 8, seeds: tuple[int, ...] | None = None) -> Allocation:
        return allocate([str(self.study)], None, seeds, (), max_seeds)

    def run(
        self,
        max_seeds: int = 8,
        budget: Budget | None = None,
        seeds: tuple[int, ...] | None = None,
        watch: Callable[[Plan, list[Job]], None] = lambda plan, missing: None,
    ) -> End:
        def train(plan: Plan, missing: list[Job]) -> None:
            watch(plan, missing)
            self.train(plan, missing)

        asked = self.allocation(max_seeds, seeds)
        end, summary = until_decided(asked, budget or Budget(), self.store, train, self.said.append)
        self.said += summary
        return end

    def seeds(self, end: End) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for cell in end.plan.cells():
            found.setdefault(cell.cell, []).append(cell.seed)
        return found

    def states(self, end: End) -> dict[str, str]:
        (claims,) = end.claims.values()
        return {claim.claim: claim.state for claim in claims}


def needing(**seeds: int) -> Callable[..., list[Outlook]]:
    """A rule in place of statistics: each claim is decided once its cells share so many seeds."""

    def outlooks(study: StudyPlan, cells: pd.DataFrame, records: Records, max_seeds: int) -> list[Outlook]:
        (member,) = study.members
        return [one_of(study, claim, cells, max_seeds) for claim in member.claims]

    def one_of(study: StudyPlan, claim: Claim, cells: pd.DataFrame, max_seeds: int) -> Outlook:
        owner, needed = study.study.name, seeds[claim.name]
        own = [set(cells[cells["cell"] == cell]["seed"]) for cell in claim.cells]
        shared = len(set.intersection(*own))
        state: State = "decided" if shared >= needed else "hopeless" if needed > max_seeds else "open"
        wants = tuple((owner, cell) for cell in claim.cells) if state == "open" else ()
        return Outlook(owner, claim.name, state, wants, shared, needed, f"needs {needed} seeds")

    return outlooks


@pytest.fixture
def truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Truth:
    """The clear claim is decided by the first seeds, the narrow one by five."""
    monkeypatch.setattr(allocation, "outlooks", needing(clear=2, narrow=5))
    return Truth(tmp_path, spread=0.3, gap=0.5)


def test_only_cells_of_an_open_claim_get_further_seeds(truth: Truth) -> None:
    end = truth.run(max_seeds=20)
    assert truth.states(end) == {"clear": "decided", "narrow": "decided"}
    seeds = truth.seeds(end)
    assert seeds["high"] == seeds["low"] == seeds["unclaimed"] == [0, 1]
    assert seeds["left"] == seeds["right"] == seeds["same_as_right"] == [0, 1, 2, 3, 4]
    assert len(truth.trained) == len(set(truth.trained)), "a training was made twice"


def test_the_first_seeds_may_be_named_and_go_on_with_the_next_integers(truth: Truth) -> None:
    seeds = truth.seeds(truth.run(max_seeds=20, seeds=(7, 3)))
    assert seeds["unclaimed"] == [3, 7]
    assert seeds["left"] == seeds["right"] == [3, 7, 8, 9, 10]


def test_a_second_run_trains_nothing_and_comes_to_the_same(truth: Truth) -> None:
    end, before = truth.run(max_seeds=20), len(truth.trained)
    again = truth.run(max_seeds=20)
    assert (again.plan, again.claims) == (end.plan, end.claims)
    assert len(truth.trained) == before


def test_the_report_is_that_of_all_seeds_of_the_store(truth: Truth) -> None:
    truth.fails = [("high", 1)]
    end = truth.run(max_seeds=6)
    assert with_every_seed([str(truth.study)], None, (), lambda study: truth.store) == end.plan


def test_a_claim_that_needs_more_than_the_most_seeds_is_out_of_reach_and_gets_none(truth: Truth) -> None:
    end = truth.run(max_seeds=4)
    assert truth.states(end) == {"clear": "decided", "narrow": "hopeless"}
    assert truth.seeds(end)["left"] == [0, 1]
    assert "  mine/narrow: needs 5 seeds" in truth.said
    assert any(
        line.startswith("1 of 2 claims decided, 1 out of reach after 1 complete round") for line in truth.said
    )


def test_a_failed_training_is_tried_once_and_its_claims_are_closed_with_the_reason(truth: Truth) -> None:
    truth.fails = [("right", 1)]
    end = truth.run(max_seeds=20)
    assert truth.states(end)["narrow"] == "hopeless"
    assert truth.trained.count(("right", 1)) == 1
    assert ("left", 2) not in truth.trained
    text = "\n".join(truth.said)
    assert "mine/narrow: mine/right failed with seed 1: NonFiniteLossError: loss is not finite" in text
    failing = [job.trial for job in jobs(end.plan, truth.store)]
    assert [truth.store.trial_failure(trial) is not None for trial in failing] == [True]

    truth.fails = ()
    mended = truth.run(max_seeds=20)
    assert truth.trained.count(("right", 1)) == 2
    assert truth.seeds(mended)["right"] == [0, 1, 2, 3, 4]


@settings(max_examples=10, deadline=None, phases=(Phase.reuse, Phase.generate))
@given(
    spread=st.sampled_from([0.05, 0.3, 1.0]),
    gap=st.sampled_from([0.0, 0.3, 1.0, -1.0]),
    draw=st.integers(0, 10**6),
    kills=st.lists(st.integers(1, 9), max_size=3),
)
def test_it_ends_wherever_it_was_killed_with_the_seeds_that_open_claims_needed(
    tmp_path_factory: pytest.TempPathFactory, spread: float, gap: float, draw: int, kills: list[int]
) -> None:
    undisturbed = Truth(tmp_path_factory.mktemp("undisturbed"), spread, gap, draw)
    expected = undisturbed.run()
    truth = Truth(tmp_path_factory.mktemp("killed"), spread, gap, draw)

    def is_needed(plan: Plan, missing: list[Job]) -> None:
        """Every training is of a first seed, or of a cell of a claim that is undecided on all seeds before."""
        newest = max(cell.seed for cell in plan.cells())
        if newest < 2:
            return
        (study,) = plan.studies
        (before,) = plan.only(lambda study, cell: cell.seed < newest).studies
        judged = judge(before, cells_frame(before, truth.store), truth.store)
        undecided = {cell for one in judged if not one.decided for cell in one.claim.cells}
        for job in missing:
            assert job.config.seed == newest
            assert {cell.cell for cell in study.cells if cell.trial == job.trial} & undecided

    for kill in kills:
        truth.survive = len(truth.trained) + kill
        try:
            truth.run(watch=is_needed)
            break
        except KeyboardInterrupt:
            continue
    truth.survive = None
    end = truth.run(watch=is_needed)
    assert end.claims == expected.claims
    assert truth.seeds(end) == undisturbed.seeds(expected)
    assert sorted(truth.trained) == sorted(undisturbed.trained)
    assert all(seeds == list(range(len(seeds))) for seeds in truth.seeds(end).values())
    assert truth.seeds(end)["left"] == truth.seeds(end)["right"]


# --- budget ---------------------------------------------------------------------------------------


class Rounds(Budget):
    """A budget that is spent after some rounds, whatever the clock says."""

    def __init__(self, rounds: int) -> None:
        super().__init__(seconds=3600.0)
        object.__setattr__(self, "rounds", [rounds])

    @property
    def spent(self) -> bool:
        self.rounds[0] -= 1  # type: ignore[attr-defined]
        return bool(self.rounds[0] < 0)  # type: ignore[attr-defined]


def test_a_spent_budget_leaves_claims_open_and_the_same_command_goes_on(truth: Truth) -> None:
    end = truth.run(max_seeds=20, budget=Rounds(1))
    assert truth.states(end)["narrow"] == "open"
    assert {tuple(seeds) for seeds in truth.seeds(end).values()} == {(0, 1)}
    assert "the budget is spent within round 2, 1 claim left open; the same command goes on" in truth.said
    assert truth.states(truth.run(max_seeds=20)) == {"clear": "decided", "narrow": "decided"}


def test_a_budget_that_is_spent_at_once_trains_nothing_and_reports_gaps(truth: Truth) -> None:
    truth.store.prepare()
    end = truth.run(budget=Budget(0.0))
    assert truth.trained == []
    assert set(truth.states(end).values()) == {"open"}
    assert set(truth.seeds(end)) == {"high", "low", "left", "right", "same_as_right", "unclaimed"}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("4h", 14400), ("1h30m", 5400), (" 2m ", 120)]
)
def test_a_budget_is_hours_minutes_and_seconds(text: str, seconds: int) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "m", "0s", "-4h", "4 h", "1.5h", "30m1h", "4d", "h4", "999999h", "1e3s"]
)
def test_other_budgets_are_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(SpecError, match=r"--budget: got .*expected a time such as 90s, 30m, 4h"):
        parse_budget(text)


# --- what is said ---------------------------------------------------------------------------------


def test_each_round_says_which_claim_waits_for_what_and_the_bill(truth: Truth) -> None:
    truth.run(max_seeds=20)
    assert truth.said[0] == "round 1, the first seeds of every cell: 10 trainings to do"
    second = truth.said.index(next(line for line in truth.said if line.startswith("round 2, ")))
    assert truth.said[second].endswith("2 trainings to do")
    assert truth.said[second + 2].startswith("  so far 10 trainings, ")
    assert truth.said[second + 1] == "  mine/narrow: needs 5 seeds, has 2; next seed: left, right"
    assert truth.said[-1].startswith("2 to 5 seeds a cell: 16 trainings, ")  # 5 of two, 2 of three
    assert truth.said[-1].endswith("5 seeds for every cell would be 25 trainings")


def test_a_forecast_is_the_worst_case_and_narrows_as_claims_are_decided(truth: Truth) -> None:
    before = forecast(truth.allocation(20), truth.store)
    assert before.standing.claims is None
    assert len(before.at_most) == 2 + 4 * 20  # one cell is in no claim, another shares its training
    truth.run(max_seeds=20, budget=Rounds(1))
    after = forecast(truth.allocation(20), truth.store)
    assert len(after.at_most) == 2 * 18
    assert list(after.lines(60.0, 2))[-1] == (
        "At most 36 trainings, about 60 s with 2 at once, if open claims need up to 20 seeds."
    )
    truth.run(max_seeds=20)
    assert forecast(truth.allocation(20), truth.store).at_most == []


def test_studies_with_other_first_seeds_share_trainings_and_end(truth: Truth) -> None:
    other = truth.study.with_name("other.yaml")
    other.write_text(
        STUDY.replace("name: mine", "name: other")
        .replace("seeds: [0, 1]", "seeds: [0, 1, 2]")
        .replace("[linear_probe]", "[linear_probe, knn]")
    )
    asked = allocate([str(truth.study), str(other)], None, None, (), 20)
    end, _ = until_decided(asked, Budget(), truth.store, truth.train, truth.said.append)
    assert jobs(end.plan, truth.store) == []
    assert {one.state for claims in end.claims.values() for one in claims} <= {"decided", "hopeless"}
    seeds = [(cell.study, cell.seed) for cell in end.plan.cells() if cell.cell == "unclaimed"]
    assert seeds == [("mine", 0), ("mine", 1), ("other", 0), ("other", 1), ("other", 2)]


def test_submit_passes_what_was_asked_to_the_cluster() -> None:
    asked = Asked(("table1",), None, "0,1", (), "auto", None, "/shared", True, "4h", 9)
    words = shlex.split(asked.entrypoint(["table1"], None))
    assert {"--until-decided", "--budget", "4h", "--max-seeds", "9"} <= set(words)
    plain = Asked(("table1",), None, "0,1", (), "auto", None, "/shared")
    assert not {"--until-decided", "--budget", "--max-seeds"} & set(
        shlex.split(plain.entrypoint(["table1"], None))
    )


def test_a_plan_for_scripts_has_the_claims_and_the_worst_case(
    truth: Truth, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth.run(max_seeds=20, budget=Rounds(1))
    words = ["plan", str(truth.study), "--until-decided", "--store", str(truth.store.root), "--json"]
    monkeypatch.setattr(sys, "argv", ["ablate", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    plan = json.loads(capsys.readouterr().out)
    assert {claim["claim"]: claim["state"] for claim in plan["claims"]} == {
        "clear": "decided",
        "narrow": "open",
    }
    assert len(plan["to_train"]) == 2
    assert len(plan["to_train_at_most"]) == 36


def test_a_cell_gets_no_more_seeds_than_a_verdict_may_rest_on() -> None:
    assert cli._MAX_SEEDS == MOST_LOOKS


def test_a_study_without_claims_and_too_few_seeds_are_refused(tmp_path: Path) -> None:
    study = tmp_path / "mine.yaml"
    study.write_text(STUDY[: STUDY.index("claims:")])
    with pytest.raises(SpecError, match=r"--until-decided: .*mine.yaml state no claims to decide"):
        allocate([str(study)], None, None, (), 20)
    with pytest.raises(SpecError, match="--max-seeds: got 2, expected at least 3, the number of first seeds"):
        allocate(["table1"], None, None, (), 2)
