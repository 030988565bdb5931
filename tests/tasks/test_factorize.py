import json

import numpy as np
import pytest
import torch

from tasks import networks
from tasks.distillation import DistillationParams
from tasks.errors import CompressionError, ParamsError
from tasks.exporters.onnx import run
from tasks.factorize import FactorizeParams, factorize
from tasks.keep import example, keep_schema
from tasks.networks import count_macs, count_parameters
from tasks.networks.convnet import ConvNet
from tasks.rows import Rows
from tasks.sections import Section, parse
from tasks.stage import stage
from tasks.tracking import payload_of

SVD = {"name": "svd", "keep_ratio": 0.5, "round_to": 2}


class Dense(Section):
    """Stands for the stage that made the network."""

    seed: int = 0


def make(work, params):
    torch.manual_seed(params.seed)
    spec, network = work.fresh(ConvNet(widths=(8, 16)))
    network(example(work.rows))  # its normalisation has seen data
    networks.save(work.folder, spec, network.eval())
    keep_schema(work.folder, work.rows)
    return {}


@pytest.fixture
def dense(bench):
    return stage("student")(make)._run(bench.run, Dense())


@pytest.fixture
def factored(bench):
    """Runs the stage; its reference and the folder of its files."""

    def go(method=SVD, steps=None, **inputs):
        recovery = None
        if steps is not None:
            plain = bench.params.prune.recovery.plain()
            plain["fit"] |= {"steps": steps}
            recovery = parse(DistillationParams, plain | {"views": 1}).plain()
        section = parse(FactorizeParams, {"method": method, "recovery": recovery}, "factorize")
        ref = factorize._run(bench.run, section, **inputs)
        return ref, payload_of(bench.tracking.fetch(ref).folder)

    return go


def metrics_of(bench, ref):
    return bench.tracking.client.get_run(ref.run_id).data.metrics


def test_a_student_is_split_recovered_and_stored(bench, dense, factored):
    before_spec, before = networks.load(payload_of(bench.tracking.fetch(dense).folder))
    method = {"name": "tucker", "keep_ratio": 0.5, "round_to": 2}
    ref, folder = factored(method, steps=3, dense=dense, teacher=dense)
    spec, network = networks.load(folder)
    assert (ref.stage, ref.role) == ("factorize", "factored")
    assert spec.network == before_spec.network
    assert spec.factors["body.3"].kind == "tucker"
    batch = example(Rows(bench.root / "prepared"))
    found = metrics_of(bench, ref)
    assert found["kept_parameters"] == count_parameters(network) / count_parameters(before)
    assert found["kept_macs"] == count_macs(network, batch) / count_macs(before, batch)
    assert found["kept_macs"] < 1
    assert 0 <= found["validation_accuracy"] <= 1
    with torch.no_grad():
        assert run(folder / "model.onnx", batch.numpy()) == pytest.approx(
            network(batch).numpy(), abs=1e-4
        )


def test_the_report_tells_of_every_layer(bench, dense, factored):
    ref, folder = factored(dense=dense)  # without a recovery no teacher is asked
    assert "validation_accuracy" not in metrics_of(bench, ref)
    report = json.loads((folder / "factors.json").read_text())
    spec, network = networks.load(folder)
    _, before = networks.load(payload_of(bench.tracking.fetch(dense).folder))
    assert [one["layer"] for one in report] == ["body.0", "body.3", "head"]
    for one in report:
        whole = before.get_submodule(one["layer"])
        assert one["shape"] == list(whole.weight.shape)
        assert one["parameters_before"] == count_parameters(whole)
        assert one["parameters_after"] == count_parameters(network.get_submodule(one["layer"]))
        factor = spec.factors.get(one["layer"])
        assert one["factor"] == (factor and factor.plain())
    (second,) = [one for one in report if one["layer"] == "body.3"]
    inner, last = (part.weight.detach().numpy() for part in network.body[3])
    near = np.einsum("or,rikl->oikl", last[:, :, 0, 0], inner)
    weight = before.body[3].weight.detach().numpy()
    expected = np.linalg.norm(weight - near) / np.linalg.norm(weight)
    assert second["relative_error"] == pytest.approx(expected, rel=1e-4)


def test_a_recovery_needs_a_teacher(dense, factored):
    with pytest.raises(ParamsError, match=r"factorize\.recovery learns from teachers"):
        factored(steps=1, dense=dense)


def test_what_shrinks_nothing_is_refused_and_leaves_nothing_behind(bench, dense, factored):
    with pytest.raises(CompressionError, match=r"'body\.0' 8x1x3x3"):
        factored({"name": "svd", "energy": 0.9999}, dense=dense)
    (last,) = bench.runs(stage="factorize")
    assert last.info.status == "FAILED"
