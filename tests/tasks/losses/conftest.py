"""Pairs of made-up outputs."""

import pytest
import torch

from tasks.losses import HIDDEN, Pair
from tasks.networks import Outputs


@pytest.fixture(scope="session")
def pair():
    """Makes a pair of what is given as (student's, teacher's); labels are hidden, logits equal."""

    def make(logits=None, labels=None, *, features=(None, None), maps=((), ()), head=None):
        given = [*(logits or ()), *(features if features[0] is not None else ()), *maps[0]]
        count = len(given[0])
        student, teacher = logits or (torch.zeros(count, 2), torch.zeros(count, 2))
        return Pair(
            Outputs(student, features[0], tuple(maps[0])),
            Outputs(teacher, features[1], tuple(maps[1])),
            torch.full((count,), HIDDEN) if labels is None else labels,
            head or torch.nn.Identity(),
        )

    return make
