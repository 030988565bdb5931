"""Denoising autoencoder: the clean row, rebuilt from a spoilt one."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tasks.errors import ParamsError
from tasks.modalities import Encoding
from tasks.objectives import Objective
from tasks.views import Views


class Denoising(Objective):
    """Denoising autoencoder (Vincent et al. 2008, ICML, doi:10.1145/1390156.1390294).

    mean (decoder(body(x̃)) - x)², x̃ = (x + noise · N(0, 1)) with a share of its values at zero. The
    mean is over rows and values. Rows are taken as they are; the augmentation plays no part.

    Attributes:
        noise: Standard deviation of the noise: of images, whose values span 0 to 1; of tables, in
            the columns' own standard deviations.
        masked_share: How likely each value is to be set to zero. With neither noise nor this, it is
            a plain autoencoder.
        decoder: Width of the decoder's hidden layer.
        batch_size: Rows per step.
    """

    name: Literal["denoising"] = "denoising"
    noise: Annotated[float, Field(ge=0)] = 0.3
    masked_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    decoder: Annotated[int, Field(ge=1)] = 256
    batch_size: Annotated[int, Field(ge=1)] = 256

    def heads(self, width: int, encoding: Encoding) -> nn.Module:
        """A decoder with one hidden layer: (N, width) → (N, values).

        Raises:
            ParamsError: The rows are texts.
        """
        if encoding.modality.plain()["name"] == "text":
            raise ParamsError(
                "pretrain.objective 'denoising' adds noise to numbers, which token ids are not; "
                "use 'masked_language'"
            )
        return nn.Sequential(
            nn.Linear(width, self.decoder),
            nn.ReLU(),
            nn.Linear(self.decoder, math.prod(encoding.input_shape)),
        )

    def loss(
        self, body: nn.Module, heads: nn.Module, pool: Views, generator: torch.Generator
    ) -> Tensor:
        """Mean squared error of a random batch."""
        clean = pool.clean(pool.sample(self.batch_size, generator))
        rebuilt = heads(body(self.spoil(clean, generator))).float()
        return functional.mse_loss(rebuilt, clean.flatten(1))

    def spoil(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """Rows with noise and with values at zero, of the same shape."""
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        kept = torch.rand(clean.shape, generator=generator) >= self.masked_share
        # masked_fill would lose the channels-last layout.
        return (clean + self.noise * noise) * kept.to(clean.device)
