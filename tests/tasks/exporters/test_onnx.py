import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from tasks.errors import CompressionError
from tasks.exporters.onnx import INPUT, OUTPUT, Onnx, run, shorten, strip
from tasks.networks import Spec
from tasks.networks.convnet import ConvNet
from tasks.pruners.magnitude import Magnitude


@pytest.fixture(params=["exported_convnet", "exported_resnet"])
def exported(request):
    return request.getfixturevalue(request.param)


def batch_for(path, count):
    shape = onnxruntime.InferenceSession(str(path)).get_inputs()[0].shape[1:]
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(count))


def metadata(model):
    parts = [model, model.graph, *model.graph.node, *model.graph.initializer]
    return [part.metadata_props for part in parts if len(part.metadata_props)]


@pytest.mark.parametrize("count", [1, 5, 64])
def test_any_batch_equals_the_eager_network(exported, count):
    network, path, _ = exported
    inputs = batch_for(path, count)
    with torch.no_grad():
        eager = network(inputs).numpy()
    np.testing.assert_allclose(run(path, inputs.numpy()), eager, rtol=1e-4, atol=1e-5)


def test_the_difference_it_returns_is_small_and_true(exported):
    _, _, difference = exported
    assert 0 <= difference < 1e-4


def test_one_valid_file_with_named_ends_and_a_free_batch(exported):
    _, path, _ = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [item.name for item in model.graph.input] == [INPUT]
    assert [item.name for item in model.graph.output] == [OUTPUT]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert [item.version for item in model.opset_import] == [20]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_only_debuggers_read_is_gone(exported):
    _, path, _ = exported
    model = onnx.load(path)
    assert metadata(model) == []
    assert not model.graph.value_info
    assert not any(node.doc_string for node in model.graph.node)


def test_a_pruned_channels_last_network_exports(build, tmp_path):
    spec = Spec(network=ConvNet(widths=(16, 16)), shape=(8, 8, 1), outputs=3)
    network = build(spec)
    Magnitude().prune(network, torch.rand(2, 1, 8, 8))
    network = network.to(memory_format=torch.channels_last)
    example = torch.rand(4, 1, 8, 8).to(memory_format=torch.channels_last)
    Onnx().export(network, example, tmp_path / "model.onnx")
    with torch.no_grad():
        eager = network(example).numpy()
    np.testing.assert_allclose(run(tmp_path / "model.onnx", example.numpy()), eager, atol=1e-5)


def test_a_difference_beyond_the_tolerance_is_refused(build, tmp_path):
    spec = Spec(network=ConvNet(widths=(16, 16)), shape=(8, 8, 1), outputs=3)
    with pytest.raises(CompressionError, match=r"model\.onnx differs from the eager network by"):
        Onnx(tolerance=1e-30).export(build(spec), torch.rand(64, 1, 8, 8), tmp_path / "model.onnx")


class Undecided(nn.Module):
    def forward(self, inputs):
        return inputs * 2 if inputs.sum() > 0 else inputs


class Spectral(nn.Module):
    def forward(self, inputs):
        return torch.linalg.svdvals(inputs)


@pytest.mark.parametrize(
    ("kind", "reason"), [(Undecided, "data-dependent"), (Spectral, "_linalg_svd")]
)
def test_a_network_that_cannot_be_exported_is_refused_by_name(tmp_path, kind, reason):
    message = f"^{kind.__name__} cannot be exported to ONNX: .*{reason}"
    with pytest.raises(CompressionError, match=message) as caught:
        Onnx().export(kind(), torch.rand(2, 4, 4), tmp_path / "model.onnx")
    assert str(caught.value).isprintable()


def test_stripping_keeps_weights_and_used_operator_sets():
    helper = onnx.helper
    node = helper.make_node("Gelu", ["a"], ["b"], domain="com.microsoft", doc_string="line 3")
    add = helper.make_node("Add", ["b", "w"], ["c"])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node, add],
        "g",
        [value("a", 1, [2])],
        [value("c", 1, [2])],
        [onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")],
        value_info=[value("b", 1, [2])],
    )
    domains = [("", 20), ("com.microsoft", 1), ("ai.onnx.ml", 3)]
    imports = [helper.make_opsetid(*domain) for domain in domains]
    model = helper.make_model(graph, opset_imports=imports)
    helper.set_model_props(model, {"source": "here"})
    helper.set_metadata_props(model.graph.node[0], {"stack": "there"})
    found = strip(model)
    assert {item.domain for item in found.opset_import} == {"", "com.microsoft"}
    assert metadata(found) == []
    assert not found.graph.node[0].doc_string
    assert not found.graph.value_info
    assert onnx.numpy_helper.to_array(found.graph.initializer[0]).tolist() == [1, 1]
    assert [n.op_type for n in found.graph.node] == ["Gelu", "Add"]


def test_short_names_change_no_answer_and_keep_the_ends(exported, tmp_path):
    _, path, _ = exported
    inputs = batch_for(path, 5).numpy()
    model = shorten(onnx.load(path))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "short.onnx")
    np.testing.assert_array_equal(run(tmp_path / "short.onnx", inputs), run(path, inputs))
    assert (tmp_path / "short.onnx").stat().st_size < path.stat().st_size
    names = {name for node in model.graph.node for name in [*node.input, *node.output]}
    assert {name for name in names if len(name) > 3} <= {INPUT, OUTPUT, ""}
    assert [model.graph.input[0].name, model.graph.output[0].name] == [INPUT, OUTPUT]


def test_a_graph_with_graphs_inside_keeps_its_names():
    helper = onnx.helper
    out = helper.make_tensor_value_info("longer", 1, [1])
    branch = helper.make_graph(
        [helper.make_node("Identity", ["outer_value"], ["longer"])], "branch", [], [out]
    )
    node = helper.make_node("If", ["flag"], ["c"], then_branch=branch, else_branch=branch)
    flag = helper.make_tensor_value_info("flag", 9, [])
    weight = onnx.numpy_helper.from_array(np.ones(1, np.float32), "outer_value")
    end = helper.make_tensor_value_info("c", 1, [1])
    model = helper.make_model(helper.make_graph([node], "g", [flag], [end], [weight]))
    assert shorten(model).graph.initializer[0].name == "outer_value"
