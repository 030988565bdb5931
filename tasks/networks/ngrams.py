"""Static n-gram embeddings: the average of looked-up vectors, for the smallest devices."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tasks.networks import Network
from tasks.runtimes.text import PAD

# A remainder below 2^31 times the factor stays below 2^62: no order overflows int64.
FACTOR, PRIME = 1_640_531_527, 2**31 - 1
INITIAL_SPREAD = 0.1


class NGrams(Network):
    """Tokens and hashed n-grams by their vectors, averaged over the text.

    features = mean_i Σ_n E_n[h_n(t_i … t_{i+n−1})], with PAD standing beyond the text's end
    (fastText; Joulin et al. 2016, arXiv:1607.01759; hashing: Weinberger et al. 2009,
    arXiv:0902.2206). Nothing is multiplied before the head.

    Attributes:
        width: Values per vector.
        orders: Lengths n of the n-grams. 1 stands for the tokens themselves, with a vector for each
            of the vocabulary.
        buckets: Vectors for each other order; n-grams that meet in one share it.
    """

    takes: ClassVar[str | None] = "text"

    name: Literal["ngrams"] = "ngrams"
    width: Annotated[int, Field(ge=1)] = 32
    orders: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (1, 2)
    buckets: Annotated[int, Field(ge=1, le=2**24)] = 4096

    def body(self, shape: tuple[int, ...]) -> tuple[nn.Module, int]:
        """See `Network.body`; features are (N, width)."""
        sizes = [shape[1] if order == 1 else self.buckets for order in self.orders]
        return NGramAverage(self.orders, sizes, self.width), self.width


class NGramAverage(nn.Module):
    """One table of vectors for each order.

    Args:
        orders: Lengths of the n-grams.
        sizes: Rows of their tables.
        width: Values per vector.
    """

    def __init__(self, orders: tuple[int, ...], sizes: list[int], width: int) -> None:
        super().__init__()
        self.orders, self.sizes = orders, sizes
        self.tables = nn.ModuleList([nn.Embedding(size, width) for size in sizes])
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=INITIAL_SPREAD)

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers (N, L) int64 → features (N, width)."""
        present = (ids != PAD).unsqueeze(2)
        return (self.tokens(ids) * present).sum(1) / present.sum(1).clamp_min(1)

    def tokens(self, ids: Tensor) -> Tensor:
        """Token numbers (N, L) → the sum of the vectors of what starts at each, (N, L, width)."""
        found: list[Tensor] = [
            table(ids if order == 1 else hashed(ids, order, size))
            for order, size, table in zip(self.orders, self.sizes, self.tables, strict=True)
        ]
        return sum(found[1:], start=found[0])


def hashed(ids: Tensor, order: int, buckets: int) -> Tensor:
    """Bucket of the n-gram that starts at each position, (N, L) → (N, L), from 0 to buckets − 1."""
    length = ids.shape[1]
    longer = functional.pad(ids, (0, order - 1), value=PAD)
    found = ids
    for at in range(1, order):
        found = (found * FACTOR + longer[:, at : at + length]) % PRIME
    return found % buckets
