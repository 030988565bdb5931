import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import softmax
from scipy.stats import entropy

from tasks.combinations.confidence import Confidence
from tasks.combinations.mean import Mean
from tasks.losses import Pair
from tasks.losses.soft_labels import SoftLabels
from tasks.networks import Outputs

LABELS = torch.tensor([2, -1, 0, 3, -1, 1])
HIDDEN = torch.full((6,), -1)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 6, 4, generator=generator, dtype=torch.float64) * 3


def weights(said, label, temperature):
    """Of one row, from the teachers' probabilities (K, classes)."""
    if label == -1:
        sure = np.exp([-entropy(one) / temperature for one in said])
        return sure / sure.sum()
    wrong = np.exp([-np.log(one[label]) for one in said])
    return (1 - wrong / wrong.sum()) / (len(said) - 1)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_equals_the_stated_formulas_row_by_row(logits, temperature):
    found = Confidence(temperature=temperature)(logits, LABELS).exp().numpy()
    said = softmax(logits.numpy(), axis=2)
    for row, label in enumerate(LABELS.tolist()):
        weight = weights(said[:, row], label, temperature)
        assert weight.sum() == pytest.approx(1)
        assert weight.max() - weight.min() > 0.02
        expected = sum(weight[teacher] * said[teacher, row] for teacher in range(3))
        np.testing.assert_allclose(found[row], expected, rtol=1e-9)


def test_where_labels_are_shown_the_gradient_is_that_of_the_papers_weighted_losses(logits):
    """The paper puts the weights before each teacher's divergence (its equation for L_KD)."""
    labels = torch.tensor([2, 3, 0, 3, 1, 1])
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    soft = SoftLabels(temperature=1.0)
    combined = Confidence()(logits, labels)
    (ours,) = torch.autograd.grad(soft(Pair(Outputs(student), Outputs(combined), labels)), student)
    said = softmax(logits.numpy(), axis=2)
    loss = 0.0
    for row, label in enumerate(labels.tolist()):
        for teacher, weight in enumerate(weights(said[:, row], label, 1.0)):
            at = slice(row, row + 1)
            one = Pair(Outputs(student[at]), Outputs(logits[teacher][at]), labels[at])
            loss = loss + weight * soft(one) / 6
    (papers,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(ours, papers)


@given(
    st.integers(1, 4).flatmap(
        lambda count: st.lists(
            st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=count, max_size=count
        )
    ),
    st.integers(-1, 2),
    st.floats(0.01, 100),
)
def test_is_a_mixture_of_what_the_teachers_say(rows, label, temperature):
    logits = torch.tensor(rows, dtype=torch.float64)[:, None]
    found = Confidence(temperature=temperature)(logits, torch.tensor([label])).softmax(1)[0]
    said = logits.softmax(2)[:, 0]
    assert (found >= said.amin(0) - 1e-9).all()
    assert (found <= said.amax(0) + 1e-9).all()


def test_a_single_teacher_stays_as_it_is(logits):
    assert torch.equal(Confidence()(logits[:1], LABELS), logits[0])


@pytest.mark.parametrize("labels", [LABELS, HIDDEN])
def test_teachers_who_agree_are_heard_as_one(logits, labels):
    found = Confidence()(logits[:1].expand(4, -1, -1), labels)
    torch.testing.assert_close(found.softmax(1), logits[0].softmax(1))


def test_a_teacher_who_is_sure_and_wrong_is_heard_only_where_the_label_is_hidden():
    logits = torch.tensor([[[20.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    right, blind = (
        Confidence(temperature=0.1)(logits, torch.tensor([label])).softmax(1)[0]
        for label in (1, -1)
    )
    torch.testing.assert_close(right, logits[1, 0].softmax(0), rtol=0, atol=1e-3)
    torch.testing.assert_close(blind, logits[0, 0].softmax(0), rtol=0, atol=1e-3)


def test_temperature_leads_from_the_surest_teacher_to_the_mean_on_hidden_rows_alone(logits):
    sharp, flat = (Confidence(temperature=value)(logits, LABELS) for value in (1e-5, 1e6))
    hidden = LABELS == -1
    said = logits.softmax(2)
    surest = entropy(said.numpy(), axis=2).argmin(0)
    expected = said[torch.from_numpy(surest), torch.arange(6)]
    torch.testing.assert_close(sharp.softmax(1)[hidden], expected[hidden])
    torch.testing.assert_close(
        flat.softmax(1)[hidden], Mean()(logits, LABELS).softmax(1)[hidden], rtol=1e-4, atol=1e-6
    )
    assert torch.equal(sharp[~hidden], flat[~hidden])


def test_constants_per_row_and_teacher_play_no_part(logits):
    moved = logits + torch.linspace(-9, 9, 18).view(3, 6, 1)
    torch.testing.assert_close(Confidence()(moved, LABELS), Confidence()(logits, LABELS))


@pytest.mark.parametrize("label", [-1, 0, 1])
def test_far_apart_logits_stay_finite(label):
    logits = torch.tensor([[[900.0, -900.0]], [[-900.0, 900.0]], [[0.0, 0.0]]])
    found = Confidence(temperature=1e-3)(logits, torch.tensor([label]))
    assert torch.isfinite(found).all()
    assert float(found.exp().sum()) == pytest.approx(1)


def test_a_temperature_of_0_is_refused():
    with pytest.raises(ValidationError, match="temperature"):
        Confidence(temperature=0.0)
