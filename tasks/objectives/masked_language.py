"""Masked language modelling: hidden tokens, guessed from their context."""

from typing import Annotated, ClassVar, Literal, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tasks.modalities import Encoding
from tasks.objectives import Objective
from tasks.runtimes.text import MASK, PAD
from tasks.views import Views

MASKED, REPLACED = 0.8, 0.1


class MaskedLanguage(Objective):
    """Masked language modelling (Devlin et al. 2019, arXiv:1810.04805, section 3.1).

    Of the chosen tokens 80 % become MASK, 10 % any other number of the vocabulary's and 10 % stay.
    The loss is the cross entropy of the true tokens there, and nowhere else. Texts are taken as
    they are; the augmentation plays no part.

    Attributes:
        share: Share of a text's tokens (without PAD) that is chosen, rounded, at least one.
        batch_size: Texts per step.
    """

    takes: ClassVar[str | None] = "text"

    name: Literal["masked_language"] = "masked_language"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    batch_size: Annotated[int, Field(ge=1)] = 128

    def heads(self, width: int, encoding: Encoding) -> nn.Module:
        """A linear layer: token features (…, width) → logits (…, vocabulary)."""
        _, vocabulary = encoding.input_shape
        return nn.Linear(width, vocabulary)

    def loss(
        self, body: nn.Module, heads: nn.Module, pool: Views, generator: torch.Generator
    ) -> Tensor:
        """Cross entropy at the chosen tokens of a random batch."""
        _, vocabulary = pool.part.encoding.input_shape
        ids = pool.clean(pool.sample(self.batch_size, generator))
        chosen = choose(ids, self.share, generator)
        shown = hide(ids, chosen, vocabulary, generator)
        encoder = cast("TokenBody", body.get_submodule("body"))
        logits = heads(encoder.tokens(shown)[chosen]).float()
        summed = functional.cross_entropy(logits, ids[chosen], reduction="sum")
        return summed / chosen.sum().clamp_min(1)


class TokenBody(Protocol):
    """The body of a text network."""

    def tokens(self, ids: Tensor) -> Tensor:
        """Token numbers (N, length) → what each token is in its context, (N, length, width)."""
        ...


def choose(ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Which tokens are guessed, (N, length): that share of each text, never PAD."""
    real = ids != PAD
    wanted = (real.sum(dim=1, keepdim=True) * share).round().clamp_min(1)
    scores = torch.rand(ids.shape, generator=generator).to(ids.device)
    ranks = scores.masked_fill(~real, 2).argsort(dim=1).argsort(dim=1)
    return (ranks < wanted) & real


def hide(ids: Tensor, chosen: Tensor, vocabulary: int, generator: torch.Generator) -> Tensor:
    """Token numbers as the network sees them: the chosen ones masked, replaced or left."""
    device = ids.device
    fate = torch.rand(ids.shape, generator=generator).to(device)
    other = torch.randint(MASK + 1, vocabulary, ids.shape, generator=generator).to(device)
    shown = ids.masked_fill(chosen & (fate < MASKED), MASK)
    return torch.where(chosen & (fate >= MASKED) & (fate < MASKED + REPLACED), other, shown)
