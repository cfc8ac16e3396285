import csv
import io
import threading
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import scipy.stats
import yaml
from PIL import Image

from orchestrator.plan import Plan, make_plan
from orchestrator.report.figures import FilledFigure, fill_figures
from orchestrator.report.figures.data import points_of
from orchestrator.report.figures.drawing import canvas, metrics, spectra
from orchestrator.report.frames import cells_frame
from trainers.config import ToyRun

EPSILON = 2.0**-52
EPOCHS = 4
NETWORKS, TIMES, DIM = 5, 3, 6
ODD = ("$x_{", "<b> & 'quoted'", "=1+1", "_hidden", "漢字", "a word " * 28)

HEADS = {
    "mlp": {"kind": "mlp"},
    "linear": {"kind": "linear"},
    "none": {"kind": "none"},
    "full": {"kind": "subvector", "d0": "1/1"},
    "half": {"kind": "subvector", "d0": "1/2"},
    "paper": {"kind": "subvector", "d0": "360/2048"},
    "random": {"kind": "dropout", "d0": "1/2"},
}
TRAINED_FIGURES = [
    {
        "name": "spectra", "kind": "spectrum", "subject": "representation",
        "panels": [{"title": "(a)", "cells": ["mlp", "none"]}, {"cells": ["half", "none"]}],
    },
    {
        "name": "sweep", "kind": "curve", "cells": ["paper", "half", "full"], "line": "none", "compare": ["random"],
        "paper": [{"cell": "paper", "paper": 62.7}, {"cell": "random", "paper": 43.0}],
    },
    {"name": "collapse", "kind": "training", "metrics": ["loss", "embedding_rankme"], "cells": ["mlp", "none"]},
    {"name": "rankme", "kind": "scatter", "x": "spectrum/representation/rankme", "y": "linear_probe/top1"},
]  # fmt: skip
TOY_CELLS = {"one": {"layers": 1}, "two": {"layers": 2}, "deep": {"layers": 3}}
TOY_FIGURES = [
    {"name": "weight", "kind": "toy_spectrum", "of": "weight", "log": False, "cells": ["one"]},
    {"name": "embedding", "kind": "toy_spectrum", "of": "embedding", "log": True, "cells": ["one", "two"]},
    {"name": "alignment", "kind": "toy_alignment", "cell": "deep"},
    {"name": "evolution", "kind": "toy_evolution", "cell": "two"},
]
KINDS = [figure["name"] for figure in (*TRAINED_FIGURES, *TOY_FIGURES)]


class Bench:
    """A plan of given cells and figures, and records of it in memory that a test may spoil."""

    def __init__(self, plan: Plan) -> None:
        self.plan, (self.study,) = plan, plan.studies
        self.trials, self.failures, self.evaluations, self.arrays, self.toys, self.histories = (
            {} for _ in range(6)
        )
        random = np.random.default_rng(0)
        for key, config in plan.trials.items():
            if isinstance(config, ToyRun):
                self.toys[key] = toy_arrays(config, random)
                cases = [{"theory/loss": [1.0] * config.networks} for _ in config.cases]
                self.trials[key] = {"config": config.model_dump(mode="json"), "metrics": {}, "cases": cases}
            else:
                self.trials[key] = {"config": config.model_dump(mode="json"), "metrics": {"loss": 2.5}}
                self.histories[key] = [
                    {"epoch": epoch, "loss": random.random(), "embedding_rankme": random.random()}
                    for epoch in range(EPOCHS)
                ]
        for key, (_, protocol) in plan.evaluations.items():
            self.evaluations[key] = {
                "evaluation": protocol.model_dump(mode="json"),
                "metrics": {"representation/rankme": random.random(), "embedding/rankme": 2.0}
                if protocol.kind == "spectrum"
                else {"top1": 90 + random.random()},
            }
            if protocol.kind == "spectrum":
                self.arrays[key] = {
                    f"{subject}_singular_values": np.sort(random.lognormal(-5, 2, dim))[::-1]
                    for subject, dim in (("representation", 256), ("embedding", 64))
                }

    def trial_record(self, key):
        return self.trials.get(key)

    def trial_failure(self, key):
        return self.failures.get(key)

    def evaluation_record(self, key):
        return self.evaluations.get(key)

    def evaluation_arrays(self, key):
        return self.arrays.get(key)

    def trial_arrays(self, key):
        return self.toys.get(key)

    def history(self, key):
        return self.histories.get(key, [])

    def cells(self, name):
        return [cell for cell in self.study.cells if cell.cell == name]

    def fail(self, name, seed):
        """As if one training had failed."""
        (cell,) = (cell for cell in self.cells(name) if cell.seed == seed)
        del self.trials[cell.trial]
        self.failures[cell.trial] = {"error": "loss is not finite"}
        for key in cell.evaluations.values():
            self.evaluations.pop(key)
            self.arrays.pop(key, None)

    def filled(self) -> dict[str, FilledFigure]:
        return {
            figure.name: figure for figure in fill_figures(self.study, cells_frame(self.study, self), self)
        }


def toy_arrays(run: ToyRun, random: np.random.Generator) -> dict[str, np.ndarray]:
    arrays = {}
    for n, case in enumerate(run.cases):
        arrays[f"{n}/iterations"] = np.arange(TIMES) * 10
        arrays[f"{n}/weight_singular_values"] = random.random((run.networks, TIMES, case.layers, DIM))
        arrays[f"{n}/embedding_spectrum"] = random.random((run.networks, TIMES, DIM))
        if case.layers > 1:
            arrays[f"{n}/alignment"] = random.random((run.networks, case.layers - 1, DIM, DIM))
    return arrays


def make_bench(folder: Path, seeds=(0, 1), trained=TRAINED_FIGURES, toys=TOY_FIGURES, labels=None) -> Bench:
    """A suite of one study of trained models and one of toy networks."""
    labels = labels or {}
    shared = {"title": "t", "source": "s"}
    trained_study = {
        "name": "trained", **shared, "evaluations": ["linear_probe", "spectrum"], "seeds": list(seeds),
        "cells": [{"name": n, "label": labels.get(n, f"label of {n}"), "set": {"head": h}} for n, h in HEADS.items()],
        "figures": [{**shared, **figure} for figure in trained],
    }  # fmt: skip
    toy_study = {
        "name": "toys", **shared, "toy": {"networks": NETWORKS, "dim": DIM, "noisy_dims": 2},
        "cells": [{"name": n, "label": labels.get(n, f"label of {n}"), "set": s} for n, s in TOY_CELLS.items()],
        "figures": [{**shared, **figure} for figure in toys],
    }  # fmt: skip
    suite = {"name": "suite", **shared, "include": ["trained", "toys"], "seeds": list(seeds)}
    for study in (trained_study, toy_study, suite):
        (folder / f"{study['name']}.yaml").write_text(yaml.safe_dump(study))
    return Bench(make_plan([str(folder / "suite.yaml")], "digits"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("studies")).plan


@pytest.fixture
def bench(plan):
    return Bench(plan)


def rows(figure: FilledFigure) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(figure.csv())))


def png_pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


# --- tables of data -----------------------------------------------------------------------------


def test_a_spectrums_table_holds_the_arrays_of_every_panel_cell_and_seed(bench):
    data = bench.filled()["spectra"].data
    largest = 0.0
    for panel, names in enumerate((("mlp", "none"), ("half", "none")), start=1):
        here = data[data["panel"] == panel]
        assert list(dict.fromkeys(here["cell"])) == list(names)
        for name in names:
            for cell in bench.cells(name):
                values = bench.arrays[cell.evaluations["spectrum"]]["representation_singular_values"]
                mine = here[(here["cell"] == name) & (here["seed"] == cell.seed)]
                assert mine["singular_value"].tolist() == values.tolist()
                assert mine["rank"].tolist() == list(range(1, 257))
                assert set(mine["trial"]) == {cell.trial}
                largest = max(largest, values[0])
    assert data["noise_floor"].nunique() == 1
    assert data["noise_floor"].iloc[0] == pytest.approx(256 * EPSILON * largest, rel=1e-12, abs=0)


def test_the_csv_holds_the_same_numbers_in_full_precision(bench):
    for figure in bench.filled().values():
        read = rows(figure)
        assert len(read) == len(figure.data)
        for column in figure.data.select_dtypes("float"):
            assert [float(row[column]) for row in read] == figure.data[column].tolist()


def test_a_curves_table_places_each_cell_at_its_resolved_d0(bench):
    data = bench.filled()["sweep"].data
    ours = data[data["source"] == "ours"]
    places = {cell: set(zip(lines["d0"], lines["dim"], strict=True)) for cell, lines in ours.groupby("cell")}
    # D = 256: 360/2048 of it is 45; d0 = D is no projector
    assert places == {"paper": {(45, 256)}, "half": {(128, 256)}, "full": {(256, 256)}, "none": {(256, 256)},
                      "random": {(128, 256)}}  # fmt: skip
    for _, line in ours.iterrows():
        (cell,) = (cell for cell in bench.cells(line["cell"]) if cell.seed == line["seed"])
        assert line["value"] == bench.evaluations[cell.evaluations["linear_probe"]]["metrics"]["top1"]
    assert dict(zip(ours["cell"], ours["role"], strict=True)) == {
        "paper": "cells", "half": "cells", "full": "cells", "none": "line", "random": "compare",
    }  # fmt: skip


def test_the_papers_values_stand_at_the_place_of_their_cells(bench):
    bench.fail("paper", 1)
    figure = bench.filled()["sweep"]
    paper = figure.data[figure.data["source"] == "paper"]
    assert paper[["cell", "role", "d0", "value"]].to_numpy().tolist() == [
        ["paper", "cells", 45, 62.7],
        ["random", "compare", 128, 43.0],
    ]
    assert [row["seed"] for row in rows(figure) if row["source"] == "paper"] == ["", ""]


def test_a_trainings_table_holds_the_history_with_epochs_counted_from_one(bench):
    data = bench.filled()["collapse"].data
    assert len(data) == 2 * 2 * 2 * EPOCHS
    for name in ("mlp", "none"):
        for cell in bench.cells(name):
            for metric in ("loss", "embedding_rankme"):
                mine = data[(data["cell"] == name) & (data["seed"] == cell.seed) & (data["metric"] == metric)]
                assert mine["epochs"].tolist() == [1, 2, 3, 4]
                assert mine["value"].tolist() == [entry[metric] for entry in bench.histories[cell.trial]]


def test_a_scatters_table_pairs_both_metrics_of_every_cell_and_seed(bench):
    data = bench.filled()["rankme"].data
    assert len(data) == len(HEADS) * 2
    for _, line in data.iterrows():
        (cell,) = (cell for cell in bench.cells(line["cell"]) if cell.seed == line["seed"])
        assert (
            line["x"] == bench.evaluations[cell.evaluations["spectrum"]]["metrics"]["representation/rankme"]
        )
        assert line["y"] == bench.evaluations[cell.evaluations["linear_probe"]]["metrics"]["top1"]


def test_cells_that_share_their_trainings_are_one_point_with_the_means_of_its_seeds(bench):
    figure = bench.filled()["rankme"]
    points = points_of(figure.data)
    # `full`, whose d0 is D, is `none`
    assert points["cell"].tolist() == ["mlp", "linear", "none", "half", "paper", "random"]
    mine = figure.data[figure.data["cell"] == "half"]
    point = points[points["cell"] == "half"].iloc[0]
    assert point["x"] == pytest.approx(np.mean(mine["x"]), rel=1e-15)
    assert (point["y_low"], point["y_high"]) == (min(mine["y"]), max(mine["y"]))
    rho = scipy.stats.spearmanr(points["x"], points["y"]).statistic
    assert f"ρ = {rho:.2f} over 6 points".replace("-", "−") in figure.caption


def test_a_toy_spectrums_table_holds_the_last_record_of_every_network(bench):
    figures, toys = bench.filled(), bench.toys[bench.cells("one")[0].trial]
    weight = figures["weight"].data.pivot(index="network", columns="rank", values="singular_value")
    assert np.array_equal(weight, toys["0/weight_singular_values"][:, -1, 0])
    embedding = figures["embedding"].data
    for n, name in enumerate(("one", "two")):
        mine = embedding[embedding["cell"] == name]
        found = mine.pivot(index="network", columns="rank", values="singular_value")
        assert np.array_equal(found, toys[f"{n}/embedding_spectrum"][:, -1])
    # variances are squares of what float64 resolves to D x epsilon
    largest = max(toys[f"{n}/embedding_spectrum"][:, -1].max() for n in (0, 1))
    assert embedding["noise_floor"].iloc[0] == pytest.approx((DIM * EPSILON) ** 2 * largest, rel=1e-12, abs=0)


def test_an_alignments_table_holds_the_mean_over_networks_of_the_first_pair(bench):
    data = bench.filled()["alignment"].data
    matrices = bench.toys[bench.cells("deep")[0].trial]["2/alignment"][:, 0]
    for column, values in (("mean", matrices.mean(0)), ("low", matrices.min(0)), ("high", matrices.max(0))):
        assert np.array_equal(data.pivot(index="row", columns="column", values=column), values)
    assert set(data["networks"]) == {NETWORKS}


def test_an_evolutions_table_holds_percentiles_over_networks_of_each_weight_and_the_embedding(bench):
    data = bench.filled()["evolution"].data
    toys = bench.toys[bench.cells("two")[0].trial]
    expected = {
        "W1": toys["1/weight_singular_values"][:, :, 0],
        "W2": toys["1/weight_singular_values"][:, :, 1],
        "embedding": toys["1/embedding_spectrum"],
    }
    assert list(dict.fromkeys(data["of"])) == list(expected)
    for of, values in expected.items():
        mine = data[data["of"] == of]
        for column, percent in (("low", 10), ("median", 50), ("high", 90)):
            found = mine.pivot(index="iteration", columns="rank", values=column)
            assert np.allclose(found, np.percentile(values, percent, axis=0), rtol=1e-14, atol=0)
            assert found.index.tolist() == [0, 10, 20]


def test_a_suites_figure_shows_cells_of_its_members(tmp_path):
    bench = make_bench(tmp_path)
    suite = yaml.safe_load((tmp_path / "suite.yaml").read_text())
    shown = {"name": "across", "kind": "scatter", "title": "t", "source": "s", "x": "representation/rankme",
             "y": "linear_probe/top1", "cells": ["trained/mlp", "trained/none"]}  # fmt: skip
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite | {"figures": [shown]}))
    bench = Bench(make_plan([str(tmp_path / "suite.yaml")], "digits"))
    figure = bench.filled()["across"]
    assert figure.study == "suite"
    assert list(dict.fromkeys(figure.data["study"] + "/" + figure.data["cell"])) == shown["cells"]


def test_two_studies_figures_of_one_name_get_names_of_their_own(tmp_path):
    twin = {**TOY_FIGURES[0], "name": "spectra"}
    names = list(make_bench(tmp_path, toys=[twin, TOY_FIGURES[2]]).filled())
    assert names == ["trained.spectra", "sweep", "collapse", "rankme", "toys.spectra", "alignment"]


# --- captions and what is missing ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("seeds", "said"), [((0,), "1 seed."), ((0, 1, 2), "3 seeds: the line is the geometric mean")]
)
def test_a_caption_says_how_many_seeds_and_what_the_band_is(tmp_path, seeds, said):
    figures = make_bench(tmp_path, seeds).filled()
    assert said in figures["spectra"].caption
    assert (
        f"{NETWORKS} networks: the line is the median, the band goes from the 10th"
        in figures["weight"].caption
    )
    for figure in figures.values():
        assert figure.caption.endswith("Source: s.")
        named = "Scikit-learn digits at 16 px (chance 10 %)" in figure.caption
        assert named is (figure.study == "trained")


def test_a_caption_offers_an_interval_only_where_there_are_seeds_enough(tmp_path):
    captions = {}
    for count in (1, 2, 3):
        (tmp_path / str(count)).mkdir()
        captions[count] = make_bench(tmp_path / str(count), tuple(range(count))).filled()["sweep"].caption
    assert ["95 % t interval" in captions[count] for count in (1, 2, 3)] == [False, False, True]
    assert "too few seeds for an interval" in captions[2]


def test_what_is_missing_is_told_and_the_rest_is_shown(bench):
    bench.fail("none", 1)
    figures = bench.filled()
    reason = "label of none, seed 1: training failed: loss is not finite."
    for name in ("spectra", "sweep", "collapse", "rankme"):
        assert reason in figures[name].notes, name
    data = figures["spectra"].data
    assert set(data.loc[data["cell"] == "none", "seed"]) == {0}
    assert "1–2 seeds" in figures["spectra"].caption
    assert figures["weight"].notes == ()


def test_an_evaluation_that_is_not_done_and_arrays_that_are_away_are_told_apart(bench):
    first, second = bench.cells("mlp")
    del bench.evaluations[first.evaluations["spectrum"]]
    del bench.arrays[second.evaluations["spectrum"]]
    assert bench.filled()["spectra"].notes == (
        "label of mlp, seed 0: spectrum not done yet.",
        "label of mlp, seed 1: its arrays are not where the records were read from.",
    )


def test_values_that_are_not_finite_are_left_out_and_told(bench):
    first, second = bench.cells("mlp")
    bench.arrays[first.evaluations["spectrum"]]["representation_singular_values"][3] = np.nan
    bench.histories[second.trial][2]["loss"] = float("nan")
    bench.evaluations[bench.cells("half")[0].evaluations["linear_probe"]]["metrics"]["top1"] = float("nan")
    bench.toys[bench.cells("one")[0].trial]["0/weight_singular_values"][4, -1] = np.inf
    figures = bench.filled()
    assert figures["spectra"].notes == ("label of mlp, seed 0: spectrum not finite, so left out.",)
    assert figures["collapse"].notes == ("label of mlp, seed 1: loss not finite, so left out, in 1 epoch.",)
    assert figures["sweep"].notes == ("label of half, seed 0: linear_probe/top1 not finite, so left out.",)
    assert figures["weight"].notes == ("label of one: 1 of 5 networks are not finite, so left out.",)
    assert set(figures["weight"].data["network"]) == {0, 1, 2, 3}
    for figure in figures.values():
        assert np.isfinite(figure.data.select_dtypes("float")).all(axis=None)


def test_a_running_training_shows_the_epochs_it_has(bench):
    cell = bench.cells("mlp")[0]
    del bench.trials[cell.trial]
    bench.histories[cell.trial] = bench.histories[cell.trial][:2]
    figure = bench.filled()["collapse"]
    mine = figure.data[(figure.data["cell"] == "mlp") & (figure.data["seed"] == 0)]
    assert set(mine["epochs"]) == {1, 2}
    assert figure.notes == ("label of mlp, seed 0: training not done yet.",)


def test_cells_that_a_kind_of_figure_cannot_show_are_told(tmp_path):
    figures = make_bench(
        tmp_path,
        trained=[
            {
                "name": "sweep",
                "kind": "curve",
                "cells": ["half", "mlp"],
                "paper": [{"cell": "random", "paper": 43.0}],
            },
            {"name": "wrong", "kind": "training", "metrics": ["corrupt_images"], "cells": ["none"]},
        ],
        toys=[
            {"name": "deep", "kind": "toy_spectrum", "of": "weight", "log": False, "cells": ["one", "deep"]},
            {"name": "single", "kind": "toy_alignment", "cell": "one"},
        ],
    ).filled()
    assert figures["sweep"].notes == (
        "label of mlp, seeds 0, 1: its head has no d0, or its record does not say it.",
        "label of random: the paper's value has no place, as it is not a cell of this curve.",
    )
    assert figures["wrong"].notes == ("label of none, seeds 0, 1: no corrupt_images was recorded.",)
    assert figures["deep"].notes == ("label of deep: has 3 weights, and this figure shows a single one.",)
    assert set(figures["deep"].data["cell"]) == {"one"}
    assert figures["single"].notes == ("label of one: a single layer has nothing to be aligned with.",)
    assert [figures[name].empty for name in ("sweep", "wrong", "deep", "single")] == [
        False,
        True,
        False,
        True,
    ]


def test_without_any_record_every_figure_is_empty_valid_and_says_why(bench):
    for held in (bench.trials, bench.evaluations, bench.arrays, bench.toys, bench.histories):
        held.clear()
    figures = bench.filled()
    assert list(figures) == KINDS
    for figure in figures.values():
        assert figure.empty
        assert figure.notes
        assert all(note.endswith("training not done yet.") for note in figure.notes)
        assert rows(figure) == []
        ElementTree.fromstring(figure.svg())
        assert png_pixels(figure.png()).min() < 200  # it says something


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_picture_is_valid_and_white(bench, name):
    figure = bench.filled()[name]
    svg, png = figure.svg(), figure.png()
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "<text" not in svg.decode()  # letters are outlines
    pixels = png_pixels(png)
    assert pixels.shape[1] / 200 in (3.4, 7.0)
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()


@pytest.mark.parametrize("name", ["sweep", "alignment", "weight"])
def test_the_same_data_give_the_same_bytes(bench, name):
    one, other = bench.filled()[name], bench.filled()[name]
    assert one.svg() == other.svg()
    assert one.png() == other.png()


def test_pictures_carry_no_date_and_no_program(bench):
    figure = bench.filled()["alignment"]
    assert b"<dc:date>" not in figure.svg()
    with Image.open(io.BytesIO(figure.png())) as image:
        assert set(image.info) <= {"dpi"}


def test_a_users_settings_change_no_picture_and_are_left_alone(bench):
    figure = bench.filled()["spectra"]
    expected = figure.png()
    with matplotlib.rc_context({"font.size": 23, "figure.facecolor": "red", "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        assert figure.png() == expected
        assert dict(matplotlib.rcParams) == before


def test_threads_that_draw_at_once_get_the_same_pictures(bench):
    figures = [bench.filled()[name] for name in ("weight", "alignment")]
    expected = [figure.svg() for figure in figures]
    found: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda n=n, figure=figure: found.update({n: figure.svg()}))
        for n, figure in enumerate(figures)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(figures))] == expected


@pytest.mark.parametrize("name", KINDS)
def test_labels_with_odd_characters_are_drawn_as_they_stand(tmp_path, name):
    labels = dict(zip((*HEADS, *TOY_CELLS), (*ODD, *ODD), strict=False))
    figure = make_bench(tmp_path, seeds=(0,), labels=labels).filled()[name]
    assert not figure.empty
    ElementTree.fromstring(figure.svg())


def test_a_key_shows_every_label_literally():
    figure = canvas.new_figure(3.4, 2)
    handles = [canvas.handle(look) for look in canvas.categorical(len(ODD))]
    canvas.key(figure, handles, ODD)
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts[:5]] == [*ODD[:4], "\N{REPLACEMENT CHARACTER}" * 2]
    assert texts[5].get_text().endswith("…")
    assert not any(text.get_parse_math() for text in texts)


def test_a_label_that_a_spreadsheet_would_run_is_made_safe(tmp_path):
    figures = make_bench(tmp_path, seeds=(0,), labels={"mlp": "=1+1"}).filled()
    assert {row["label"] for row in rows(figures["spectra"]) if row["cell"] == "mlp"} == {"'=1+1"}


def lines_of(axes):
    """Lines with more than one point, and filled bands, of a panel."""
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) > 1]
    return lines, list(axes.collections)


def test_a_spectrums_lines_are_the_logs_of_geometric_means_and_its_bands_the_extremes(bench):
    figure = bench.filled()["spectra"]
    picture = spectra.spectrum(figure.spec, figure.data)
    lines, bands = lines_of(picture.axes[0])
    seeds = np.log([bench.arrays[cell.evaluations["spectrum"]]["representation_singular_values"]
                    for cell in bench.cells("mlp")])  # fmt: skip
    assert np.allclose(lines[0].get_ydata(), seeds.mean(axis=0), rtol=1e-12)
    corners = bands[0].get_paths()[0].vertices
    at_ten = np.unique(corners[corners[:, 0] == 10, 1])
    assert np.allclose(at_ten, np.sort(seeds[:, 9]), rtol=1e-12)
    assert len(lines) == len(bands) == 2


def test_a_single_seed_has_no_band(tmp_path):
    figures = make_bench(tmp_path, seeds=(0,)).filled()
    for picture in (
        spectra.spectrum(figures["spectra"].spec, figures["spectra"].data),
        metrics.training(figures["collapse"].spec, figures["collapse"].data),
    ):
        for axes in picture.axes:
            lines, bands = lines_of(axes)
            assert len(lines) == 2
            assert bands == []


@pytest.mark.parametrize("tail", [0.0, 1e-18])
def test_singular_values_at_the_rounding_of_float64_run_through_a_strip_without_a_height(bench, tail):
    for cell in bench.cells("none"):
        values = np.geomspace(1, 1e-9, 256)
        values[200:] = tail
        bench.arrays[cell.evaluations["spectrum"]]["representation_singular_values"] = values
    figure = bench.filled()["spectra"]
    assert "are rounding of float64: their lines run through the shaded strip" in figure.caption
    axes = spectra.spectrum(figure.spec, figure.data).axes[0]
    real, fallen = (line.get_ydata() for line in lines_of(axes)[0])
    assert np.isfinite(fallen).all()
    assert len(set(fallen[200:])) == 1
    bottom, top_of_strip = axes.get_ylim()[0], min(axes.get_yticks())
    assert bottom < fallen[-1] < min(real.min(), fallen[199], top_of_strip)
    assert np.allclose(fallen[:200], np.log(np.geomspace(1, 1e-9, 256)[:200]), rtol=1e-9)
    assert any(text.get_text().startswith("axis broken: numerical noise, below −") for text in axes.texts)
    slashes = [line for line in axes.get_lines() if line.get_marker() == canvas.SLASH]
    (strip,) = axes.patches
    assert [line.get_ydata()[0] for line in slashes] == [strip.get_bbox().y1] * 2


def test_a_mean_over_seeds_of_which_one_is_noise_is_noise(bench):
    first, _ = bench.cells("none")
    bench.arrays[first.evaluations["spectrum"]]["representation_singular_values"][100:] = 1e-16
    figure = bench.filled()["spectra"]
    axes = spectra.spectrum(figure.spec, figure.data).axes[0]
    fallen = lines_of(axes)[0][1].get_ydata()
    assert (fallen[100:] < fallen[99]).all()
    assert len(set(fallen[100:])) == 1


def test_a_spectrum_of_nothing_but_zeros_is_drawn(bench):
    for arrays in bench.arrays.values():
        arrays["representation_singular_values"][:] = 0
    figure = bench.filled()["spectra"]
    axes = spectra.spectrum(figure.spec, figure.data).axes[0]
    assert all(np.isfinite(line.get_ydata()).all() for line in lines_of(axes)[0])
    assert figure.data["noise_floor"].iloc[0] == pytest.approx(256 * EPSILON, rel=1e-12, abs=0)


def test_every_line_of_a_spectrum_is_as_long_as_its_own_dimension(bench):
    for cell in bench.cells("none"):
        bench.arrays[cell.evaluations["spectrum"]]["representation_singular_values"] = np.geomspace(
            1, 0.1, 40
        )
    figure = bench.filled()["spectra"]
    lines, _ = lines_of(spectra.spectrum(figure.spec, figure.data).axes[0])
    assert [line.get_xdata()[-1] for line in lines] == [256, 40]


def test_a_cell_looks_alike_in_every_panel_and_unlike_the_others_in_grey(bench):
    figure = bench.filled()["spectra"]
    first, second = (lines_of(axes)[0] for axes in spectra.spectrum(figure.spec, figure.data).axes)
    assert first[1].get_color() == second[0].get_color()  # none
    assert len({line.get_color() for line in (*first, *second)}) == 3
    looks = [(str(look.color), str(look.dash)) for look in canvas.categorical(48)]
    assert len(set(looks)) == 48
    assert len({dash for _, dash in looks[:6]}) == 6
    assert len({look.marker for look in canvas.ordered(12)}) == 12


def test_a_curves_interval_is_students_and_needs_three_seeds(tmp_path):
    bench = make_bench(tmp_path, seeds=(0, 1, 2))
    figure = bench.filled()["sweep"]
    axes = metrics.curve(figure.spec, figure.data).axes[0]
    values = [
        bench.evaluations[cell.evaluations["linear_probe"]]["metrics"]["top1"] for cell in bench.cells("half")
    ]
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
    corners = axes.collections[0].get_paths()[0].vertices
    assert np.allclose(np.unique(corners[corners[:, 0] == 128, 1]), [low, high], rtol=1e-9)
    line = lines_of(axes)[0][0]
    assert line.get_xdata().tolist() == [45, 128, 256]
    assert line.get_ydata()[1] == pytest.approx(np.mean(values))
    two = figure.data[figure.data["seed"].fillna(0) < 2]
    bands = metrics.curve(figure.spec, two).axes[0].collections
    assert all(len(path.vertices) == 0 for band in bands for path in band.get_paths())


def test_the_papers_values_get_a_panel_of_their_own_where_data_and_backbone_are_not_the_papers(bench):
    figure = bench.filled()["sweep"]
    assert "Hollow: the paper's values (ImageNet, ResNet-50), at the same d0/D, on an axis" in figure.caption
    near = figure.data.copy()
    near.loc[near["source"] == "paper", "value"] = 90.5
    above, below = metrics.curve(figure.spec, near).axes
    assert not hollow(above)
    assert hollow(below) == [(45, 90.5), (128, 90.5)]


def test_the_papers_values_stand_beside_ours_where_they_can_be_compared_and_do_not_crush_them(bench):
    cells = tuple(replace(cell, as_published=True) for cell in bench.study.cells)
    bench.study = replace(bench.study, cells=cells)
    figure = bench.filled()["sweep"]
    assert "on an axis" not in figure.caption
    assert len(metrics.curve(figure.spec, figure.data).axes) == 2  # 62.7 beside 90 and more
    near = figure.data.copy()
    near.loc[near["source"] == "paper", "value"] = 90.5
    (axes,) = metrics.curve(figure.spec, near).axes
    assert hollow(axes) == [(45, 90.5), (128, 90.5)]


def test_the_papers_values_can_be_left_out(bench):
    made = fill_figures(bench.study, cells_frame(bench.study, bench), bench, paper=False)
    (figure,) = (figure for figure in made if figure.name == "sweep")
    assert set(figure.data["source"]) == {"ours"}
    assert "aper" not in figure.caption


def hollow(axes):
    lines = [line for line in axes.get_lines() if line.get_markerfacecolor() == "white"]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def test_an_evolution_has_a_panel_for_each_weight_and_one_logarithmic_for_the_embedding(bench):
    figure = bench.filled()["evolution"]
    toys = bench.toys[bench.cells("two")[0].trial]
    first, _, embedding, *_ = spectra.toy_evolution(figure.data).axes
    assert len(lines_of(first)[0]) == DIM
    assert np.allclose(
        lines_of(first)[0][2].get_ydata(), np.median(toys["1/weight_singular_values"], axis=0)[:, 0, 2]
    )
    assert np.allclose(
        lines_of(embedding)[0][0].get_ydata(), np.log(np.median(toys["1/embedding_spectrum"], axis=0)[:, 0])
    )


def test_few_points_of_a_scatter_are_numbered_and_many_are_not(bench):
    figure = bench.filled()["rankme"]
    axes = metrics.scatter(figure.spec, figure.data).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3", "4", "5", "6"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("RankMe of representation", "Linear probe top-1 (%)")
    many = figure.data.loc[figure.data.index.repeat(5)].reset_index(drop=True)
    many = many.assign(cell=[f"c{n}" for n in many.index], trial=[str(n) for n in many.index])
    assert list(metrics.scatter(figure.spec, many).axes[0].texts) == []
