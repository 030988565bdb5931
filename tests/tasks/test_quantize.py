import shutil

import numpy as np
import onnx
import pytest
import torch

from tasks import networks
from tasks.distillation import DistillationParams
from tasks.errors import CompressionError, ParamsError
from tasks.exporters.onnx import run
from tasks.keep import example, keep_classifier
from tasks.networks import Spec
from tasks.networks.convnet import ConvNet
from tasks.onnx_layers import plain_session
from tasks.quantization_report import QuantizationReport
from tasks.quantize import QuantizeParams, agreement, fusion, quantize
from tasks.rows import Rows
from tasks.sections import Section, parse
from tasks.stage import stage
from tasks.tracking import payload_of
from tests.small_graphs import convolutions, rows_of, saved

STATIC = {"name": "static_int8"}


class Dense(Section):
    """Stands for the stage that made the network."""


@pytest.fixture(scope="module")
def stored(bench_template, tmp_path_factory):
    """A network with all that is kept of it; exported once."""
    rows, folder = Rows(bench_template / "prepared"), tmp_path_factory.mktemp("dense")
    spec = Spec(network=ConvNet(widths=(8, 16)), shape=rows.encoding.input_shape, outputs=3)
    torch.manual_seed(0)
    network = spec.build()
    for _ in range(5):  # its normalisation has seen data
        network(example(rows))
    with torch.no_grad():
        network.head.weight.mul_(8)
    keep_classifier(folder, spec, network.eval(), rows)
    return folder


@pytest.fixture
def dense(bench, stored):
    def make(work, params):
        shutil.copytree(stored, work.folder, dirs_exist_ok=True)
        return {}

    return stage("student")(make)._run(bench.run, Dense())


@pytest.fixture
def quantized(bench):
    """Runs the stage; its reference and the folder of its files."""

    def go(method=STATIC, steps=None, **inputs):
        plain = {"method": method}
        if steps is not None:
            recovery = bench.params.prune.recovery.plain()
            recovery["fit"] |= {"steps": steps}
            plain["finetune"] = parse(DistillationParams, recovery | {"views": 1}).plain()
        ref = quantize._run(bench.run, parse(QuantizeParams, plain, "quantize"), **inputs)
        return ref, payload_of(bench.tracking.fetch(ref).folder)

    return go


def metrics_of(bench, ref):
    return bench.tracking.client.get_run(ref.run_id).data.metrics


def inputs_of(bench, count=None):
    rows = Rows(bench.root / "prepared")
    stored = torch.from_numpy(np.asarray(rows.train.inputs[:count]))
    return rows.modality.to_network(stored).contiguous().numpy()


def test_without_finetuning_the_file_is_the_methods_and_its_figures_are_measured(
    bench, dense, quantized
):
    ref, folder = quantized(dense=dense)
    source = payload_of(bench.tracking.fetch(dense).folder)
    assert (ref.stage, ref.role) == ("quantize", "edge")
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx",
        "network.json",
        "quantization.json",
        "schema.json",
    }
    found = metrics_of(bench, ref)
    assert set(found) == {
        "agreement_with_float",
        "export_difference",
        "size_ratio",
        "fused_difference",
        "fused_agreement",
    }
    inputs = inputs_of(bench)  # fewer than are compared: all of them
    one, two = (run(place / "model.onnx", inputs) for place in (source, folder))
    assert found["agreement_with_float"] == (one.argmax(1) == two.argmax(1)).mean()
    sizes = [(place / "model.onnx").stat().st_size for place in (folder, source)]
    assert found["size_ratio"] == sizes[0] / sizes[1] < 0.6
    assert found["fused_agreement"] > 0.9
    assert 0 <= found["fused_difference"] < 0.05
    report = QuantizationReport.read(folder)
    assert [one.layer for one in report.layers] == ["body.0", "body.3", "head"]
    assert report.size_bytes == sizes[0]


@pytest.mark.parametrize("name", ["codebook", "piecewise_linear"])
def test_weights_in_tables_are_stored_as_a_model_too(bench, dense, quantized, name):
    ref, folder = quantized({"name": name, "bits": 5}, dense=dense)
    found = metrics_of(bench, ref)
    assert found["size_ratio"] < 0.65  # half of such a small file is its graph
    assert found["agreement_with_float"] > 0.9
    assert found["fused_difference"] < 1e-4
    assert {one.bits for one in QuantizationReport.read(folder).layers} == {5}


def test_finetuning_trains_stores_and_quantizes_the_plain_network(bench, dense, quantized):
    before_spec, before = networks.load(payload_of(bench.tracking.fetch(dense).folder))
    ref, folder = quantized(steps=5, dense=dense, teacher=dense)
    spec, network = networks.load(folder)
    assert spec == before_spec
    assert network.state_dict().keys() == before.state_dict().keys()
    assert not torch.equal(network.head.weight, before.head.weight)
    found = metrics_of(bench, ref)
    assert 0 <= found["validation_accuracy"] <= 1
    inputs = inputs_of(bench)
    with torch.no_grad():
        tuned = network(torch.from_numpy(inputs)).numpy()
        dense_labels = before(torch.from_numpy(inputs)).argmax(1).numpy()
    edge = run(folder / "model.onnx", inputs)
    assert (edge.argmax(1) == tuned.argmax(1)).mean() > 0.95
    assert np.abs(edge - tuned).mean() < 0.1 * tuned.std()
    assert found["agreement_with_float"] == (edge.argmax(1) == dense_labels).mean()
    untuned, _ = quantized(dense=dense)
    alike = metrics_of(bench, untuned)["agreement_with_float"]
    assert found["agreement_before_finetune"] == alike


def test_finetuning_without_a_teacher_is_refused(dense, quantized):
    with pytest.raises(CompressionError, match=r"quantize\.finetune has no teacher"):
        quantized(steps=5, dense=dense)


@pytest.mark.parametrize(
    "method", [{"name": "codebook"}, {"name": "dynamic_int8"}, STATIC | {"per_channel": False}]
)
def test_finetuning_is_refused_for_methods_that_it_cannot_imitate(quantized, method):
    with pytest.raises(ParamsError, match="finetune imitates static_int8 with per_channel: true"):
        quantized(method, steps=5)


def test_two_files_agree_on_the_share_of_rows_with_the_same_class(tmp_path):
    model = convolutions()
    other = onnx.ModelProto()
    other.CopyFrom(model)
    bias = next(one for one in other.graph.initializer if one.name == "head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([2, 0, 0], np.float32), "head.bias"))
    one, two = saved(model, tmp_path / "one.onnx"), saved(other, tmp_path / "two.onnx")
    rows = rows_of(model)
    labels = [run(path, rows).argmax(1) for path in (one, two)]
    assert 0 < agreement(one, two, rows) == (labels[0] == labels[1]).mean() < 1
    assert agreement(one, one, rows) == 1


def test_fusion_compares_the_kernels_of_this_host_with_plain_arithmetic(tmp_path, monkeypatch):
    path = saved(convolutions(), tmp_path / "model.onnx")
    rows = rows_of(convolutions())
    found = fusion(path, rows)
    assert found["fused_agreement"] == 1
    assert found["fused_difference"] < 1e-5
    session = plain_session(str(path))
    plain = session.run(None, {"inputs": rows})[0]
    wrong = plain.copy()
    wrong[:24, 0] += 2 * np.abs(plain).max()  # a quarter of the rows, as an overflow would do
    monkeypatch.setattr("tasks.quantize.run", lambda *_: wrong)
    found = fusion(path, rows)
    assert found["fused_difference"] == pytest.approx(2, rel=1e-5)
    assert found["fused_agreement"] == (wrong.argmax(1) == plain.argmax(1)).mean() < 1
