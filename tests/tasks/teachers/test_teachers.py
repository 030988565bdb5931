"""What every file of the drawer has to hold, this one's and those to come."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from tasks.augmentations.affine import Affine
from tasks.errors import ParamsError
from tasks.fit import FitParams, Watch, averaged, fit
from tasks.networks import Classifier, Spec
from tasks.networks.convnet import ConvNet
from tasks.rows import Rows
from tasks.teachers import TEACHERS, PoolTeacher
from tasks.views import Views, accuracy

NAMES = sorted(TEACHERS.methods)
SMALL = {"labelled_batch": 16, "pool_batch": 48, "threshold": 0.7, "clusters": 20}
AUGMENTATION = Affine(rotation_degrees=8.0, shift_share=0.05)


def method_of(name, **changes):
    """A method by name, with those of these parameters that it has."""
    method = TEACHERS.methods[name]
    return method(**{k: v for k, v in (SMALL | changes).items() if k in method.model_fields})


def train(method, network, make, pool, compute, watch=None, stop_at=None, **changes):
    """Trains as the stage does, in the setting that `make` makes."""
    params = FitParams(**({"steps": 60, "learning_rate": 0.01, "ema_decay": 0.9} | changes))
    average = averaged(network, params)
    lesson = method.lesson(make(network, pool, average))

    def step(at, generator):
        if at == stop_at:
            raise Stop
        return lesson(at / params.steps, generator)

    fit(network, step, params, compute, watch, beside=lesson, average=average)


class Stop(Exception):  # noqa: N818 - not an error
    pass


@pytest.fixture
def small():
    """Builds a small convolutional network for pictures of side 8."""

    def build(classes=10):
        torch.manual_seed(0)
        spec = Spec(network=ConvNet(widths=(8, 16)), shape=(8, 8, 1), outputs=classes)
        return spec.build()

    return build


@pytest.fixture
def of_pictures(setting_of):
    def make(network, pool, average=None):
        return setting_of(network, pool, AUGMENTATION, average)

    return make


@pytest.fixture
def of_tokens(setting_of):
    def make(network, pool, average=None):
        return setting_of(network, pool, average=average)

    return make


@pytest.mark.parametrize("name", NAMES)
def test_few_labels_of_digits_beat_chance(name, small, of_pictures, digits, compute):
    pool, truth = digits()
    network = small()
    before = accuracy(network.eval(), truth, compute)["validation_accuracy"]
    train(method_of(name), network, of_pictures, pool, compute)
    assert before < 0.25
    assert accuracy(network, truth, compute)["validation_accuracy"] > 0.6


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"mixmatch"}))
def test_few_labels_of_tokens_beat_chance(name, bag, of_tokens, tokens, compute):
    pool, truth = tokens
    network = bag()
    train(method_of(name), network, of_tokens, pool, compute, learning_rate=0.03)
    assert accuracy(network, truth, compute)["validation_accuracy"] > 0.55  # chance: 0.33


def test_mixing_tokens_is_refused(bag, of_tokens, tokens, compute):
    with pytest.raises(ParamsError, match="mixmatch mixes inputs, which tokens cannot be"):
        train(method_of("mixmatch"), bag(), of_tokens, tokens[0], compute)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    name, small, of_pictures, digits, compute, tmp_path, state_digest
):
    method, pool = method_of(name, alignment=True, threshold=0.2), digits()[0]

    def run(watch=None, stop_at=None):
        network = small()
        train(method, network, of_pictures, pool, compute, watch, stop_at, steps=8)
        return state_digest(network)

    watch = Watch(checkpoint=tmp_path / "run.pt", every_seconds=0)
    for stop_at in (3, 5):
        with pytest.raises(Stop):
            run(watch, stop_at)
    torch.manual_seed(5)
    assert run(watch) == run()


@pytest.mark.parametrize(
    "name", [name for name in NAMES if issubclass(TEACHERS.methods[name], PoolTeacher)]
)
def test_alignment_is_kept_with_the_lesson_and_changes_what_is_learnt(
    name, small, of_pictures, digits, compute, state_digest
):
    # Two thirds of the labels are of class 0.
    pool = digits()[0]
    seen = np.flatnonzero(pool.labels != -1)
    pool.labels[seen[: 2 * len(seen) // 3]] = 0
    found = set()
    for alignment in (False, True):
        network = small()
        method = method_of(name, alignment=alignment, threshold=0.2)
        average = averaged(network, FitParams(steps=1, learning_rate=0.1, ema_decay=0.5))
        lesson = method.lesson(of_pictures(network, pool, average))
        assert ("align.running" in lesson.state_dict()) == alignment
        train(method, network, of_pictures, pool, compute, steps=4)
        found.add(state_digest(network))
    assert len(found) == 2


# The pool's term


@pytest.fixture
def deep():
    """Builds a classifier whose body learns, without a state of its own."""

    def build():
        torch.manual_seed(0)
        return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh()), 12, 10)

    return build


WEIGHTED = [name for name in NAMES if "pool_weight" in TEACHERS.methods[name].model_fields]


@pytest.fixture
def slopes(deep, of_pictures, digits, one_step):
    """Gradients of one step on digits, with five labels of each class but the first."""

    def run(method, of_first=5):
        pool = digits()[0]
        pool.labels[np.flatnonzero(pool.labels == 0)[of_first:]] = -1
        average = deep()
        with torch.no_grad():
            for parameter in average.parameters():
                parameter.mul_(3)
        return one_step(method, of_pictures(deep(), pool, average))[1]

    return run


@pytest.mark.parametrize("name", WEIGHTED)
def test_the_pool_changes_the_gradients_in_proportion_to_its_weight(name, slopes):
    nothing, once, twice = (
        slopes(method_of(name, threshold=0.0, pool_weight=weight)) for weight in (0.0, 3.0, 6.0)
    )
    body = "body.1.weight"
    assert (once[body] - nothing[body]).abs().max() > 1e-4
    for key, gradient in nothing.items():
        torch.testing.assert_close(
            twice[key] - gradient, 2 * (once[key] - gradient), rtol=1e-2, atol=1e-5
        )


@pytest.mark.parametrize("name", WEIGHTED)
def test_what_is_learnt_from_the_pool_is_learnt_from_views(
    name, deep, of_pictures, digits, one_step, recorded
):
    setting = of_pictures(deep(), digits()[0], deep())
    seen = recorded(setting.network.body)
    one_step(method_of(name, threshold=0.0, cutout_share=0.0), setting)
    rows = setting.pool.clean(torch.arange(400)).flatten(1)
    pool = seen[-1][0].flatten(1)[-48:]
    assert (torch.cdist(pool, rows).amin(dim=1) > 0.05).float().mean() > 0.95


# MixMatch without a weight for the pool still mixes it into the labelled rows.
@pytest.mark.parametrize("name", sorted(set(WEIGHTED) - {"mixmatch"}))
def test_without_its_weight_the_labels_alone_teach(name, slopes):
    alone, found = slopes(method_of("supervised")), slopes(method_of(name, pool_weight=0.0))
    assert all(torch.equal(found[key], gradient) for key, gradient in alone.items())


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "threshold" in TEACHERS.methods[name].model_fields]
)
def test_without_a_confident_guess_the_labels_alone_teach(name, slopes):
    alone, found = slopes(method_of("supervised")), slopes(method_of(name, threshold=1.0))
    assert all(torch.equal(found[key], gradient) for key, gradient in alone.items())
    some = slopes(method_of(name, threshold=0.12))
    assert not all(torch.equal(some[key], gradient) for key, gradient in alone.items())


# Labels that are not shown


@pytest.fixture(scope="module")
def mislabelled(prepared, tmp_path_factory):
    """The prepared folder with every hidden label of a training row turned into the other class."""
    folder = tmp_path_factory.mktemp("mislabelled") / "prepared"
    shutil.copytree(prepared, folder)
    table = pq.read_table(folder / "manifest.parquet")
    rows = table.to_pylist()
    hidden = [row for row in rows if row["split"] == "train" and row["label"] and not row["shown"]]
    for row in hidden:
        row["label"] = {"h": "v", "v": "h"}[row["label"]]
    assert len(hidden) > 10
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / "manifest.parquet")
    return Rows(folder)


@pytest.mark.parametrize("name", NAMES)
def test_hidden_labels_play_no_part(
    name, rows, mislabelled, small, of_pictures, compute, state_digest
):
    changed = mislabelled.open_oracle().labels != rows.open_oracle().labels
    assert changed.sum() > 10

    def run(pool):
        network = small(classes=2)
        train(method_of(name), network, of_pictures, pool, compute, steps=4)
        return state_digest(network)

    assert run(mislabelled.train) == run(rows.train)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"propagation"}))
def test_not_even_shown_labels_are_read_from_the_pool(name, slopes, of_pictures, monkeypatch):
    before = slopes(method_of(name))
    init = Views.__init__

    def scrambled(self, part, *rest):
        init(self, part, *rest)
        if (part.labels == -1).any():
            self.labels = (self.labels + 3) % 10

    monkeypatch.setattr(Views, "__init__", scrambled)
    after = slopes(method_of(name))
    assert all(torch.equal(after[key], gradient) for key, gradient in before.items())


# What all share


@pytest.mark.parametrize("name", NAMES)
def test_a_step_works_in_mixed_precision(name, small, of_pictures, digits, one_step):
    setting = of_pictures(small(), digits()[0], small().eval())
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = one_step(method_of(name, threshold=0.1, alignment=True), setting)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changes", [{"sampling": "balanced"}, {"logit_adjustment": 1.0}])
def test_every_method_minds_how_common_a_class_is(name, changes, slopes):
    for count, differs in ((1, True), (5, "sampling" in changes)):
        plain, changed = (
            slopes(one, count) for one in (method_of(name), method_of(name, **changes))
        )
        gap = max((changed[key] - gradient).abs().max() for key, gradient in plain.items())
        assert (gap > 1e-3) == differs


@pytest.mark.parametrize("name", NAMES)
def test_a_method_can_be_stored_and_read_again(name):
    method = method_of(name)
    assert TEACHERS.parse(method.plain()) == method
