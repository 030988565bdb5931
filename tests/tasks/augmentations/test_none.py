import pytest
import torch

from tasks.augmentations.none import Unchanged


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_view_takes_no_parameters(count):
    drawn = Unchanged().draw(count, torch.Generator())
    assert drawn.shape == (count, 0)
    assert drawn.dtype == torch.float32


def test_nothing_is_drawn():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    Unchanged().draw(7, generator)
    assert torch.equal(generator.get_state(), before)
    assert not Unchanged.draws


@pytest.mark.parametrize(
    "batch", [torch.rand(3, 1, 8, 8), torch.rand(3, 5), torch.randint(0, 9, (3, 12))]
)
def test_rows_of_any_kind_stay_as_they_are(batch):
    before = batch.clone()
    views = Unchanged().apply(batch, torch.zeros(3, 0))
    assert torch.equal(views, before)
    assert views.dtype == before.dtype


def test_it_is_made_for_any_modality():
    assert Unchanged.takes is None
