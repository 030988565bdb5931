import copy

import pytest
import torch
from scipy.special import log_softmax, softmax
from torch.nn import functional

from tasks import networks
from tasks.budget import Redraw
from tasks.compute import Compute
from tasks.consult import ConsultParams, consult
from tasks.distillation import Course, NetworkAnswers, StoredAnswers
from tasks.errors import ParamsError
from tasks.estimators.logistic_regression import LogisticRegression
from tasks.fit import FitParams, Watch, rate_at
from tasks.losses import Loss
from tasks.losses.hard_labels import HardLabels
from tasks.losses.soft_labels import SoftLabels
from tasks.mutual import AUXILIARY, MAIN, MutualParams, distance, joint_loss, learn_together, mutual
from tasks.networks import Outputs, Spec
from tasks.networks.convnet import ConvNet
from tasks.networks.resnet import ResNet
from tasks.rows import HIDDEN, Rows
from tasks.sections import parse
from tasks.stage import stage
from tasks.tracking import payload_of
from tasks.views import outputs

SPECS = (
    Spec(network=ConvNet(widths=(8, 8)), shape=(8, 8, 1), outputs=2),
    Spec(network=ResNet(widths=(8, 16)), shape=(8, 8, 1), outputs=2),
)
PLAIN = {
    "network": {"name": "convnet", "widths": [8, 8]},
    "auxiliary": {"name": "resnet", "widths": [8, 16]},
    "fit": {"steps": 6, "learning_rate": 0.01},
    "batch_size": 32,
    "views": 2,
    "augmentation": {"name": "affine", "rotation_degrees": 8.0, "shift_share": 0.05},
}
FIT = PLAIN["fit"]


def params(**changes):
    return parse(MutualParams, PLAIN | changes, "mutual")


def pair_of(build):
    """A main and an auxiliary network; always the same ones."""
    return build(SPECS[MAIN], seed=9), build(SPECS[AUXILIARY], seed=5)


@pytest.fixture
def both(build):
    return pair_of(build)


@pytest.fixture(scope="module")
def teachers(rows):
    """One whose answers tell rows apart, but know nothing."""
    return [StoredAnswers(TEACHER[: len(rows.train)])]


TEACHER = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def learn(rows, teachers, compute):
    """Trains two networks in place; what was measured."""

    def run(both, watch=None, chosen=None, compute=compute, teachers=teachers, **changes):
        chosen = chosen or params(**changes)
        return learn_together(both, teachers, rows, chosen, compute, watch or Watch())

    return run


class Nothing(Loss):
    """A loss without gradients: what is left is what the networks do to each other."""

    name: str = "nothing"

    def __call__(self, pair):
        return pair.student.logits.sum() * 0


class Stop(Exception):  # noqa: N818 - not an error
    pass


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def weights(network):
    return torch.cat([one.detach().flatten() for one in network.parameters()])


# The joint loss


@pytest.fixture
def lesson(both, teachers, rows, compute):
    """A course, and one batch of it with labels among the hidden ones."""

    def make(**changes):
        chosen = params(**{"augmentation": {"name": "none"}} | changes)
        course = Course.of(both, teachers, rows, chosen, compute, Watch())
        batch = course.batch(torch.Generator().manual_seed(2))
        assert {HIDDEN, 0, 1} == set(batch[2].tolist())
        return chosen, course, batch

    return make


@pytest.mark.parametrize("turn", [MAIN, AUXILIARY])
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 2.0), (0.0, 4.0)])
def test_the_joint_loss_is_the_formula(lesson, both, turn, weight, temperature):
    chosen, course, batch = lesson(auxiliary_weight=weight, temperature=temperature)
    inputs, said, labels = batch
    logits = [network(inputs).detach().double().numpy() for network in both]
    known = labels.numpy() >= 0

    def divergence(own, target, scale):
        p = softmax(target / scale, axis=1)
        gap = log_softmax(target / scale, axis=1) - log_softmax(own / scale, axis=1)
        return scale**2 * (p * gap).sum(1).mean()

    total = 0.0
    for factor, own, other in ((1.0, *logits), (weight, *logits[::-1])):
        by_label = -log_softmax(own, axis=1)[known, labels.numpy()[known]].mean()
        taught = divergence(own, said.logits.double().numpy(), 2.0)
        total += factor * (by_label + taught + divergence(own, other, temperature))
    found = joint_loss(course, chosen, turn, batch).detach()
    assert float(found) == pytest.approx(total, rel=1e-4)


def gradients(network):
    return [None if one.grad is None else one.grad.clone() for one in network.parameters()]


def expected_gradients(both, batch, turn, weight, temperature):
    """Of the joint loss as torch writes it, with the other's logits as plain numbers."""
    inputs, said, labels = batch
    logits = [network(inputs) for network in both]
    logits[1 - turn] = logits[1 - turn].detach()

    def divergence(own, target, scale):
        own, target = ((one / scale).log_softmax(1) for one in (own, target))
        return scale**2 * (target.exp() * (target - own)).sum(1).mean()

    terms = [
        functional.cross_entropy(own, labels, ignore_index=HIDDEN)
        + divergence(own, said.logits, 2.0)
        + divergence(own, other, temperature)
        for own, other in (logits, logits[::-1])
    ]
    joint = terms[0] + weight * terms[1]
    return torch.autograd.grad(joint, list(both[turn].parameters()))


@pytest.mark.parametrize("turn", [MAIN, AUXILIARY])
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 2.0), (0.0, 1.0)])
def test_in_its_turn_a_network_alone_steps_down_the_joint_loss(
    lesson, both, turn, weight, temperature
):
    chosen, course, batch = lesson(auxiliary_weight=weight, temperature=temperature)
    expected = expected_gradients(both, batch, turn, weight, temperature)
    joint_loss(course, chosen, turn, batch).backward()
    for found, wanted in zip(gradients(both[turn]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert max(one.abs().max() for one in gradients(both[turn])) > 1e-3
    assert gradients(both[1 - turn]) == [None] * len(gradients(both[1 - turn]))


def test_without_weight_the_main_network_takes_the_papers_own_step(lesson, both):
    """∇(losses(main) + KL(p_auxiliary ‖ p_main)): equation 4 of arXiv:1706.00384 with teachers."""
    chosen, course, batch = lesson(auxiliary_weight=0.0)
    inputs, said, labels = batch
    with torch.no_grad():
        p = both[AUXILIARY](inputs).softmax(1)
    own = both[MAIN](inputs)
    known = (labels != HIDDEN).sum()
    target, taught = functional.one_hot(labels.clamp_min(0), 2).float(), said.logits
    by_label = (own.softmax(1) - target)[labels != HIDDEN] / known
    by_teacher = 2.0 * ((own / 2).softmax(1) - (taught / 2).softmax(1)) / len(labels)
    by_other = (own.softmax(1) - p) / len(labels)
    at_logits = by_teacher + by_other
    at_logits[labels != HIDDEN] += by_label
    expected = torch.autograd.grad(own, list(both[MAIN].parameters()), at_logits)
    joint_loss(course, chosen, MAIN, batch).backward()
    for found, wanted in zip(gradients(both[MAIN]), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_networks_that_say_the_same_do_not_move_each_other(build, teachers, rows, compute):
    twins = build(SPECS[0], seed=9), build(SPECS[0], seed=9)
    chosen = params(auxiliary=PLAIN["network"])
    course = Course.of(twins, teachers, rows, chosen, compute, Watch())
    batch = course.batch(torch.Generator().manual_seed(2))
    joint_loss(course, chosen, MAIN, batch).backward()
    together = gradients(twins[MAIN])
    alone = build(SPECS[0], seed=9)
    course = Course.of([alone], teachers, rows, chosen, compute, Watch())
    joint_loss(course, chosen, MAIN, batch).backward()
    for found, wanted in zip(together, gradients(alone), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_only_the_heads_of_whose_turn_it_is_learn(build, rows, both, compute):
    losses = [{"name": "soft_labels"}, {"name": "hints"}]
    teacher = NetworkAnswers(copy.deepcopy(both[AUXILIARY]))
    chosen = params(losses=losses)
    course = Course.of(both, [teacher], rows, chosen, compute, Watch())
    batch = course.batch(torch.Generator().manual_seed(2))
    for turn in (MAIN, AUXILIARY):
        course.heads.zero_grad(set_to_none=True)
        joint_loss(course, chosen, turn, batch).backward()
        mine, others = (gradients(course.heads[at]) for at in (turn, 1 - turn))
        assert mine
        assert all(one.abs().max() > 0 for one in mine)
        assert others == [None] * len(others)


def test_what_losses_train_beside_a_network_learns_with_it(learn, build):
    made = []

    class Mapped(SoftLabels):
        name: str = "mapped"

        def head(self, example):
            made.append(torch.nn.Linear(2, 2))
            made.append(made[-1].weight.detach().clone())
            return made[-2]

        def __call__(self, pair):
            guess = pair.head(pair.student.logits).float()
            return functional.mse_loss(guess, pair.teacher.logits)

    learn(pair_of(build), chosen=params().model_copy(update={"losses": (Mapped(),)}))
    mains, before, auxiliarys, before_too = made  # the copy alone has a copy of the main one's
    assert not torch.allclose(mains.weight, before, atol=1e-3)
    assert not torch.allclose(auxiliarys.weight, before_too, atol=1e-3)


# Turns


def together_only(seen):
    """Reports of the run with both networks; those of the copy alone are named otherwise."""

    def report(at, steps, metrics):
        if metrics and not any(name.startswith("alone_") for name in metrics):
            seen(at, steps, metrics)

    return Watch(progress=report)


def test_they_take_turns_and_each_takes_all_its_steps(learn, both):
    before = [weights(network) for network in both]
    seen = []
    learn(both, together_only(lambda at, *_: seen.append((at, *map(weights, both)))))
    assert [at for at, *_ in seen] == list(range(1, 13))
    for at, *after in seen:
        moved = [not torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert moved == ([True, False] if at % 2 else [False, True])
        before = after


class Asked:
    """A teacher that remembers which rows and views it was asked about."""

    def __init__(self, teacher):
        self.teacher, self.looks, self.calls = teacher, teacher.looks, []

    def __call__(self, inputs, rows):
        self.calls.append((rows.tolist(), inputs.sum().item()))
        return self.teacher(inputs, rows)


def test_both_and_the_copy_alone_see_the_same_views_of_the_same_rows(both, rows, teachers, compute):
    asked = Asked(teachers[0])
    chosen = params(cache_mb=0)
    learn_together(both, [asked], rows, chosen, compute, Watch())
    looks, calls = asked.calls[:2], asked.calls[2:]  # first it is heard once beside each student
    assert len(looks[0][0]) < 32
    together, alone = calls[:12], calls[12:]
    assert together[::2] == together[1::2]
    assert len({str(call) for call in together[::2]}) == 6
    assert alone == together


def by_hand(both, said, fit, *, steps, chosen=None):
    """The same training with one optimizer for each network and a batch that never changes."""
    inputs, labels, answers = said
    optimizers = [torch.optim.AdamW(one.parameters(), weight_decay=1e-4) for one in both]
    for network in both:
        network.train()
    for at in range(steps):
        turn = at % 2
        if turn == len(both):
            continue
        optimizers[turn].param_groups[0]["lr"] = rate_at(at, FitParams(**fit))
        if len(both) == 1:
            logits = both[0](inputs)
            own = ((one / 2).log_softmax(1) for one in (logits, answers))
            guess, target = own
            loss = 4 * (target.exp() * (target - guess)).sum(1).mean()
            found = torch.autograd.grad(loss, list(both[0].parameters()))
        else:
            said_now = (inputs, Outputs(answers), labels)
            found = expected_gradients(both, said_now, turn, chosen.auxiliary_weight, 1.0)
        for parameter, gradient in zip(both[turn].parameters(), found, strict=True):
            parameter.grad = gradient
        optimizers[turn].step()
    return [weights(network) for network in both]


ONE_ROW = {
    "rows_share": 1e-6,
    "cache_mb": 0,
    "augmentation": {"name": "none"},
    "auxiliary_weight": 0.4,
}


def test_it_is_the_training_that_the_formulas_say(learn, both, rows, compute):
    """Of one row again and again, against a loop with an optimizer for each network."""
    chosen = params(**ONE_ROW, fit=FIT | {"steps": 10})
    seen = {}

    class Heard(SoftLabels):
        def __call__(self, pair):
            seen["answers"], seen["labels"] = pair.teacher.logits, pair.labels
            return super().__call__(pair)

    chosen = chosen.model_copy(update={"losses": (HardLabels(), Heard())})
    fresh = copy.deepcopy(both)
    found = learn(both, chosen=chosen)
    assert (seen["labels"] == HIDDEN).all()  # so labels play no part in `by_hand` either
    train = rows.train
    (at,) = {at for at in range(len(train)) if torch.equal(TEACHER[at], seen["answers"][0])}
    pixels = torch.from_numpy(train.inputs[[at] * 32].copy())
    said = train.encoding.to_network(pixels), seen["labels"], seen["answers"]
    schedule = FIT | {"steps": 20}
    start = weights(fresh[MAIN])
    (alone,) = by_hand(copy.deepcopy(fresh[:1]), said, schedule, steps=20)
    main, auxiliary = by_hand(fresh, said, schedule, steps=20, chosen=chosen)
    torch.testing.assert_close(weights(both[MAIN]), main, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weights(both[AUXILIARY]), auxiliary, rtol=1e-3, atol=1e-4)
    for name, first, second in (
        ("distance_from_alone", main, alone),
        ("distance_from_start", main, start),
        ("alone_distance_from_start", alone, start),
    ):
        expected = ((first - second).norm() / second.norm()).item()
        assert found[name] == pytest.approx(expected, rel=0.02)
        assert expected > 0.01


def test_weights_are_averaged_over_a_networks_own_steps(learn, both):
    """The decay that is asked for lies between two steps of the same network."""
    seen = []
    watch = together_only(lambda *_: seen.append([weights(network) for network in both]))
    chosen = params(fit=FIT | {"steps": 8, "ema_decay": 0.7})
    learn(both, watch, chosen=chosen)
    for turn, network in enumerate(both):
        # The first of all steps starts the mean; after it, each pair of steps is one decay.
        average = seen[0][turn]
        for now in seen[1:]:
            average = 0.7**0.5 * average + (1 - 0.7**0.5) * now[turn]
        torch.testing.assert_close(weights(network), average, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(average, seen[-1][turn], atol=1e-3)


# What networks give each other


IMITATION = {"fit": FIT | {"steps": 30, "weight_decay": 0.0}, "augmentation": {"name": "none"}}


def apart(both, rows, compute):
    """Mean distance of the two networks' probabilities on test rows."""
    said = [outputs(network, rows.open_test(), compute).softmax(1) for network in both]
    return (said[0] - said[1]).abs().mean().item()


def test_without_other_losses_they_come_to_say_the_same(learn, both, rows, compute):
    with torch.no_grad():
        both[AUXILIARY].head.weight.mul_(20)
    before = apart(both, rows, compute)
    chosen = params(**IMITATION).model_copy(update={"losses": (Nothing(),)})
    found = learn(both, chosen=chosen)
    assert apart(both, rows, compute) < before / 4
    assert found["alone_distance_from_start"] == 0.0  # alone, there was nothing to learn
    assert found["distance_from_alone"] == found["distance_from_start"] > 0.01


def test_without_weight_the_auxiliary_follows(learn, both, rows, compute):
    """All it has to gain is that the main network imitates it at less cost."""
    before = apart(both, rows, compute)
    learn(both, **IMITATION, auxiliary_weight=0.0)
    assert apart(both, rows, compute) < before


@pytest.mark.parametrize("change", [{"auxiliary_weight": 0.2}, {"temperature": 3.0}])
def test_weight_and_temperature_count(learn, build, state_digest, change):
    ends = []
    for changes in ({}, change):
        both = pair_of(build)
        learn(both, **changes)
        ends += [state_digest(network) for network in both]
    assert len(set(ends)) == 4


# What is measured


def test_accuracies_are_those_of_the_networks_that_are_left(learn, both, rows, compute):
    found = learn(both)
    validation = rows.validation
    for name, network in (
        ("validation_accuracy", both[MAIN]),
        ("auxiliary_validation_accuracy", both[AUXILIARY]),
    ):
        predicted = outputs(network, validation, compute).argmax(1).numpy()
        assert found[name] == float((predicted == validation.labels).mean())
        assert not network.training
    gain = found["validation_accuracy"] - found["alone_validation_accuracy"]
    assert found["auxiliary_gain"] == gain
    assert found["main_steps"] == 6
    assert set(found) == {
        "validation_accuracy",
        "auxiliary_validation_accuracy",
        "alone_validation_accuracy",
        "auxiliary_gain",
        "distance_from_alone",
        "distance_from_start",
        "alone_distance_from_start",
        "main_steps",
    }


def test_the_copy_alone_is_the_same_whoever_the_auxiliary_was(learn, build):
    found = learn(pair_of(build), fit=FIT | {"steps": 25})
    chosen = params(fit=FIT | {"steps": 25}, auxiliary=PLAIN["network"])
    other = learn((pair_of(build)[MAIN], build(SPECS[0], seed=77)), chosen=chosen)
    assert other["alone_validation_accuracy"] == found["alone_validation_accuracy"]
    assert other["alone_distance_from_start"] == found["alone_distance_from_start"]
    assert other["distance_from_start"] != found["distance_from_start"]


def test_without_validation_rows_distances_are_left(both, prepared, teachers, compute):
    budget = Redraw(labels_per_class=5, validation_labels_per_class=0)
    blind = Rows(prepared, budget)
    assert not len(blind.validation)
    found = learn_together(both, teachers, blind, params(), compute, Watch())
    assert not any("accuracy" in name or "gain" in name for name in found)
    assert found["distance_from_start"] > 0


def test_distances_are_relative():
    networks = [torch.nn.Linear(2, 1) for _ in range(2)]
    with torch.no_grad():
        for network, values in zip(networks, ([3.0, 1.0, 0.0], [0.0, 1.0, -4.0]), strict=True):
            network.weight.copy_(torch.tensor([values[:2]]))
            network.bias.copy_(torch.tensor(values[2:]))
    first, second = networks
    assert distance(first, second) == pytest.approx(5 / 17**0.5)
    assert distance(second, first) == pytest.approx(5 / 10**0.5)
    assert distance(first, first) == 0.0


# Ending at a target

LONG = FIT | {"steps": 100}


def accuracies(learn, both, **changes):
    """Steps done and accuracy of every report: of both together, and of the copy alone."""
    seen = {"together": [], "alone": []}

    def report(at, _steps, metrics):
        for kind, name in (("together", ACCURACY), ("alone", f"alone_{ACCURACY}")):
            if name in metrics:
                seen[kind].append((at, metrics[name]))

    found = learn(both, Watch(progress=report), **changes)
    return seen, found


ACCURACY = "validation_accuracy"


@pytest.fixture
def steady(rows):
    """Teachers that know the truth, so that accuracy rises."""
    oracle = rows.open_oracle()
    truth = dict(zip(oracle.names.tolist(), oracle.labels.tolist(), strict=True))
    logits = torch.zeros(len(rows.train), 2)
    for at, name in enumerate(rows.train.names.tolist()):
        if name in truth:
            logits[at, truth[name]] = 6.0
    return [StoredAnswers(logits)]


def test_learning_ends_at_the_first_report_on_target(learn, build, steady):
    whole, found = accuracies(learn, pair_of(build), fit=LONG, teachers=steady)
    assert found["main_steps"] == 100
    assert whole["together"][-1][0] == whole["alone"][-1][0] == 200
    target = max(value for _, value in whole["together"])
    first = next(at for at, value in whole["together"] if value >= target)
    assert first < 200
    short, found = accuracies(
        learn, pair_of(build), fit=LONG, teachers=steady, target_accuracy=target
    )
    assert short["together"] == [report for report in whole["together"] if report[0] <= first]
    assert short["alone"] == [report for report in whole["alone"] if report[0] <= first]
    assert found["main_steps"] == -(-first // 2)
    assert found["validation_accuracy"] >= target


def test_a_target_that_is_reached_at_once_leaves_one_step(learn, build, steady):
    whole, _ = accuracies(learn, pair_of(build), teachers=steady)
    at, target = whole["together"][0]
    assert at == 1
    assert target > 0
    short, found = accuracies(learn, pair_of(build), teachers=steady, target_accuracy=target)
    assert short["together"] == whole["together"][:1]
    assert short["alone"] == whole["alone"][:1]
    assert found["main_steps"] == 1


def test_the_target_is_judged_on_the_averaged_weights_that_are_kept(learn, build, steady):
    fit = LONG | {"ema_decay": 0.9}
    target = 0.99
    _, found = accuracies(learn, pair_of(build), fit=fit, teachers=steady, target_accuracy=target)
    assert found["main_steps"] < 100
    assert found["validation_accuracy"] >= target


def test_a_target_that_nothing_can_judge_is_refused_before_training(
    both, prepared, teachers, compute
):
    blind = Rows(prepared, Redraw(labels_per_class=5, validation_labels_per_class=0))
    before = [state(network) for network in both]
    with pytest.raises(ParamsError, match=r"mutual\.target_accuracy is judged on validation rows"):
        learn_together(both, teachers, blind, params(target_accuracy=0.5), compute, Watch())
    for network, old in zip(both, before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in network.state_dict().items())


# Determinism and interruptions

EVERYTHING = {
    "fit": FIT | {"steps": 10, "ema_decay": 0.8},
    "losses": [{"name": "soft_labels"}, {"name": "hard_labels"}],
    "l1": 1e-4,
}


@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_the_same_run_gives_the_same_bits(learn, build, state_digest, compute, changes):
    ends = []
    for seed in (0, 0, 1):
        both = pair_of(build)
        torch.manual_seed(100 + len(ends))  # the process's own past plays no part
        found = learn(both, compute=Compute(seed, 1, compute.device, bf16=False), **changes)
        ends.append(([state_digest(network) for network in both], found))
    assert ends[0] == ends[1]
    assert ends[0][0] != ends[2][0]


def test_dropout_follows_from_the_seed_too(learn):
    ends = []
    for past in (1, 2):
        torch.manual_seed(0)
        layers = [torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Dropout(0.5)]
        both = [networks.Classifier(torch.nn.Sequential(*layers), 8, 2)]
        both.append(copy.deepcopy(both[MAIN]))
        torch.manual_seed(past)
        ends.append((learn(tuple(both)), weights(both[MAIN]).tolist()))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("kills", [[("together", 1)], [("together", 7), ("alone", 4)]])
def test_interruptions_change_no_bit(learn, build, steady, state_digest, tmp_path, kills, early):
    changes = EVERYTHING | {"teachers": steady}
    if early:
        fit = FIT | {"steps": 40, "ema_decay": 0.8}
        changes |= {"fit": fit, "target_accuracy": 1.0}
    expected = pair_of(build)
    measured = learn(expected, **changes)
    assert (measured["main_steps"] < changes["fit"]["steps"]) == early
    for kind, at in kills:

        def report(done, _steps, metrics, kind=kind, at=at):
            alone = any(name.startswith("alone_") for name in metrics)
            if metrics and alone == (kind == "alone") and done >= at:
                raise Stop

        with pytest.raises(Stop):
            learn(pair_of(build), Watch(report, tmp_path / "run.pt", 0), **changes)
    both = pair_of(build)
    found = learn(both, Watch(checkpoint=tmp_path / "run.pt", every_seconds=0), **changes)
    assert found == measured
    assert [state_digest(one) for one in both] == [state_digest(one) for one in expected]


def test_half_precision_learns_too(learn, both, compute):
    found = learn(both, compute=Compute(0, 1, compute.device, bf16=True))
    assert all(torch.isfinite(weights(network)).all() for network in both)
    assert found["distance_from_start"] > 0


# As a stage


def test_the_main_network_becomes_the_student(bench):
    consulted = stage("teacher")(consult.function)._run(
        bench.run, ConsultParams(estimator=LogisticRegression())
    )
    chosen = params(fit=FIT | {"steps": 3}, auxiliary=PLAIN["network"] | {"widths": [4]})
    assert mutual.role == "student"
    ref = stage("student")(mutual.function)._run(bench.run, chosen, teacher=consulted)
    folder = payload_of(bench.tracking.fetch(ref).folder)
    spec, student = networks.load(folder)
    assert spec.network == chosen.network
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx",
        "network.json",
        "schema.json",
        "weights.safetensors",
    }
    rows = Rows(bench.root / "prepared")
    compute = Compute.resolve(bench.run.compute)
    (run,) = bench.runs(key=ref.key)
    predicted = outputs(student, rows.validation, compute).argmax(1).numpy()
    expected = float((predicted == rows.validation.labels).mean())
    assert run.data.metrics["validation_accuracy"] == pytest.approx(expected)
    assert run.data.metrics["main_steps"] == 3
    assert {"auxiliary_gain", "distance_from_alone", "alone_loss"} <= set(run.data.metrics)
    assert not list((bench.root / ".stillmark" / "checkpoints").glob("*"))


# Parameters


def test_by_default_both_learn_from_labels_and_teachers_and_never_end_early():
    found = params()
    assert [loss.plain()["name"] for loss in found.losses] == ["hard_labels", "soft_labels"]
    assert (found.auxiliary_weight, found.temperature, found.target_accuracy) == (1.0, 1.0, None)


@pytest.mark.parametrize(
    "change",
    [
        {"auxiliary_weight": -0.1},
        {"temperature": 0.0},
        {"target_accuracy": 0.0},
        {"target_accuracy": 1.1},
        {"losses": []},
        {"auxiliary": None},
    ],
)
def test_impossible_parameters_are_refused(change):
    (name,) = change
    with pytest.raises(ParamsError, match=rf"mutual\.{name}"):
        params(**change)


def test_the_auxiliary_is_needed():
    with pytest.raises(ParamsError, match=r"'mutual\.auxiliary' is missing"):
        parse(MutualParams, {k: v for k, v in PLAIN.items() if k != "auxiliary"}, "mutual")


def test_a_loss_that_the_auxiliary_cannot_take_is_refused(build, rows, compute):
    """It needs maps: the teacher and main have them, an auxiliary of one piece does not."""
    teacher = build(SPECS[1], seed=1)

    class Whole(torch.nn.Module):
        def forward(self, inputs):
            return inputs.flatten(1)

    both = build(SPECS[0]), networks.Classifier(Whole(), 64, 2)
    chosen = params(losses=[{"name": "attention"}])
    with pytest.raises(ParamsError, match=r"'attention' compares maps, which the student does not"):
        learn_together(both, [NetworkAnswers(teacher)], rows, chosen, compute, Watch())
