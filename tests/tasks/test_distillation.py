import math

import numpy as np
import pytest
import torch
from pydantic import PrivateAttr
from scipy.special import softmax
from torch import nn
from torch.nn import functional

from tasks.augmentations.affine import Affine
from tasks.augmentations.none import Unchanged
from tasks.combinations.mean import Mean
from tasks.compute import Compute
from tasks.distillation import (
    TEACHER_BATCH,
    CachedViews,
    DistillationParams,
    LiveViews,
    NetworkAnswers,
    Panel,
    StoredAnswers,
    cache_bytes,
    distill_into,
)
from tasks.errors import ParamsError
from tasks.fit import Watch
from tasks.losses import Loss
from tasks.losses.soft_labels import SoftLabels
from tasks.networks import Classifier, Outputs, Spec
from tasks.networks.convnet import ConvNet
from tasks.networks.resnet import ResNet
from tasks.rows import HIDDEN
from tasks.sections import parse
from tasks.views import Views, outputs

SPEC = Spec(network=ConvNet(widths=(8, 8)), shape=(8, 8, 1), outputs=2)
WIDE = Spec(network=ResNet(widths=(8, 16)), shape=(8, 8, 1), outputs=2)
AUGMENTATION = Affine(rotation_degrees=20, shift_share=0.1)
PLAIN = {
    "fit": {"steps": 60, "learning_rate": 0.01},
    "batch_size": 32,
    "views": 3,
    "augmentation": {"name": "affine", "rotation_degrees": 8.0, "shift_share": 0.05},
    "losses": [{"name": "soft_labels", "temperature": 2.0}],
}
FEW = PLAIN["fit"] | {"steps": 5}
EVERYTHING = frozenset({"features", "maps"})


def params(**changes):
    return parse(DistillationParams, PLAIN | changes, "distill")


@pytest.fixture(scope="module")
def network(build):
    network = build(SPEC, seed=4)
    with torch.no_grad():
        network.head.weight.mul_(8)
    return network


@pytest.fixture(scope="module")
def teacher(network):
    return NetworkAnswers(network)


@pytest.fixture(scope="module")
def live_of(rows, compute):
    """Live views of the training rows, or of some of them, with these teachers."""

    def make(*teachers, chosen=None, augmentation=AUGMENTATION, combination=None):
        views = Views(rows.train, augmentation, compute)
        chosen = torch.arange(len(views)) if chosen is None else torch.tensor(chosen)
        panel = Panel(teachers, combination or Mean(), views.labels)
        return LiveViews(views, chosen, panel, compute)

    return make


@pytest.fixture(scope="module")
def cached(live_of, teacher):
    return CachedViews.ask(live_of(teacher), 3, EVERYTHING, Watch())


class Asked:
    """A teacher that remembers which rows it was asked about, and can break down."""

    def __init__(self, teacher, fails_at=None):
        self.teacher, self.fails_at, self.calls = teacher, fails_at, []
        self.looks = teacher.looks

    def __call__(self, inputs, rows):
        self.calls.append(rows.tolist())
        if len(self.calls) == self.fails_at:
            raise Stop
        return self.teacher(inputs, rows)


class Stop(Exception):  # noqa: N818 - not an error
    pass


class Spy(Loss):
    """A loss without gradients that remembers what it was called with."""

    name: str = "spy"
    _pairs: list = PrivateAttr(default_factory=list)

    def __call__(self, pair):
        self._pairs.append(pair)
        return pair.student.logits.sum() * 0


def numbered(rows):
    """A teacher whose logits say the row's position."""
    at = torch.arange(len(rows.train)).float()
    return StoredAnswers(torch.stack([at, -at], dim=1))


def positions(inputs, known):
    """Which of the known pictures each input is, by its pixels."""
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(inputs.flatten(1), known.flatten(1), compute_mode=exact)
    assert (distances.min(1).values < 1e-4).all()
    return distances.argmin(1)


# What teachers say


def test_a_network_answers_about_the_view_it_is_shown(teacher, network, live_of):
    views = live_of(teacher).views
    at = torch.arange(5)
    inputs = views.under(at, AUGMENTATION.draw(5, torch.Generator().manual_seed(1)))
    with torch.no_grad():
        said, expected = teacher(inputs, at + 3), network(inputs)
    assert torch.equal(said.logits, expected)
    assert not torch.allclose(said.logits, network(views.clean(at)), atol=1e-3)


def test_an_estimators_answers_are_looked_up_by_row_whatever_the_view(rows):
    teacher = numbered(rows)
    at = torch.tensor([4, 0, 4, 17])
    for inputs in (torch.zeros(4, 1, 8, 8), torch.rand(4, 1, 8, 8)):
        said = teacher(inputs, at)
        assert said.logits[:, 0].tolist() == [4, 0, 4, 17]
        assert said.features is None
        assert said.maps == ()


def test_several_teachers_are_heard_as_their_combination(build, live_of, rows):
    networks = [build(SPEC, seed=seed) for seed in (1, 2)]
    stored = torch.randn(len(rows.train), 2, generator=torch.Generator().manual_seed(0))
    live = live_of(*map(NetworkAnswers, networks), StoredAnswers(stored))
    at = torch.tensor([5, 9, 2])
    inputs = live.views.clean(at)
    with torch.no_grad():
        each = [network(inputs).numpy() for network in networks] + [stored[at].numpy()]
    expected = np.mean([softmax(logits, axis=1) for logits in each], axis=0)
    said = live.panel(inputs, at)
    np.testing.assert_allclose(said.logits.exp().numpy(), expected, atol=1e-6)
    assert not said.logits.requires_grad


def test_a_single_teacher_is_heard_as_it_is(teacher, live_of):
    live = live_of(teacher)
    at = torch.tensor([5, 9, 2])
    with torch.no_grad():
        expected = teacher(live.views.clean(at), at)
    assert torch.equal(live.panel(live.views.clean(at), at).logits, expected.logits)


def test_features_and_maps_come_from_the_first_teacher_that_has_them(build, live_of, rows):
    first, second = (NetworkAnswers(build(spec, seed=1)) for spec in (WIDE, SPEC))
    at = torch.tensor([5, 9, 2])
    live = live_of(numbered(rows), first, second)
    inputs = live.views.clean(at)
    with torch.no_grad():
        expected, said = first(inputs, at), live.panel(inputs, at)
    assert torch.equal(said.features, expected.features)
    assert len(said.maps) == len(expected.maps) > 0
    assert all(torch.equal(*pair) for pair in zip(said.maps, expected.maps, strict=True))


def test_the_combination_sees_shown_labels_alone(rows, live_of):
    seen = []

    class Nosy(Mean):
        def __call__(self, logits, labels):
            seen.append(labels)
            return logits[0]

    live = live_of(numbered(rows), combination=Nosy())
    at = torch.arange(len(rows.train)).flip(0)
    live.panel(live.views.clean(at), at)
    assert seen[0].tolist() == rows.train.labels[::-1].tolist()
    assert HIDDEN in seen[0]


# Cached and live views


def test_what_is_cached_is_what_the_teacher_says_of_that_view(cached, teacher, rows):
    assert cached.outputs.logits.shape == (3, len(rows.train), 2)
    at = torch.arange(len(rows.train))
    for view in range(3):
        inputs = cached.views.under(at, cached.parameters[view])
        with torch.no_grad():
            expected = teacher(inputs, at)
        found = cached.outputs
        close(found.logits[view], expected.logits)
        close(found.features[view], expected.features)
        for level, wanted in zip(found.maps, expected.maps, strict=True):
            close(level[view], wanted)
    assert not torch.allclose(cached.outputs.logits[0], cached.outputs.logits[1], atol=0.01)


def close(halved, expected):
    assert halved.dtype == torch.float16
    assert not halved.requires_grad
    torch.testing.assert_close(halved.float(), expected, rtol=2e-3, atol=2e-3)


def test_what_no_loss_needs_is_not_cached(live_of, teacher):
    found = CachedViews.ask(live_of(teacher), 1, frozenset(), Watch()).outputs
    assert found.features is None
    assert found.maps == ()
    found = CachedViews.ask(live_of(teacher), 1, frozenset({"maps"}), Watch()).outputs
    assert found.features is None
    assert len(found.maps) > 0


@pytest.mark.parametrize("needs", [frozenset(), frozenset({"features"}), EVERYTHING])
def test_the_size_of_a_cache_is_known_before_it_is_made(live_of, teacher, needs):
    live = live_of(teacher, chosen=range(30))
    example = live.panel(live.views.clean(torch.arange(8)), torch.arange(8))
    made = CachedViews.ask(live, 2, needs, Watch()).outputs
    tensors = [made.logits, *made.maps, *([] if made.features is None else [made.features])]
    assert cache_bytes(example, needs, 2, 30) == sum(tensor.nbytes for tensor in tensors)


def test_student_and_teacher_see_the_very_same_cached_view(cached, teacher, compute):
    inputs, said, labels = cached.batch(50, compute.generator("b"))
    with torch.no_grad():
        expected = teacher(inputs, torch.zeros(50).long())
    for found, wanted in (
        (said.logits, expected.logits),
        (said.features, expected.features),
        *zip(said.maps, expected.maps, strict=True),
    ):
        torch.testing.assert_close(found, wanted, rtol=2e-3, atol=2e-3)
        assert found.dtype == torch.float32
    assert labels.shape == (50,)


def test_student_and_teacher_see_the_very_same_live_view(live_of, teacher, compute):
    live = live_of(teacher)
    inputs, said, labels = live.batch(50, compute.generator("b"))
    with torch.no_grad():
        expected = teacher(inputs, torch.zeros(50).long())
    assert torch.equal(said.logits, expected.logits)
    assert torch.equal(said.features, expected.features)
    assert not said.logits.requires_grad
    again = live.batch(50, compute.generator("b"))
    assert torch.equal(again[0], inputs)
    assert torch.equal(again[2], labels)
    other, _, _ = live.batch(50, compute.generator("c"))
    assert not torch.equal(other, inputs)


CHOSEN = [3, 7, 20, 21, 41]


@pytest.mark.parametrize("chosen", [None, CHOSEN])
@pytest.mark.parametrize("caches", [True, False])
def test_inputs_answers_and_labels_are_those_of_one_row(rows, live_of, compute, chosen, caches):
    live = live_of(numbered(rows), chosen=chosen, augmentation=Unchanged())
    lessons = CachedViews.ask(live, 1, frozenset(), Watch()) if caches else live
    inputs, said, labels = lessons.batch(400, compute.generator("b"))
    at = positions(inputs, live.views.clean(torch.arange(len(live.views))))
    assert said.logits[:, 0].tolist() == at.tolist()
    assert torch.equal(labels, live.views.labels[at])
    assert set(at.tolist()) == set(range(len(rows.train)) if chosen is None else chosen)
    if chosen is None:
        assert {HIDDEN, 0, 1} == set(labels.tolist())


def test_every_cached_view_is_drawn(cached, compute):
    inputs, _, _ = cached.batch(900, compute.generator("b"))
    at = torch.arange(len(cached.chosen))
    every = torch.cat([cached.views.under(at, one) for one in cached.parameters])
    drawn = torch.bincount(positions(inputs, every) // len(at), minlength=3)
    assert (drawn > 200).all()


def test_asking_again_gives_the_same_views(cached, live_of, teacher):
    again = CachedViews.ask(live_of(teacher), 3, EVERYTHING, Watch())
    assert torch.equal(again.parameters, cached.parameters)
    assert torch.equal(again.outputs.logits, cached.outputs.logits)


def test_asking_reports_every_round(live_of, teacher):
    seen = []
    watch = Watch(progress=lambda at, count, _metrics: seen.append((at, count)))
    CachedViews.ask(live_of(teacher), 2, frozenset(), watch)
    assert seen == [(1, 2), (2, 2)]


# When answers are cached


def calls_of(rows, build, teacher, compute, **changes):
    """Batches that a teacher was asked about while a student learnt, without the first look."""
    asked = Asked(teacher)
    distill_into(build(SPEC), [asked], rows, params(**changes), compute, Watch())
    return asked.calls[1:]


@pytest.mark.parametrize(("caching", "steps"), [(True, 0), (False, -1)])
def test_answers_are_cached_where_they_are_asked_for_more_often_than_made(
    rows, build, teacher, compute, caching, steps
):
    count = len(rows.train)
    pays = math.ceil(2 * count / 16)  # steps of 16 rows that take as many answers as 2 views cost
    fit = FEW | {"steps": pays + steps}
    calls = calls_of(rows, build, teacher, compute, views=2, batch_size=16, fit=fit)
    if caching:
        assert [sorted(call) for call in calls] == [list(range(count))] * 2
        assert count <= TEACHER_BATCH
    else:
        assert [len(call) for call in calls] == [16] * (pays - 1)


def test_without_memory_teachers_are_asked_in_every_step(rows, build, teacher, compute):
    calls = calls_of(rows, build, teacher, compute, cache_mb=0)
    assert [len(call) for call in calls] == [32] * 60


@pytest.mark.parametrize("cache_mb", [1, 2])
def test_memory_is_kept_within_its_limit(rows, build, teacher, compute, cache_mb):
    """Maps of all views take between 1 and 2 MB."""
    losses = [{"name": "attention"}]
    example = teacher(torch.rand(1, 1, 8, 8), torch.zeros(1).long())
    size = cache_bytes(example, frozenset({"maps"}), 20, len(rows.train))
    assert 2**20 < size < 2 * 2**20
    fit = FEW | {"steps": math.ceil(20 * len(rows.train) / 32)}
    calls = calls_of(
        rows, build, teacher, compute, losses=losses, cache_mb=cache_mb, views=20, fit=fit
    )
    assert len(calls) == (fit["steps"] if cache_mb == 1 else 20)


def test_who_does_not_look_is_heard_about_views_that_are_new_in_every_step(
    rows, build, teacher, compute
):
    stored = StoredAnswers(torch.zeros(len(rows.train), 2))
    assert [len(call) for call in calls_of(rows, build, stored, compute)] == [32] * 60
    asked = Asked(stored)
    both = [asked, teacher]
    distill_into(build(SPEC), both, rows, params(), compute, Watch())
    assert all(len(call) == len(rows.train) for call in asked.calls[1:])  # cached with the other's


def test_rows_that_never_change_have_one_view(rows, build, teacher, compute):
    changes = {"augmentation": {"name": "none"}, "views": 50}
    calls = calls_of(rows, build, teacher, compute, **changes)
    assert calls == [list(range(len(rows.train)))]


def test_cached_answers_teach_as_live_ones_do(rows, build, teacher, compute):
    """Without augmentation both see the same; the student ends near the same teacher."""
    ends = []
    for cache_mb in (0, 1):
        student = build(SPEC, seed=9)
        chosen = params(augmentation={"name": "none"}, cache_mb=cache_mb)
        distill_into(student, [teacher], rows, chosen, compute, Watch())
        ends.append(distance(student, teacher.network, rows, compute))
    far = distance(build(SPEC, seed=9), teacher.network, rows, compute)
    assert max(ends) < far / 4
    assert ends[0] == pytest.approx(ends[1], abs=far / 20)


# Learning


def distance(student, teacher, rows, compute):
    """KL from the teacher on test rows as they are."""
    found, wanted = (
        outputs(net, rows.open_test(), compute).log_softmax(1) for net in (student, teacher)
    )
    return functional.kl_div(found, wanted, reduction="batchmean", log_target=True).item()


def test_a_student_comes_near_its_teacher_who_stays_as_it_was(
    build, teacher, network, rows, compute, state_digest
):
    student, before = build(SPEC, seed=9), state_digest(network)
    far = distance(student, network, rows, compute)
    score = distill_into(student, [teacher], rows, params(), compute, Watch())
    assert distance(student, network, rows, compute) < far / 4
    assert state_digest(network) == before
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training
    predicted = outputs(student, rows.validation, compute).argmax(1).numpy()
    assert score == {"validation_accuracy": float((predicted == rows.validation.labels).mean())}


def test_a_student_comes_near_what_an_estimator_said(build, rows, compute):
    """Its answers are wrong on purpose: only who looks them up by row can learn them."""
    logits = torch.full((len(rows.train), 2), -4.0)
    truth = torch.from_numpy(rows.open_oracle().labels)
    names = {name: at for at, name in enumerate(rows.open_oracle().names)}
    for at, name in enumerate(rows.train.names):
        if name in names:
            logits[at, 1 - truth[names[name]]] = 4.0
    chosen = params(fit=PLAIN["fit"] | {"steps": 150})
    student = build(SPEC, seed=9)
    distill_into(student, [StoredAnswers(logits)], rows, chosen, compute, Watch())
    test = rows.open_test()
    wrong = outputs(student, test, compute).argmax(1).numpy() != test.labels
    assert wrong.mean() > 0.9


def test_the_student_hears_every_teacher(build, teacher, rows, compute):
    """Two that contradict each other leave it undecided."""
    opposite = build(SPEC, seed=4)
    opposite.load_state_dict(teacher.network.state_dict())
    with torch.no_grad():
        opposite.head.weight.mul_(-1)
        opposite.head.bias.mul_(-1)
    spread = {}
    for teachers in ([teacher], [teacher, NetworkAnswers(opposite.eval())]):
        student = build(SPEC, seed=9)
        distill_into(student, teachers, rows, params(), compute, Watch())
        logits = outputs(student, rows.open_test(), compute)
        spread[len(teachers)] = (logits[:, 0] - logits[:, 1]).abs().mean().item()
    assert spread[2] < spread[1] / 3


def trained(build, teacher, rows, compute, watch=None, **changes):
    student = build(SPEC, seed=9)
    chosen = params(**{"fit": FEW} | changes)
    distill_into(student, [teacher], rows, chosen, compute, watch or Watch())
    return student


@pytest.mark.parametrize("cache_mb", [0, 512])
def test_the_same_run_gives_the_same_bits(build, teacher, rows, compute, state_digest, cache_mb):
    changes = {"cache_mb": cache_mb, "batch_size": 64}
    digests = [state_digest(trained(build, teacher, rows, compute, **changes)) for _ in range(2)]
    assert digests[0] == digests[1] != state_digest(build(SPEC, seed=9))
    other = Compute(1, 1, torch.device("cpu"), bf16=False)
    assert state_digest(trained(build, teacher, rows, other, **changes)) != digests[0]


def test_every_loss_of_the_list_counts(build, teacher, rows, compute, state_digest):
    digests = {
        state_digest(trained(build, teacher, rows, compute, losses=losses))
        for losses in (
            PLAIN["losses"],
            [*PLAIN["losses"], {"name": "hard_labels"}],
            [*PLAIN["losses"], {"name": "hard_labels", "weight": 5.0}],
            [*PLAIN["losses"], {"name": "hints"}],
            [*PLAIN["losses"], {"name": "attention"}],
        )
    }
    assert len(digests) == 5


def test_a_losss_own_modules_learn_beside_the_student(build, rows, compute):
    """A head of the right width, from another one's width, is made, trained and thrown away."""
    heads = []

    class Mapped(SoftLabels):
        name: str = "mapped"
        needs = frozenset({"features"})

        def head(self, example):
            heads.append(nn.Linear(example.student.features.shape[1], 16))
            heads.append(heads[0].weight.detach().clone())
            return heads[0]

        def __call__(self, pair):
            assert pair.teacher.features.shape[1] == 16
            return functional.mse_loss(pair.head(pair.student.features), pair.teacher.features)

    student, teacher = build(SPEC, seed=9), NetworkAnswers(build(WIDE, seed=1))
    chosen = params(fit=FEW).model_copy(update={"losses": (Mapped(),)})
    distill_into(student, [teacher], rows, chosen, compute, Watch())
    assert not torch.allclose(heads[0].weight, heads[1], atol=1e-3)
    assert {name.split(".")[0] for name in student.state_dict()} == {"body", "head"}


@pytest.mark.parametrize("cache_mb", [0, 512])
def test_an_interrupted_run_goes_on_with_the_same_bits(
    build, teacher, rows, compute, state_digest, tmp_path, cache_mb
):
    changes = {
        "fit": FEW | {"steps": 12, "ema_decay": 0.8},
        "losses": [*PLAIN["losses"], {"name": "hints"}],
        "cache_mb": cache_mb,
        "batch_size": 64,
    }
    torch.manual_seed(0)
    whole = trained(build, teacher, rows, compute, **changes)
    seen = []

    def report(at, steps, _metrics):
        seen.append(at)
        if steps == 12 and at == 7:
            raise Stop

    watch = Watch(checkpoint=tmp_path / "run.pt", every_seconds=0)
    with pytest.raises(Stop):
        trained(build, teacher, rows, compute, Watch(report, watch.checkpoint, 0), **changes)
    seen.clear()
    ends = trained(build, teacher, rows, compute, watch, **changes)
    assert torch.load(watch.checkpoint, weights_only=True)["at"] == 12
    assert state_digest(ends) == state_digest(whole)


# The share of rows


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.37, 0.5])
def test_the_student_sees_exactly_that_share_of_rows(rows, build, teacher, compute, share, caching):
    def seen(compute):
        changes = {"rows_share": share, "cache_mb": 512 if caching else 0, "batch_size": 256}
        fit = FEW | {"steps": 8}
        calls = calls_of(rows, build, teacher, compute, fit=fit, **changes)
        return set().union(*calls)

    found = seen(compute)
    assert len(found) == round(share * len(rows.train))
    assert seen(compute) == found
    assert seen(Compute(1, 1, torch.device("cpu"), bf16=False)) != found


def test_a_tiny_share_is_one_row(rows, build, teacher, compute):
    calls = calls_of(rows, build, teacher, compute, rows_share=1e-6)
    assert len(set().union(*calls)) == 1


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("cache_mb", [0, 512])
def test_no_label_that_is_not_shown_reaches_a_loss(rows, build, compute, share, cache_mb):
    spy = Spy()
    chosen = params(rows_share=share, cache_mb=cache_mb).model_copy(update={"losses": (spy,)})
    distill_into(build(SPEC), [numbered(rows)], rows, chosen, compute, Watch())
    at = torch.cat([pair.teacher.logits[:, 0] for pair in spy._pairs]).long()
    labels = torch.cat([pair.labels for pair in spy._pairs])
    assert labels.tolist() == rows.train.labels[at].tolist()
    assert HIDDEN in labels
    assert set(labels.tolist()) > {HIDDEN}


# Sparse weights


def test_l1_pulls_every_weight_to_zero_and_nothing_else(rows, build, teacher, compute):
    """With a loss that has no gradient, the penalty's is all there is."""
    before = build(SPEC, seed=9).state_dict()
    student = build(SPEC, seed=9)
    fit = {"steps": 20, "learning_rate": 0.001, "weight_decay": 0.0, "warmup_share": 0.0}
    chosen = params(fit=fit, l1=0.5).model_copy(update={"losses": (Spy(),)})
    losses = []
    watch = Watch(progress=lambda *report: losses.append(report[2].get("loss")))
    distill_into(student, [teacher], rows, chosen, compute, watch)
    kernels = [tensor for tensor in before.values() if tensor.dim() > 1]
    first = next(loss for loss in losses if loss is not None)
    assert first == pytest.approx(0.5 * sum(one.abs().sum().item() for one in kernels), rel=1e-5)
    for name, parameter in student.named_parameters():
        if parameter.dim() > 1:
            inside = before[name].abs() > 0.03  # further from zero than 20 steps can go
            moved = before[name].abs() - parameter.abs()
            # Adam's steps for a constant gradient are as long as the rate, whose mean is half.
            assert moved[inside].tolist() == pytest.approx([0.01] * inside.sum(), rel=0.1)
            assert (parameter.sign() == before[name].sign())[inside].all()
        else:
            assert torch.equal(parameter, before[name]), name


def test_more_l1_leaves_smaller_weights(rows, build, teacher, compute):
    sizes = []
    for l1 in (0.0, 1e-3, 1e-1):
        student = build(SPEC, seed=9)
        distill_into(student, [teacher], rows, params(l1=l1), compute, Watch())
        weights = [one for one in student.parameters() if one.dim() > 1]
        sizes.append(sum(one.abs().sum().item() for one in weights))
    assert sizes[2] < sizes[1] / 2 < sizes[0] / 2


# What is refused


class NoMaps(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 8)

    def forward(self, inputs):
        return self.linear(inputs.flatten(1)).relu()


@pytest.mark.parametrize(
    ("loss", "who"),
    [
        ("hints", "teacher"),
        ("attention", "teacher"),
        ("relations", "teacher"),
        ("attention", "student"),
    ],
)
def test_a_loss_that_compares_what_one_does_not_have_is_refused_before_training(
    rows, build, teacher, compute, state_digest, loss, who
):
    student = build(SPEC) if who == "teacher" else Classifier(NoMaps(), 8, 2)
    teachers = [numbered(rows) if who == "teacher" else teacher]
    before, reports = state_digest(student), []
    watch = Watch(progress=lambda *report: reports.append(report))
    chosen = params(losses=[*PLAIN["losses"], {"name": loss}])
    with pytest.raises(ParamsError) as caught:
        distill_into(student, teachers, rows, chosen, compute, watch)
    what = "maps" if loss == "attention" else "features"
    assert str(caught.value) == (
        f"the loss '{loss}' compares {what}, which the {who} does not have; take soft_labels, or "
        "another network"
    )
    assert state_digest(student) == before
    assert reports == []


def test_a_network_beside_an_estimator_suffices_for_features(rows, build, teacher, compute):
    chosen = params(losses=[{"name": "hints"}], fit=FEW)
    student = build(SPEC, seed=9)
    distill_into(student, [numbered(rows), teacher], rows, chosen, compute, Watch())


@pytest.mark.parametrize(
    "change",
    [
        {"losses": []},
        {"views": 0},
        {"batch_size": 1},
        {"rows_share": 0.0},
        {"rows_share": 1.1},
        {"l1": -1.0},
        {"cache_mb": -1},
    ],
)
def test_impossible_parameters_are_refused(change):
    (name,) = change
    with pytest.raises(ParamsError, match=rf"distill\.{name}"):
        params(**change)


def test_what_a_model_says_has_neither_features_nor_maps_unless_stated():
    said = Outputs(torch.zeros(1, 2))
    assert said.features is None
    assert said.maps == ()
