"""The contract, and what exporters share."""

import numpy as np
import pytest
import torch
from torch import nn

from tasks.errors import CompressionError
from tasks.exporters import EXPORTERS, Int8Exporter, difference, failed, logits_of

FILE = "model.bin"


def logits(*rows):
    return np.asarray(rows, dtype=np.float32)


def test_these_are_the_exporters():
    suffixes = {name: method.suffix for name, method in EXPORTERS.methods.items()}
    assert suffixes == {"onnx": ".onnx", "executorch": ".pte", "litert": ".tflite"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / FILE


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_tolerance_is_relative_to_the_largest_logit_or_to_one(path, scale):
    eager = logits([scale, -scale / 2], [0, 0])
    allowed = 1e-2 * max(1.0, scale)
    near, far = eager + np.float32(0.9 * allowed), eager - np.float32(1.1 * allowed)
    assert difference(eager, near, path, 1e-2) == pytest.approx(0.9 * allowed, rel=1e-3)
    with pytest.raises(CompressionError, match=r"model\.bin differs from the eager network"):
        difference(eager, far, path, 1e-2)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_no_number_is_refused(path, wrong):
    with pytest.raises(CompressionError, match="differs from the eager network"):
        difference(logits([1, 2]), logits([1, wrong]), path, 1e9)


class Either(Int8Exporter):
    def export(self, network, example, path):
        raise AssertionError


def test_int8_is_held_to_the_classes_that_it_names(path):
    eager = logits([5, 0], [0, 5], [1, 0], [0, 1])
    rough = logits([4, 1], [1, 4], [1, 0], [1, 0])
    quantized = Either(precision="int8", at_least=0.75)
    assert quantized.checked(eager, rough, path) == 1.0
    with pytest.raises(CompressionError, match=r"on 75\.00% of 4 rows, at least 76\.00%"):
        Either(precision="int8", at_least=0.76).checked(eager, rough, path)
    with pytest.raises(CompressionError, match="tolerance"):
        Either().checked(eager, rough, path)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_int8_that_is_no_number_is_refused(path, wrong):
    with pytest.raises(CompressionError, match="not finite"):
        Either(precision="int8", at_least=0.0).checked(logits([1, 2]), logits([1, wrong]), path)


def test_the_first_cause_is_told_in_one_line():
    last = RuntimeError("step 3 failed\nsee the manual")
    last.__cause__ = ValueError("\n  no kernel for 'warp'\n  at line 3")
    found = failed(nn.Linear(1, 1), "this", last)
    assert str(found) == "Linear cannot be exported to this: no kernel for 'warp'"
    assert str(failed(nn.ReLU(), "that", KeyError())) == "ReLU cannot be exported to that: KeyError"


def test_the_eager_answers_keep_no_gradient():
    network = nn.Linear(2, 3)
    found = logits_of(network, torch.ones(4, 2))
    np.testing.assert_array_equal(found, network(torch.ones(4, 2)).detach().numpy())
