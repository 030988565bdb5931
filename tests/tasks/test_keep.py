import json

import numpy as np
import pytest
import torch

from tasks import networks
from tasks.keep import EXAMPLE_ROWS, example, keep_classifier, keep_schema
from tasks.networks import Spec
from tasks.networks.convnet import ConvNet
from tasks.rows import Rows


@pytest.fixture(scope="module")
def digits(bench_template):
    return Rows(bench_template / "prepared")


@pytest.fixture(scope="module")
def kept(digits, tmp_path_factory):
    """A stored classifier, the network it was, and the difference that was found."""
    folder = tmp_path_factory.mktemp("kept")
    torch.manual_seed(0)
    spec = Spec(network=ConvNet(widths=(8, 16, 16)), shape=digits.encoding.input_shape, outputs=3)
    network = spec.build()
    network(example(digits))
    return folder, network.eval(), keep_classifier(folder, spec, network, digits)


def test_all_that_later_stages_and_the_edge_need_is_there(kept):
    folder, _, difference = kept
    names = {"network.json", "weights.safetensors", "schema.json", "model.onnx"}
    assert {path.name for path in folder.iterdir()} == names
    assert 0 <= difference < 1e-4


def test_the_weights_come_back_bit_equal(kept, digits):
    folder, network, _ = kept
    _, again = networks.load(folder)
    with torch.no_grad():
        assert torch.equal(again(example(digits)), network(example(digits)))


def test_the_edge_computes_what_the_network_does(kept, digits):
    folder, network, _ = kept
    rows = np.array(digits.train.inputs[:64])
    with torch.no_grad():
        logits = network(digits.modality.to_network(torch.from_numpy(rows)).contiguous())
    found = digits.modality.classifier(folder).probabilities(rows)
    assert found == pytest.approx(logits.softmax(1).numpy(), abs=1e-5)


def test_the_schema_names_classes_and_shape(tmp_path, digits):
    keep_schema(tmp_path, digits)
    schema = json.loads((tmp_path / "schema.json").read_text())
    assert schema["classes"] == ["0", "1", "2"]
    assert schema["shape"] == [8, 8, 1]


def test_examples_are_training_rows_as_a_network_takes_them(digits):
    found = example(digits)
    assert found.shape == (EXAMPLE_ROWS, 1, 8, 8)
    assert found.is_contiguous()
    assert found.min() >= 0
    assert found.max() <= 1
    found.zero_()  # a copy: the rows themselves are read-only
    assert digits.train.inputs[:EXAMPLE_ROWS].any()
