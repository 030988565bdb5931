"""The command's own words; what it does with them, `tests/tasks/test_convert.py` shows."""

import json
from pathlib import Path

import pytest
import typer

from flows.convert import COMMANDS, exporter_of
from tasks.errors import DataError, ParamsError, RegistryError, SetupError
from tasks.exporters.executorch import ExecuTorch
from tasks.exporters.litert import LiteRt
from tasks.exporters.onnx import Onnx
from tests.tasks.test_convert import STUDENT, Sketch

NAME = "digits.student"


@pytest.fixture
def says(bench, capsys):
    """Runs the command in a project with one registered student; gives what it said."""
    ref = STUDENT._run(bench.run, Sketch())
    bench.tracking.register(NAME, ref, {})
    app = typer.Typer()
    for command in COMMANDS:
        app.command()(command)
    capsys.readouterr()  # a stage's progress

    def run(*words):
        app(args=[str(word) for word in words], standalone_mode=False)
        return capsys.readouterr()

    return run


def test_it_writes_the_file_and_says_so(says, tmp_path):
    out = tmp_path / "student.onnx"
    said = says(f"{NAME}:1", "--to", "onnx", "--set", "opset=19", "--out", out)
    (line,) = said.out.splitlines()
    assert line.startswith("student.onnx: onnx (opset 19, ")
    assert "of digits.student version 1" in line
    assert out.is_file()
    found = json.loads(says(f"{NAME}:1", "--to", "onnx", "--out", out, "--json").out)
    assert found == json.loads((tmp_path / "student.onnx.json").read_text())
    assert found["exporter"] == Onnx().plain()


def test_litert_takes_its_python_from_the_settings(says, tmp_path, monkeypatch):
    monkeypatch.setenv("STILLMARK_LITERT_PYTHON", str(tmp_path / "python"))
    with pytest.raises(SetupError, match="python is no file; set STILLMARK_LITERT_PYTHON"):
        says(f"{NAME}:1", "--to", "litert", "--out", tmp_path / "student.tflite")
    monkeypatch.delenv("STILLMARK_LITERT_PYTHON")
    with pytest.raises(SetupError, match="needs an environment of its own"):
        says(f"{NAME}:1", "--to", "litert", "--out", tmp_path / "student.tflite")


def test_what_cannot_be_named_or_read_is_refused(says, bench, tmp_path):
    out = tmp_path / "student.onnx"
    with pytest.raises(RegistryError, match=r"did you mean 'digits\.student'\?"):
        says("digits.studen", "--to", "onnx", "--out", out)
    with pytest.raises(RegistryError, match="has no alias 'champion'; name a version"):
        says(NAME, "--to", "onnx", "--out", out)
    (bench.root / "prepared" / "rows.npy").unlink()
    with pytest.raises(DataError, match=r"rows\.npy is missing; run `dvc repro`"):
        says(f"{NAME}:1", "--to", "onnx", "--out", out)
    assert not out.exists()


def test_fields_are_json_or_plain_words():
    assert exporter_of("onnx", []) == Onnx()
    found = exporter_of("executorch", ["precision=int8", "at_least=9e-1", "tolerance=0.5"])
    assert found == ExecuTorch(precision="int8", at_least=0.9, tolerance=0.5)
    python = Path("/env/python")
    assert exporter_of("litert", [], python) == LiteRt(python=python)
    own = exporter_of("litert", ["python=/mine/python"], python)
    assert own == LiteRt(python=Path("/mine/python"))
    assert exporter_of("onnx", [], python) == Onnx()
    assert exporter_of("onnx", ["name=litert"]) == Onnx()


@pytest.mark.parametrize(
    ("form", "given", "message"),
    [
        ("onxx", [], r"exporters: unknown name 'onxx'; did you mean 'onnx'\?"),
        ("onnx", ["opset"], "--set 'opset' is no NAME=VALUE"),
        ("onnx", ["=19"], "--set '=19' is no NAME=VALUE"),
        ("onnx", ["opsett=19"], r"--set: unknown parameter 'opsett'; did you mean 'opset'\?"),
        ("onnx", ["opset=99"], "--set: 'opset' is 99: "),
        ("executorch", ["precision=int4"], "--set: 'precision' is \"int4\": "),
    ],
)
def test_a_wrong_word_is_one_line(form, given, message):
    with pytest.raises(ParamsError, match=f"^{message}") as caught:
        exporter_of(form, given)
    assert "\n" not in str(caught.value)
