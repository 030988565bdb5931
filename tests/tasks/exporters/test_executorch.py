"""What needs ExecuTorch itself is skipped where the optional extra is not installed."""
# ruff: noqa: PLC0415 - the runtime is there only where the extra is

import importlib.util
import sys

import numpy as np
import pytest
import torch
from torch import nn

from tasks.errors import CompressionError, ParamsError, SetupError
from tasks.exporters import EXPORTERS
from tasks.exporters.executorch import ExecuTorch
from tasks.networks import Spec
from tasks.networks.convnet import ConvNet

installed = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="the extra 'executorch' is not installed"
)


@pytest.fixture
def network(build):
    return build(Spec(network=ConvNet(widths=(8, 16)), shape=(8, 8, 1), outputs=3))


@pytest.fixture
def rows():
    return torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def answers(path, inputs):
    """By ExecuTorch's own runtime, past the exporter."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")
    return method.execute((inputs,))[0].numpy()


def test_where_it_is_missing_the_error_says_what_to_install(network, rows, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(SetupError, match=r"pip install 'stillmark\[executorch\]'") as caught:
        ExecuTorch().export(network, rows, tmp_path / "model.pte")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_params_say_precision_and_tolerances():
    found = EXPORTERS.parse({"name": "executorch", "precision": "int8", "at_least": 0.9})
    assert found == ExecuTorch(precision="int8", at_least=0.9)
    for wrong in ({"precision": "int4"}, {"tolerance": 0.0}, {"at_least": 1.5}):
        with pytest.raises(ParamsError, match=next(iter(wrong))):
            EXPORTERS.parse({"name": "executorch", **wrong})


@installed
def test_the_file_answers_as_the_eager_network(network, rows, tmp_path):
    path = tmp_path / "model.pte"
    difference = ExecuTorch().export(network, rows, path)
    with torch.no_grad():
        eager = network(rows).numpy()
    found = np.concatenate([answers(path, row[None]) for row in rows])
    np.testing.assert_allclose(found, eager, atol=1e-5)
    assert difference == pytest.approx(np.abs(found - eager).max())


@installed
def test_int8_is_smaller_and_answers_with_8_bits(build, rows, tmp_path):
    network = build(Spec(network=ConvNet(widths=(32, 64)), shape=(8, 8, 1), outputs=3))
    ExecuTorch().export(network, rows, tmp_path / "float.pte")
    difference = ExecuTorch(precision="int8", at_least=0.0).export(
        network, rows, tmp_path / "int8.pte"
    )
    sizes = [(tmp_path / name).stat().st_size for name in ("int8.pte", "float.pte")]
    assert sizes[0] < 0.5 * sizes[1]
    with torch.no_grad():
        spread = float(np.ptp(network(rows).numpy()))
    assert 0 < difference < 0.03 * spread


@installed
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_rows_of_one_channel_whose_strides_say_channels_last(network, rows, tmp_path, precision):
    """As `to_network` makes them of pictures."""
    stored = torch.empty(40, 8, 8, 1).copy_(rows.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert stored.stride(1) == 1
    assert stored.is_contiguous()
    exporter = ExecuTorch(precision=precision, at_least=0.0)
    assert exporter.export(network, stored, tmp_path / "model.pte") < 0.01


class Blind(ExecuTorch):
    """Reads its ranges from black rows alone, so that real ones saturate."""

    def _int8(self, network, example):
        return super()._int8(network, torch.zeros_like(example))


@installed
def test_int8_that_names_other_classes_is_refused(tmp_path):
    largest = nn.Linear(3, 3, bias=False)
    nn.init.eye_(largest.weight)
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    seeing = ExecuTorch(precision="int8", at_least=0.9)
    assert seeing.export(largest.eval(), rows, tmp_path / "model.pte") < 0.05
    with pytest.raises(CompressionError, match=r"model\.pte names the class .* at_least"):
        Blind(**seeing.plain()).export(largest, rows, tmp_path / "model.pte")


class Undecided(nn.Module):
    def forward(self, inputs):
        return inputs * 2 if inputs.sum() > 0 else inputs


class Spectral(nn.Module):
    def forward(self, inputs):
        return torch.linalg.svdvals(inputs)


@installed
@pytest.mark.parametrize(("kind", "reason"), [(Undecided, "data-dependent"), (Spectral, "svd")])
def test_a_network_that_cannot_be_exported_is_refused_by_name(tmp_path, kind, reason):
    message = f"^{kind.__name__} cannot be exported to ExecuTorch: .*{reason}"
    with pytest.raises(CompressionError, match=message) as caught:
        ExecuTorch().export(kind(), torch.rand(2, 4, 4), tmp_path / "model.pte")
    assert str(caught.value).isprintable()
