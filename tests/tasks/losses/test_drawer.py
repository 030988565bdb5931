"""What holds for every loss of the drawer, and that each works in a distillation."""

from dataclasses import replace

import pytest
import torch

from tasks.distillation import DistillationParams, NetworkAnswers, StoredAnswers, distill_into
from tasks.errors import ParamsError
from tasks.fit import Watch
from tasks.losses import LOSSES, Pair, weighted_sum
from tasks.losses.soft_labels import SoftLabels
from tasks.networks import Outputs, Spec
from tasks.networks.convnet import ConvNet
from tasks.networks.resnet import ResNet
from tasks.sections import parse

NAMES = sorted(LOSSES.methods)
NEEDY = [name for name in NAMES if LOSSES.methods[name].needs]
SPEC = Spec(network=ConvNet(widths=(6, 8)), shape=(8, 8, 1), outputs=2)
TEACHERS = {
    "convnet": Spec(network=ConvNet(widths=(8, 12, 12)), shape=(8, 8, 1), outputs=2),
    "resnet": Spec(network=ResNet(widths=(8, 16)), shape=(8, 8, 1), outputs=2),
}


def outputs(seed, channels, width, rows=6):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(rows, *shape, generator=generator)

    return Outputs(draw(4) * 4, draw(width), (draw(channels, 8, 8), draw(channels * 2, 4, 4)))


def example(name, rows=6):
    """The loss with a head of its own, and the outputs of two networks of different widths."""
    loss = LOSSES.parse({"name": name})
    labels = torch.tensor([0, -1, 2, -1, 3, 1])[:rows]
    student, teacher = outputs(0, 3, 5, rows), outputs(1, 4, 7, rows)
    # A softer student, so that a sure teacher has something to say.
    student = replace(student, logits=student.logits / 4)
    given = Pair(student, teacher, labels)
    torch.manual_seed(0)
    return loss, replace(given, head=loss.head(given))


def learning(given):
    """The same pair with a student that gradients flow to, and what they flow to."""
    student = given.student
    leaves = [
        one.clone().requires_grad_() for one in (student.logits, student.features, *student.maps)
    ]
    return replace(given, student=Outputs(leaves[0], leaves[1], tuple(leaves[2:]))), leaves


def gradients(losses, given):
    given, leaves = learning(given)
    weighted_sum(losses, [given for _ in losses]).backward()
    return [torch.zeros_like(one) if one.grad is None else one.grad for one in leaves]


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_changes_the_students_gradients_and_weight_0_silences_it(name):
    loss, given = example(name)
    soft = SoftLabels(temperature=5.0)
    alone, both = gradients((soft,), given), gradients((soft, loss), given)
    assert any(not torch.allclose(*pair, atol=1e-4) for pair in zip(alone, both, strict=True))
    silent = loss.model_copy(update={"weight": 0.0})
    torch.testing.assert_close(gradients((soft, silent), given), alone)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_reads_what_it_says_it_needs_and_no_more(name):
    loss, given = example(name)
    _, features, *maps = gradients((loss,), given)
    assert bool(features.any()) == ("features" in loss.needs)
    assert any(bool(one.any()) for one in maps) == ("maps" in loss.needs)
    bare = {} if "features" in loss.needs else {"features": None}
    bare |= {} if "maps" in loss.needs else {"maps": ()}
    lean = replace(
        given, student=replace(given.student, **bare), teacher=replace(given.teacher, **bare)
    )
    assert torch.equal(loss(lean), loss(given))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("labels", ["shown", "hidden"])
def test_every_loss_is_a_finite_scalar_even_of_one_row(name, labels):
    loss, given = example(name, rows=1)
    if labels == "hidden":
        given = replace(given, labels=given.labels * 0 - 1)
    given, leaves = learning(given)
    found = loss(given)
    (found + sum(0 * one.sum() for one in leaves)).backward()
    assert found.shape == ()
    assert torch.isfinite(found)
    assert all(torch.isfinite(one.grad).all() for one in leaves)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_is_float32_under_autocast(name):
    loss, given = example(name)
    expected = loss(given)
    given, leaves = learning(given)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(given)
    assert found.dtype == torch.float32
    # Only heads compute in half precision.
    tolerance = 2e-2 if list(given.head.parameters()) else 1e-6
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    (found + sum(0 * one.sum() for one in leaves)).backward()
    assert all(torch.isfinite(one.grad).all() for one in leaves)


def params(losses, **changes):
    plain = {
        "fit": {"steps": 4, "learning_rate": 0.01},
        "batch_size": 32,
        "views": 1,
        "augmentation": {"name": "affine", "rotation_degrees": 8.0, "shift_share": 0.05},
        "losses": losses,
    }
    return parse(DistillationParams, plain | changes, "distill")


def teacher(build, kind):
    network = build(TEACHERS[kind], seed=4)
    with torch.no_grad():
        network.head.weight.mul_(40)
    return NetworkAnswers(network)


def taught(build, rows, compute, teachers, chosen):
    """A student after its lessons, and what was reported on the way."""
    student, reports = build(SPEC, seed=9), []
    torch.manual_seed(0)
    watch = Watch(lambda _at, _steps, metrics: reports.append(metrics))
    distill_into(student, teachers, rows, chosen, compute, watch)
    return student, reports


@pytest.mark.parametrize("kind", sorted(TEACHERS))
@pytest.mark.parametrize("way", ["cached", "live"])
@pytest.mark.parametrize("name", NAMES)
def test_every_loss_teaches_a_network_by_another(
    build, rows, compute, state_digest, name, way, kind
):
    digests = set()
    for weight in (0.0, 1.0):
        losses = [{"name": "soft_labels", "weight": 0.01}, {"name": name, "weight": weight}]
        chosen = params(losses, cache_mb=64 if way == "cached" else 0)
        student, reports = taught(build, rows, compute, [teacher(build, kind)], chosen)
        asked = [metrics for metrics in reports if not metrics]
        assert bool(asked) == (way == "cached")
        assert all(torch.isfinite(value).all() for value in student.state_dict().values())
        digests.add(state_digest(student))
    assert len(digests) == 2


@pytest.mark.parametrize("name", NEEDY)
def test_losses_on_features_and_maps_fall_while_student_and_head_learn(build, rows, compute, name):
    chosen = params([{"name": name}], fit={"steps": 60, "learning_rate": 0.01})
    _, reports = taught(build, rows, compute, [teacher(build, "convnet")], chosen)
    losses = [metrics["loss"] for metrics in reports if metrics]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("name", NEEDY)
def test_a_teacher_without_features_or_maps_is_refused(build, rows, compute, name):
    stored = StoredAnswers(torch.zeros(len(rows.train), 2))
    with pytest.raises(ParamsError, match=f"'{name}'.*teacher.*soft_labels"):
        taught(build, rows, compute, [stored], params([{"name": name}]))
