import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tasks.errors import ParamsError
from tasks.exporters.onnx import Onnx, run
from tasks.networks import NETWORKS, Spec, count_parameters
from tasks.networks.ngrams import FACTOR, PRIME, NGrams, hashed
from tasks.runtimes.text import PAD

IDS = torch.tensor([[3, 4, 3, 5, 0, 0], [7, 0, 0, 0, 0, 0], [9, 8, 7, 6, 5, 4]])


def body(**fields):
    torch.manual_seed(0)
    return NGrams(**fields).body((6, 10))[0]


def by_hand(network, ids):
    """The formula, with Python's whole numbers, which never overflow."""
    rows = []
    for row in ids.tolist():
        there = [number for number in row if number != PAD]
        total = np.zeros(network.tables[0].weight.shape[1])
        for at in range(len(there)):
            for order, table in zip(network.orders, network.tables, strict=True):
                gram = [*row[at : at + order], *[PAD] * order][:order]
                number = gram[0]
                for following in gram[1:]:
                    number = (number * FACTOR + following) % PRIME
                place = number if order == 1 else number % len(table.weight)
                total += table.weight[place].detach().numpy()
        rows.append(total / max(1, len(there)))
    return np.stack(rows)


@pytest.mark.parametrize("orders", [(1,), (1, 2), (2, 3), (1, 2, 3, 4, 5)])
def test_features_are_the_formulas(orders):
    network = body(width=5, orders=orders, buckets=17)
    found = network(IDS)
    assert found.shape == (3, 5)
    np.testing.assert_allclose(found.detach().numpy(), by_hand(network, IDS), atol=1e-6)


@pytest.mark.parametrize("orders", [(1,), (1, 2), (2, 3)])
def test_filling_plays_no_part(orders):
    network = body(orders=orders)
    longer = torch.nn.functional.pad(IDS, (0, 3))
    torch.testing.assert_close(network(longer), network(IDS))


def test_a_row_without_tokens_is_zero():
    assert not body()(torch.zeros(2, 6, dtype=torch.long)).any()


def test_features_are_the_mean_of_the_tokens_vectors():
    network = body(width=3)
    each = network.tokens(IDS)
    assert each.shape == (3, 6, 3)
    torch.testing.assert_close(network(IDS)[0], each[0, :4].mean(0))


def test_words_in_another_order_are_another_text_from_order_two_on():
    turned = IDS[2:].flip(1)
    for orders, same in (((1,), True), ((1, 2), False)):
        network = body(orders=orders, buckets=997)
        assert torch.allclose(network(IDS[2:]), network(turned), atol=1e-6) is same


@given(
    row=st.lists(st.integers(0, 65535), min_size=1, max_size=9),
    order=st.integers(2, 5),
    buckets=st.integers(1, 2**24),
)
def test_buckets_are_those_of_exact_arithmetic(row, order, buckets):
    found = hashed(torch.tensor([row]), order, buckets)[0].tolist()
    for at, bucket in enumerate(found):
        gram = [*row[at : at + order], *[0] * order][:order]
        number = gram[0]
        for following in gram[1:]:
            number = (number * FACTOR + following) % PRIME
        assert bucket == number % buckets


def test_pairs_spread_evenly_over_the_buckets():
    pairs = torch.cartesian_prod(torch.arange(3, 303), torch.arange(3, 303))
    for buckets in (97, 1024, 4096):
        counts = torch.bincount(hashed(pairs, 2, buckets)[:, 0], minlength=buckets)
        assert chisquare(counts.numpy()).statistic < 1.5 * buckets


def test_tables_of_each_order_are_counted():
    spec = Spec(network=NGrams(width=32, orders=(1,)), shape=(24, 2000), outputs=150)
    assert count_parameters(spec.build()) == 2000 * 32 + 33 * 150
    spec = Spec(network=NGrams(width=32, buckets=1000), shape=(24, 2000), outputs=2)
    assert count_parameters(spec.build()) == 3000 * 32 + 33 * 2


def test_only_the_vectors_of_what_is_read_learn():
    network = body(orders=(1, 2), buckets=50)
    network(IDS[:1]).sum().backward()
    read = network.tables[0].weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert read == [3, 4, 5]
    assert len(network.tables[1].weight.grad.abs().sum(1).nonzero()) == 4


@pytest.mark.parametrize("fields", [{"orders": []}, {"orders": [0]}, {"buckets": 0}, {"width": 0}])
def test_impossible_fields_are_refused(fields):
    with pytest.raises(ParamsError, match=next(iter(fields))):
        NETWORKS.parse({"name": "ngrams", **fields})


def test_it_exports_for_any_batch(tmp_path):
    torch.manual_seed(0)
    spec = Spec(network=NGrams(width=8, orders=(1, 2, 3), buckets=64), shape=(6, 500), outputs=3)
    network = spec.build().eval()
    ids = torch.randint(3, 500, (7, 6), generator=torch.Generator().manual_seed(0))
    ids[1, 2:], ids[2] = PAD, PAD
    Onnx().export(network, ids[:2], tmp_path / "model.onnx")
    for count in (1, 7):
        with torch.no_grad():
            eager = network(ids[:count]).numpy()
        found = run(tmp_path / "model.onnx", ids[:count].numpy())
        np.testing.assert_allclose(found, eager, atol=1e-6)
