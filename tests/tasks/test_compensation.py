import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from tasks.compensation import bias_corrected, channel_means, equalized
from tasks.errors import CompressionError
from tasks.onnx_layers import layers
from tests.small_graphs import convolutions, perceptron, rows_of


def weights_of(model):
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}


def answers(model, rows):
    return ReferenceEvaluator(model).run(None, {"inputs": rows})[0]


GRAPHS = {
    "convolutions": convolutions(),
    "grouped": convolutions(groups=4),
    "depthwise": convolutions(groups=8),
    "no bias": convolutions(biased=False),
    "gemm": perceptron(),
    "gemm, not transposed": perceptron(transposed=False),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_an_equalized_graph_computes_the_same_from_other_weights(name):
    model = GRAPHS[name]
    rows = rows_of(model, 8)
    before = model.SerializeToString()
    found = equalized(model)
    expected = answers(model, rows)
    assert np.abs(answers(found.model, rows) - expected).max() < 1e-4 * np.abs(expected).max()
    assert model.SerializeToString() == before
    first = weights_of(model)["one.weight"]
    assert not np.allclose(weights_of(found.model)["one.weight"], first, rtol=0.05)


def test_both_layers_have_weights_of_one_size_then():
    model = convolutions(groups=2)
    found = weights_of(equalized(model).model)
    outgoing = np.abs(found["one.weight"]).max((1, 2, 3))
    two = np.abs(found["two.weight"])  # (8, 4, 3, 3): channels 0 to 3 serve its first half
    incoming = np.concatenate([two[:4].max((0, 2, 3)), two[4:].max((0, 2, 3))])
    assert outgoing == pytest.approx(incoming, rel=1e-3)
    before = np.abs(weights_of(model)["one.weight"]).max((1, 2, 3))
    assert np.ptp(np.log(outgoing)) < np.ptp(np.log(before))


def test_the_scales_lead_back_to_the_old_weights():
    model = convolutions(groups=2)
    found = equalized(model)
    for layer in layers(model):
        back = found.original(layer, weights_of(found.model)[layer.weight].astype(float))
        assert back == pytest.approx(weights_of(model)[layer.weight], rel=1e-5)


def test_a_channel_that_is_nearly_constant_is_not_blown_up():
    model = perceptron()
    weights = weights_of(model)
    thin = weights["one.weight"].copy()
    thin[3] *= 1e-9
    thin[4] = 0
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(thin, "one.weight"))
    found = equalized(changed)
    after = weights_of(found.model)
    assert abs(after["one.bias"][3]) <= 65 * abs(weights["one.bias"][3])
    assert after["one.bias"][4] == weights["one.bias"][4]
    assert np.isfinite(after["head.weight"]).all()


def test_layers_that_something_else_reads_are_left_alone():
    model = convolutions()
    shared = onnx.ModelProto()
    shared.CopyFrom(model)
    shared.graph.output.append(onnx.ValueInfoProto(name="b"))
    with pytest.raises(CompressionError, match=r"equalize finds no .*quantize\.method\.equalize"):
        equalized(shared)


def test_corrected_biases_take_each_channels_mean_error_away():
    model = convolutions(biased=False)
    rows = np.abs(rows_of(model))

    def coarse(found):
        """Every weight as one of a few values: errors that are easy to see."""
        copy = onnx.ModelProto()
        copy.CopyFrom(found)
        for tensor in copy.graph.initializer:
            if tensor.name.endswith("weight"):
                value = np.ceil(numpy_helper.to_array(tensor) * 4) / 4
                tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
        return copy

    names = ["a", "c", "logits"]
    wanted = channel_means(model, names, rows)
    before = channel_means(coarse(model), names, rows)
    after = channel_means(coarse(bias_corrected(model, coarse, rows)), names, rows)
    for expected, one, two in zip(wanted, before, after, strict=True):
        assert np.abs(one - expected).max() > 0.01
        assert two == pytest.approx(expected, abs=1e-4)
    weights, corrected = weights_of(model), weights_of(bias_corrected(model, coarse, rows))
    assert all(
        np.array_equal(value, corrected[name])
        for name, value in weights.items()
        if "weight" in name
    )


def test_channel_means_are_means_over_rows_and_places():
    model = convolutions()
    rows = rows_of(model, 70)
    (found,) = channel_means(model, ["d"], rows)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.helper.make_tensor_value_info("d", 1, None))
    expected = ReferenceEvaluator(copy).run(["d"], {"inputs": rows})[0].mean((0, 2, 3))
    assert found == pytest.approx(expected, rel=1e-4)
