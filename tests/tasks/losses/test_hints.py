import numpy as np
import pytest
import torch

from tasks.errors import ParamsError
from tasks.losses.hints import Hints


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, generator=generator), torch.randn(6, 4, generator=generator) * 2


@pytest.fixture
def head(features, pair):
    torch.manual_seed(0)
    return Hints().head(pair(features=features))


def mapped(features, head):
    weight, bias = (value.detach().numpy() for value in head.parameters())
    return features[0].detach().numpy() @ weight.T + bias, features[1].numpy()


def test_the_head_leads_from_the_students_width_to_the_teachers(head):
    assert isinstance(head, torch.nn.Linear)
    assert (head.in_features, head.out_features) == (3, 4)


def test_is_the_mean_squared_error_of_the_mapped_features(features, head, pair):
    guess, target = mapped(features, head)
    found = Hints()(pair(features=features, head=head))
    squares = [(guess[n, d] - target[n, d]) ** 2 for n in range(6) for d in range(4)]
    assert found.item() == pytest.approx(np.mean(squares), rel=1e-5)


def test_normalised_compares_directions_alone(features, head, pair):
    guess, target = mapped(features, head)
    cosines = [
        g @ t / np.linalg.norm(g) / np.linalg.norm(t) for g, t in zip(guess, target, strict=True)
    ]
    loss = Hints(normalised=True)
    found = loss(pair(features=features, head=head))
    assert found.item() == pytest.approx(np.mean([2 - 2 * cosine for cosine in cosines]), rel=1e-5)
    longer = loss(pair(features=(features[0], features[1] * 7), head=head))
    torch.testing.assert_close(longer, found)
    raw = Hints()(pair(features=(features[0], features[1] * 7), head=head))
    assert raw.item() > 10 * Hints()(pair(features=features, head=head)).item()


@pytest.mark.parametrize("normalised", [False, True])
def test_gradients_reach_the_student_and_the_head(features, head, pair, normalised):
    student, teacher = features[0].double(), features[1].double()
    head, loss = head.double(), Hints(normalised=normalised)
    assert torch.autograd.gradcheck(
        lambda given: loss(pair(features=(given, teacher), head=head)), student.requires_grad_()
    )
    loss(pair(features=(student, teacher), head=head)).backward()
    for value in (student, *head.parameters()):
        assert value.grad.abs().max() > 1e-3


@pytest.mark.parametrize("normalised", [False, True])
def test_vanishes_with_its_gradient_where_the_map_hits_the_teachers_features(
    features, head, pair, normalised
):
    student = features[0].clone().requires_grad_()
    teacher = head(features[0]).detach() * (3.0 if normalised else 1.0)
    loss = Hints(normalised=normalised)(pair(features=(student, teacher), head=head))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-10)
    assert student.grad.abs().max() < 1e-5


def test_features_of_length_zero_stay_finite(head, pair):
    student = torch.zeros(2, 3, requires_grad=True)
    torch.nn.init.zeros_(head.bias)
    given = pair(features=(student, torch.zeros(2, 4)), head=head)
    loss = Hints(normalised=True)(given)
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(student.grad).all()


def test_logits_and_labels_play_no_part(features, head, pair):
    first = Hints()(pair(features=features, head=head))
    logits = torch.ones(6, 2), torch.zeros(6, 2)
    again = Hints()(pair(logits, torch.zeros(6).long(), features=features, head=head))
    assert torch.equal(first, again)


@pytest.mark.parametrize("lacking", [0, 1])
def test_models_without_features_are_refused(features, pair, lacking):
    given = [*features]
    given[lacking] = None
    logits = torch.zeros(6, 2), torch.zeros(6, 2)
    with pytest.raises(ParamsError, match=r"hints.*features.*soft_labels"):
        Hints().head(pair(logits, features=given))
