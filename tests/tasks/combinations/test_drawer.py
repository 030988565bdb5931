"""What holds for every combination of the drawer, and that each works in a distillation."""

import pytest
import torch

from tasks.combinations import COMBINATIONS
from tasks.distillation import DistillationParams, NetworkAnswers, StoredAnswers, distill_into
from tasks.fit import Watch
from tasks.networks import Spec
from tasks.networks.convnet import ConvNet
from tasks.sections import parse

NAMES = sorted(COMBINATIONS.methods)
LABELS = torch.tensor([2, -1, 0, 3, -1, 1])
SPEC = Spec(network=ConvNet(widths=(6, 8)), shape=(8, 8, 1), outputs=2)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 6, 4, generator=generator) * 3


@pytest.fixture(params=NAMES)
def combination(request):
    return COMBINATIONS.parse({"name": request.param})


@pytest.mark.parametrize("labels", [LABELS, LABELS * 0 - 1])
def test_a_single_teacher_comes_out_as_its_prediction(combination, logits, labels):
    found = combination(logits[:1], labels)
    torch.testing.assert_close(found.softmax(1), logits[0].softmax(1))


def test_answers_are_one_per_row_in_single_precision_under_autocast_too(combination, logits):
    expected = combination(logits, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        found = combination(logits, LABELS)
    assert found.shape == (6, 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_a_rows_answer_depends_on_no_other_row(combination, logits):
    whole = combination(logits, LABELS)
    for row in range(6):
        alone = combination(logits[:, row : row + 1], LABELS[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row])


def test_the_order_of_teachers_plays_no_part(combination, logits):
    found = combination(logits[[2, 0, 1]], LABELS)
    torch.testing.assert_close(found, combination(logits, LABELS))


def test_every_teacher_and_class_is_heard_somewhere(combination, logits):
    whole = combination(logits, LABELS).softmax(1)
    for teacher in range(3):
        other = logits.clone()
        other[teacher] = other[teacher].roll(1, dims=1)
        assert not torch.allclose(combination(other, LABELS).softmax(1), whole, atol=0.01)


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_a_student_hears_networks_and_an_estimator_at_once(
    build, rows, compute, state_digest, combination, cache_mb
):
    networks = [NetworkAnswers(build(SPEC, seed=seed)) for seed in (4, 5)]
    generator = torch.Generator().manual_seed(0)
    stored = StoredAnswers(torch.randn(len(rows.train), 2, generator=generator) * 4)
    plain = {
        "fit": {"steps": 4, "learning_rate": 0.01},
        "batch_size": 32,
        "views": 1,
        "augmentation": {"name": "none"},
        "losses": [{"name": "soft_labels"}],
        "combination": combination.plain(),
        "cache_mb": cache_mb,
    }
    params, digests = parse(DistillationParams, plain, "distill"), set()
    for teachers in ([*networks, stored], networks, [stored]):
        student = build(SPEC, seed=9)
        distill_into(student, teachers, rows, params, compute, Watch())
        assert all(torch.isfinite(value).all() for value in student.state_dict().values())
        digests.add(state_digest(student))
    assert len(digests) == 3
