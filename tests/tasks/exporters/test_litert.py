"""What needs LiteRT itself is skipped where STILLMARK_LITERT_PYTHON names no environment."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tasks.errors import CompressionError, ParamsError, SetupError
from tasks.exporters import EXPORTERS
from tasks.exporters.litert import LiteRt
from tasks.networks import Spec
from tasks.networks.convnet import ConvNet

PYTHON = os.environ.get("STILLMARK_LITERT_PYTHON")
installed = pytest.mark.skipif(not PYTHON, reason="STILLMARK_LITERT_PYTHON is not set")

# Runs a file in LiteRT, past the exporter.
RUN = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
model = Interpreter(sys.argv[1])
model.allocate_tensors()
found = []
for row in np.load(sys.argv[2]):
    model.set_tensor(model.get_input_details()[0]["index"], row[None])
    model.invoke()
    found.append(model.get_tensor(model.get_output_details()[0]["index"])[0].copy())
np.save(sys.argv[2], np.stack(found))
"""


@pytest.fixture
def network(build):
    return build(Spec(network=ConvNet(widths=(32, 64)), shape=(8, 8, 1), outputs=3))


@pytest.fixture
def rows():
    return torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def litert(**fields):
    return LiteRt(python=Path(PYTHON or sys.executable), **fields)


def answers(path, inputs):
    scratch = path.with_suffix(".npy")
    np.save(scratch, inputs.numpy())
    subprocess.run([PYTHON, "-c", RUN, path, scratch], check=True, capture_output=True)
    return np.load(scratch)


def test_without_an_environment_the_error_says_how_to_make_one(network, rows, tmp_path):
    with pytest.raises(SetupError, match=r"make litert-env.*STILLMARK_LITERT_PYTHON"):
        LiteRt().export(network, rows, tmp_path / "model.tflite")
    with pytest.raises(SetupError, match="nowhere/python is no file; set STILLMARK_LITERT_PYTHON"):
        LiteRt(python=Path("/nowhere/python")).export(network, rows, tmp_path / "model.tflite")
    (tmp_path / "python").touch()
    with pytest.raises(SetupError, match="python cannot be run: Permission denied"):
        LiteRt(python=tmp_path / "python").export(network, rows, tmp_path / "model.tflite")


def test_an_environment_without_the_converter_is_named(network, rows, tmp_path):
    """This very one."""
    with pytest.raises(SetupError, match=r"No module named 'litert_torch'.*pip install") as caught:
        LiteRt(python=Path(sys.executable)).export(network, rows, tmp_path / "model.tflite")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_converter_that_dies_is_an_error_with_its_last_words(network, rows, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho starting >&2\necho out of memory >&2\nexit 137\n")
    python.chmod(0o755)
    with pytest.raises(CompressionError, match=r"converter ended with 137: out of memory$"):
        LiteRt(python=python).export(network, rows, tmp_path / "model.tflite")


def test_the_place_of_the_environment_is_no_part_of_the_parameters():
    found = EXPORTERS.parse({"name": "litert", "precision": "int8", "python": "/env/python"})
    assert found == LiteRt(precision="int8", python=Path("/env/python"))
    assert "python" not in found.plain()
    with pytest.raises(ParamsError, match="precision"):
        EXPORTERS.parse({"name": "litert", "precision": "int4"})


class Undecided(nn.Module):
    def forward(self, inputs):
        return inputs * 2 if inputs.sum() > 0 else inputs


class Spectral(nn.Module):
    def forward(self, inputs):
        return torch.linalg.svdvals(inputs)


def test_a_network_that_torch_cannot_trace_is_refused_by_name(tmp_path):
    with pytest.raises(CompressionError, match="Undecided cannot be exported to LiteRT") as caught:
        LiteRt(python=Path(sys.executable)).export(Undecided(), torch.rand(2, 4), tmp_path / "m")
    assert "\n" not in str(caught.value)


@installed
@pytest.mark.slow
def test_the_file_answers_as_the_eager_network(network, rows, tmp_path):
    path = tmp_path / "model.tflite"
    difference = litert().export(network, rows, path)
    with torch.no_grad():
        eager = network(rows).numpy()
    found = answers(path, rows)
    np.testing.assert_allclose(found, eager, atol=1e-5)
    assert difference == pytest.approx(np.abs(found - eager).max())


@installed
@pytest.mark.slow
def test_int8_is_smaller_and_answers_with_8_bits(network, rows, tmp_path):
    litert().export(network, rows, tmp_path / "float.tflite")
    path = tmp_path / "int8.tflite"
    difference = litert(precision="int8", at_least=0.0).export(network, rows, path)
    assert path.stat().st_size < 0.5 * (tmp_path / "float.tflite").stat().st_size
    with torch.no_grad():
        eager = network(rows).numpy()
    assert difference == pytest.approx(np.abs(answers(path, rows) - eager).max())
    assert 0 < difference < 0.03 * np.ptp(eager)


@installed
@pytest.mark.slow
def test_an_operator_that_it_lacks_is_named(tmp_path):
    with pytest.raises(CompressionError, match="Spectral cannot be exported to LiteRT") as caught:
        litert().export(Spectral(), torch.rand(2, 4, 4), tmp_path / "model.tflite")
    assert "svd" in str(caught.value)
    assert "\n" not in str(caught.value)
