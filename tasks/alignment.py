"""Distribution alignment: guesses on the pool, pulled towards the class shares of the labels."""

import torch
from torch import Tensor, nn

# The paper averages over the last 128 batches; this weighs about the last 100.
DECAY = 0.99


class Alignment(nn.Module):
    """Distribution alignment (Berthelot et al. 2020, arXiv:1911.09785, section 3.1).

    A guess q becomes normalise(q · p(y) / p̃(y)): p(y) the shares among the labels, p̃(y) a running
    mean of the guesses. The running mean starts even and is part of a checkpoint.

    Args:
        shares: Class shares among the labels, (classes,).
    """

    shares: Tensor
    running: Tensor

    def __init__(self, shares: Tensor) -> None:
        super().__init__()
        self.register_buffer("shares", shares.clone())
        self.register_buffer("running", torch.full_like(shares, 1 / len(shares)))

    @torch.no_grad()
    def forward(self, guesses: Tensor) -> Tensor:
        """Aligned guesses, (N, classes) probabilities; takes these guesses into the mean."""
        self.running.mul_(DECAY).add_(guesses.mean(dim=0), alpha=1 - DECAY)
        aligned = guesses * self.shares / self.running.clamp_min(1e-6)
        return aligned / aligned.sum(dim=1, keepdim=True)
