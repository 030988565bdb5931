import pytest
import torch
from torch.nn import functional

from tasks.augmentations.affine import Affine
from tasks.distillation import DistillationParams, TaughtViews, distill_into
from tasks.errors import ParamsError
from tasks.fit import Watch
from tasks.networks import Spec
from tasks.networks.convnet import ConvNet
from tasks.sections import parse
from tasks.views import Views, outputs

SPEC = Spec(network=ConvNet(widths=(8, 8)), shape=(8, 8, 1), outputs=2)
PLAIN = {
    "fit": {"steps": 60, "learning_rate": 0.01},
    "batch_size": 32,
    "views": 3,
    "augmentation": {"name": "affine", "rotation_degrees": 8.0, "shift_share": 0.05},
    "losses": [{"name": "soft_labels", "temperature": 2.0}],
}


def params(**changes):
    return parse(DistillationParams, PLAIN | changes, "distill")


@pytest.fixture(scope="module")
def teacher(build):
    network = build(SPEC, seed=4)
    with torch.no_grad():
        network.head.weight.mul_(8)
    return network


@pytest.fixture(scope="module")
def taught(teacher, rows, compute):
    augmentation = Affine(rotation_degrees=20, shift_share=0.1)
    views = Views(rows.train, rows.modality, augmentation, compute)
    return TaughtViews.ask(teacher, views, 3, compute, Watch())


def test_what_is_cached_is_what_the_teacher_says_of_that_view(taught, teacher, rows):
    assert taught.logits.shape == (3, len(rows.train), 2)
    assert taught.logits.dtype == torch.float16
    for view in range(3):
        inputs = taught.views.under(torch.arange(len(rows.train)), taught.parameters[view])
        with torch.no_grad():
            expected = teacher(inputs)
        torch.testing.assert_close(taught.logits[view].float(), expected, rtol=2e-3, atol=2e-3)
    assert not torch.allclose(taught.logits[0], taught.logits[1], atol=0.01)
    assert not taught.logits.requires_grad


def test_student_and_teacher_see_the_very_same_view(taught, teacher, compute):
    inputs, logits, labels = taught.batch(50, compute.generator("b"))
    with torch.no_grad():
        torch.testing.assert_close(logits, teacher(inputs), rtol=2e-3, atol=2e-3)
    assert logits.dtype == torch.float32
    assert labels.shape == (50,)


def test_a_batch_holds_the_labels_of_its_rows_and_hidden_ones_stay_hidden(rows, teacher, compute):
    views = Views(rows.train, rows.modality, Affine(), compute)
    taught = TaughtViews.ask(teacher, views, 1, compute, Watch())
    inputs, _, labels = taught.batch(300, compute.generator("b"))
    everything = views.clean(torch.arange(len(views))).flatten(1)
    found = torch.cdist(inputs.flatten(1), everything).argmin(1)
    assert torch.equal(labels, views.labels[found])
    assert {-1, 0, 1} == set(labels.tolist())


def test_asking_again_gives_the_same_views(taught, teacher, compute):
    again = TaughtViews.ask(teacher, taught.views, 3, compute, Watch())
    assert torch.equal(again.parameters, taught.parameters)
    assert torch.equal(again.logits, taught.logits)


def test_asking_reports_every_round(taught, teacher, compute):
    seen = []
    watch = Watch(progress=lambda at, count, _metrics: seen.append((at, count)))
    TaughtViews.ask(teacher, taught.views, 2, compute, watch)
    assert seen == [(1, 2), (2, 2)]


def distance(student, teacher, rows, compute):
    """KL from the teacher on test rows as they are."""
    found, wanted = (
        outputs(net, rows.open_test(), rows.modality, compute).log_softmax(1)
        for net in (student, teacher)
    )
    return functional.kl_div(found, wanted, reduction="batchmean", log_target=True).item()


def test_a_student_comes_near_its_teacher_who_stays_as_it_was(
    build, teacher, rows, compute, state_digest
):
    student, before = build(SPEC, seed=9), state_digest(teacher)
    far = distance(student, teacher, rows, compute)
    score = distill_into(student, teacher, rows, params(), compute, Watch())
    assert distance(student, teacher, rows, compute) < far / 4
    assert state_digest(teacher) == before
    assert all(parameter.grad is None for parameter in teacher.parameters())
    predicted = outputs(student, rows.validation, rows.modality, compute).argmax(1).numpy()
    assert score == {"validation_accuracy": float((predicted == rows.validation.labels).mean())}


def test_the_same_run_gives_the_same_bits(build, teacher, rows, compute, state_digest):
    digests = []
    for _ in range(2):
        student = build(SPEC, seed=9)
        distill_into(
            student, teacher, rows, params(fit=PLAIN["fit"] | {"steps": 5}), compute, Watch()
        )
        digests.append(state_digest(student))
    assert digests[0] == digests[1] != state_digest(build(SPEC, seed=9))


def test_every_loss_of_the_list_counts(build, teacher, rows, compute, state_digest):
    digests = set()
    for losses in (
        PLAIN["losses"],
        [*PLAIN["losses"], {"name": "hard_labels"}],
        [*PLAIN["losses"], {"name": "hard_labels", "weight": 5.0}],
    ):
        student = build(SPEC, seed=9)
        chosen = params(losses=losses, fit=PLAIN["fit"] | {"steps": 5})
        distill_into(student, teacher, rows, chosen, compute, Watch())
        digests.add(state_digest(student))
    assert len(digests) == 3


@pytest.mark.parametrize("change", [{"losses": []}, {"views": 0}, {"batch_size": 1}])
def test_impossible_parameters_are_refused(change):
    (name,) = change
    with pytest.raises(ParamsError, match=rf"distill\.{name}"):
        params(**change)
