"""Cells of logistic regression: real models of real label draws, in a blink."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tasks.compare import (
    CONTROL,
    DISTILLED,
    PLOT_FILE,
    RIGHT_FILE,
    UNPRETRAINED,
    Arm,
    AssessParams,
    CompareParams,
    Comparison,
    Control,
    Distillation,
    Named,
    assess,
    cell,
    draw_plot,
)
from tasks.consult import ConsultParams, consult
from tasks.errors import DataError, ParamsError
from tasks.estimators.logistic_regression import LogisticRegression
from tasks.rows import Rows
from tasks.sections import parse
from tasks.stage import Run
from tasks.statistics import Gain
from tasks.tracking import payload_of
from tests.conftest import bench_in

DRAWS, SEEDS = (0, 1), (0, 1)
STRENGTHS = {CONTROL: 1e-4, "weak": 3e-4, "strong": 1.0}


def arm(name, kind="student"):
    return Named(name=name, kind=kind, sentence="an arm")


@pytest.fixture(scope="module")
def bench(bench_template, tmp_path_factory):
    """One for all: nothing here changes what another test has made."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield bench_in(tmp_path_factory.mktemp("compare") / "bench", bench_template, monkeypatch)


@pytest.fixture(scope="module")
def made(bench):
    """Makes one cell: logistic regression of a strength on one draw's labels."""

    def make(strength, draw, seed):
        budget = Rows(bench.root / "prepared").budget
        redraw = None if draw == budget.draw else budget.redraw(draw=draw)
        compute = bench.run.compute.model_copy(update={"seed": seed})
        run = Run(bench.run.project, compute, bench.run.data, redraw)
        section = ConsultParams(estimator=LogisticRegression(strength=strength))
        return consult._run(run, section)

    return make


@pytest.fixture(scope="module")
def assessed(bench):
    """Assesses cells; gives the report, the rows that were right, and the folder."""

    def go(names, cells):
        section = AssessParams(arms=tuple(names))
        ref = assess._run(bench.run, section, **cells)
        folder = payload_of(bench.tracking.fetch(ref).folder)
        table = pyarrow.parquet.read_table(folder / RIGHT_FILE)
        return Comparison.read(folder), table, folder

    return go


@pytest.fixture(scope="module")
def several(made, assessed):
    """Three arms in two draws and two seeds."""
    cells = {
        cell(name, draw, seed): made(strength, draw, seed)
        for name, strength in STRENGTHS.items()
        for draw in DRAWS
        for seed in SEEDS
    }
    names = [arm(CONTROL, "control"), *(arm(name) for name in STRENGTHS if name != CONTROL)]
    return cells, *assessed(names, cells)


def right_of(table, name):
    """(repeats, rows), by hand."""
    columns = [column for column in table.column_names if column.rsplit("/", 2)[0] == name]
    return np.array([table[column].to_pylist() for column in sorted(columns)], dtype=float)


def test_right_says_which_test_rows_each_model_gets(bench, several):
    """Against scikit-learn's own predictions, row by row."""
    cells, _, table, _ = several
    rows = Rows(bench.root / "prepared")
    test = rows.open_test()
    assert table["row"].to_pylist() == test.names.tolist()
    assert table.column_names == ["row", *cells]
    flat = test.inputs.reshape(len(test), -1).astype(np.float32) / 255
    for name, ref in cells.items():
        method = LogisticRegression(strength=STRENGTHS[name.rsplit("/", 2)[0]])
        draw = int(name.split("/")[1])
        train = Rows(rows.folder, rows.budget.redraw(draw=draw)).train
        said = method.fit(train, seed=0).model.predict(flat)
        assert table[name].to_pylist() == (said == test.labels).tolist(), ref.key


def test_figures_are_means_over_repeats_and_rows(several):
    _, found, table, _ = several
    assert found.rows == table.num_rows
    assert found.repeats == len(DRAWS) * len(SEEDS)
    assert [one.named.name for one in found.arms] == list(STRENGTHS)
    for one in found.arms:
        right = right_of(table, one.named.name)
        assert one.accuracy.value == pytest.approx(right.mean(), abs=1e-12)
        assert one.accuracy.low <= one.accuracy.value <= one.accuracy.high
        assert found.of(one.named.name) == one


def test_gains_are_paired_by_repeat_and_row(several):
    _, found, table, _ = several
    control = right_of(table, CONTROL)
    assert found.of(CONTROL).gain is None
    for name in ("weak", "strong"):
        apart = right_of(table, name) - control
        gain = found.of(name).gain
        assert gain.value == pytest.approx(apart.mean(), abs=1e-12)
        random = np.random.default_rng(1)
        repeats, rows = apart.shape
        means = [
            apart[random.integers(0, repeats, repeats)][:, random.integers(0, rows, rows)].mean()
            for _ in range(3000)
        ]
        low, high = np.quantile(means, [0.025, 0.975])
        assert (gain.low, gain.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    # The weak arm fails on much the same rows as the control, which an unpaired interval ignores.
    ends = [found.of(name).accuracy for name in ("weak", CONTROL)]
    unpaired = np.hypot(*(one.high - one.low for one in ends))
    gain = found.of("weak").gain
    assert 0 < gain.high - gain.low < 0.8 * unpaired


def test_the_order_of_the_repeats_plays_no_part(several, assessed):
    cells, found, _, _ = several
    turned = dict(sorted(cells.items(), key=lambda item: item[0].rpartition("/")[::-1]))
    names = [one.named for one in found.arms]
    again, _, _ = assessed(names, turned)
    for one in found.arms:
        assert again.of(one.named.name).accuracy.value == pytest.approx(one.accuracy.value)
        if one.gain:
            gain = again.of(one.named.name).gain
            width = one.gain.high - one.gain.low
            assert gain.value == pytest.approx(one.gain.value)
            assert gain.low == pytest.approx(one.gain.low, abs=0.15 * width)


def test_overfitting_is_judged_on_the_labels_that_the_cell_was_shown(bench, several):
    _, found, _, _ = several
    rows = Rows(bench.root / "prepared")
    for name, strength in STRENGTHS.items():
        shares = []
        for draw in DRAWS:
            shown = Rows(rows.folder, rows.budget.redraw(draw=draw)).train.labelled
            model = LogisticRegression(strength=strength).fit(shown, 0).model
            flat = shown.inputs.reshape(len(shown), -1).astype(np.float32) / 255
            shares.append((model.predict(flat) == shown.labels).mean())
        one = found.of(name)
        assert one.train_accuracy == pytest.approx(np.mean(shares))
        assert one.gap == pytest.approx(np.mean(shares) - one.accuracy.value)
    assert found.of("strong").gap > 0


def test_what_pretraining_adds_is_paired_too(bench, toy, made, assessed):
    good, lazy = toy.make(bench), toy.make(bench, "lazy")
    names = [arm(CONTROL, "control"), arm(DISTILLED), arm(UNPRETRAINED)]
    cells = {cell(CONTROL, 0, 0): lazy, cell(DISTILLED, 0, 0): good, cell(UNPRETRAINED, 0, 0): lazy}
    found, table, _ = assessed(names, cells)
    apart = right_of(table, DISTILLED) - right_of(table, UNPRETRAINED)
    assert found.pretraining.value == pytest.approx(apart.mean())
    assert found.pretraining.value > 0.3
    assert found.pretraining == found.of(DISTILLED).gain
    without, _, _ = assessed(names[:2], dict(list(cells.items())[:2]))
    assert without.pretraining is None


def test_networks_and_estimators_stand_side_by_side(bench, toy, made, assessed):
    cells = {cell(CONTROL, 0, 0): toy.make(bench), cell("strong", 0, 0): made(1.0, 0, 0)}
    found, _, _ = assessed([arm(CONTROL, "control"), arm("strong", "baseline")], cells)
    assert found.of(CONTROL).accuracy.value > 0.9
    assert found.of("strong").accuracy.value > 0.9


def test_the_report_is_a_stage_like_any_other(bench, several):
    cells, found, _, folder = several
    record = json.loads((folder.parent / "record.json").read_bytes())
    (run,) = bench.runs(stage="assess", key=record["key"])
    assert run.info.status == "FINISHED"
    figures = {f"{one.named.name}.accuracy": one.accuracy.value for one in found.arms}
    assert run.data.metrics == pytest.approx(figures)
    assert {parent["role"]: parent["record"] for parent in record["parents"]} == {
        name: ref.record for name, ref in cells.items()
    }


def test_one_repeat_is_enough(made, assessed):
    cells = {cell(name, 0, 0): made(strength, 0, 0) for name, strength in STRENGTHS.items()}
    names = [arm(CONTROL, "control"), arm("weak"), arm("strong")]
    found, table, _ = assessed(names, cells)
    assert found.repeats == 1
    apart = right_of(table, "strong") - right_of(table, CONTROL)
    assert found.of("strong").gain.value == pytest.approx(apart.mean())


def test_without_test_rows_there_is_nothing_to_say():
    rows = SimpleNamespace(open_test=lambda: ())
    with pytest.raises(DataError, match=r"no labelled test row; .* raise prepare.test_share"):
        assess.function(SimpleNamespace(rows=rows), AssessParams(arms=()))


# The picture


@pytest.fixture
def comparison():
    def make(count):
        arms = [
            Arm(
                named=arm(CONTROL if at == 0 else f"arm number {at}"),
                accuracy=Gain(0.5 + at / 99, 0.4 + at / 99, 0.6 + at / 99),
                gain=None if at == 0 else Gain(0.1, 0.0, 0.2),
                train_accuracy=1.0,
            )
            for at in range(count)
        ]
        return Comparison(rows=100, repeats=3, arms=tuple(arms), pretraining=None)

    return make


def test_the_picture_can_be_read(several):
    *_, folder = several
    with Image.open(folder / PLOT_FILE) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 600
        pixels = np.asarray(picture.convert("L"))
    assert pixels.min() < 100
    assert pixels.max() > 250


def test_the_picture_grows_with_the_arms(comparison, tmp_path):
    heights = []
    for count in (2, 30):
        draw_plot(comparison(count), tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as picture:
            heights.append(picture.height)
    assert heights[1] > heights[0] + 28 * 30


def test_the_picture_marks_every_arm_where_it_belongs(comparison, tmp_path):
    """One dot per arm, further right where the accuracy is higher."""
    draw_plot(comparison(5), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    blue = (np.abs(pixels - [31, 119, 180]).sum(2) < 40).T.nonzero()
    columns, lines = blue
    dots = [line for line in np.unique(lines) if (lines == line).sum() > 30]
    groups = np.split(dots, np.nonzero(np.diff(dots) > 1)[0] + 1)
    assert len(groups) == 5
    centres = [columns[np.isin(lines, group)].mean() for group in groups]
    assert centres == sorted(centres)


def test_the_same_figures_are_the_same_picture(comparison, tmp_path):
    for name in ("one.png", "other.png"):
        draw_plot(comparison(4), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()


# The section


def test_what_differs_is_what_is_not_null():
    assert Distillation().changes() == {}
    assert Distillation(l1=0.0, rows_share=0.5).changes() == {"l1": 0.0, "rows_share": 0.5}


def test_a_report_is_read_as_it_was_written(comparison, tmp_path):
    found = comparison(3)
    (tmp_path / "comparison.json").write_text(found.model_dump_json())
    assert Comparison.read(tmp_path) == found


@pytest.mark.parametrize("name", ["a", "DIST 2", "l1_0.5-x", "9", "x" * 100])
def test_arms_have_names_that_mlflow_takes(name):
    found = parse(CompareParams, {"controls": {name: {"weight_decay": 0.1}}}, "compare")
    assert found.controls == {name: Control(weight_decay=0.1)}


@pytest.mark.parametrize(
    "name", ["", " a", ".a", "-a", "a/b", "a+b", "a=b", "10%", "ä", "a:b", "x" * 101]
)
@pytest.mark.parametrize("field", ["distillations", "controls"])
def test_other_names_are_refused_in_one_line(field, name):
    with pytest.raises(ParamsError) as caught:
        parse(CompareParams, {field: {name: {}}}, "compare")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"params.yaml: 'compare.{field}.{name}"[:30])
    assert json.dumps(name)[:80] in line


@pytest.mark.parametrize("field", ["draws", "seeds"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "expected one or more numbers"),
        ([1, 1], "each of them once"),
        ([-1], "greater than or equal to 0"),
        ([0.5], "valid integer"),
        (3, "valid array"),
    ],
)
def test_repeats_are_numbers_of_their_own(field, value, reason):
    with pytest.raises(ParamsError, match=reason) as caught:
        parse(CompareParams, {field: value}, "compare")
    assert f"'compare.{field}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
