"""Conversion of registered versions, the exporters' own work aside."""

import hashlib
import json
import shutil
from typing import Literal

import numpy as np
import onnxruntime
import pytest
import torch

from tasks import networks
from tasks.convert import COMPARED_ROWS, convert
from tasks.errors import ArtifactError, CompressionError, DataError, SetupError
from tasks.exporters import Exporter
from tasks.exporters.litert import LiteRt
from tasks.exporters.onnx import Onnx
from tasks.keep import keep_schema
from tasks.networks import SPEC_FILE, Spec
from tasks.networks.convnet import ConvNet
from tasks.rows import Rows
from tasks.sections import Section
from tasks.stage import stage
from tasks.tracking import payload_of


class Sketch(Section):
    """A network that nobody trained."""

    seed: int = 0
    outputs: int = 3
    weights: bool = True


def draw(work, params, **inputs):
    torch.manual_seed(params.seed)
    shape = work.rows.encoding.input_shape
    spec = Spec(network=ConvNet(widths=(8, 8)), shape=shape, outputs=params.outputs)
    networks.save(work.folder, spec, spec.build())
    keep_schema(work.folder, work.rows)
    return {}


def shrink(work, params, *, dense, **teachers):
    """Leaves what an edge model holds: no weights for torch, unless it was fine-tuned."""
    if params.weights:
        return draw(work, params)
    keep_schema(work.folder, work.rows)
    shutil.copy(work.files(dense) / SPEC_FILE, work.folder)
    (work.folder / "model.onnx").write_bytes(b"int8")
    return {}


STUDENT, EDGE = stage("student")(draw), stage("edge")(shrink)


@pytest.fixture
def rows(bench):
    return Rows(bench.root / "prepared")


@pytest.fixture
def registered(bench):
    return lambda ref: bench.tracking.register(f"{bench.run.project}.{ref.role}", ref, {})


@pytest.fixture
def student(bench, registered):
    return registered(STUDENT._run(bench.run, Sketch()))


@pytest.fixture
def edge(bench, student, registered):
    teacher = STUDENT._run(bench.run, Sketch(seed=1))
    made = EDGE._run(bench.run, Sketch(weights=False), teacher=teacher, dense=student.model)
    return registered(made)


@pytest.fixture
def out(tmp_path):
    """A file in an empty folder."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model.bin"


def folder_of(bench, version):
    return payload_of(bench.files(version.model))


class Stub(Exporter):
    """Notes what it was handed."""

    name: Literal["stub"] = "stub"
    fails: bool = False

    def export(self, network, example, path):
        SEEN.append((network, example))
        path.write_bytes(b"half of it")
        if self.fails:
            raise CompressionError("the operator 'what' is not known")
        path.write_bytes(b"all of it")
        return 0.25


SEEN = []


@pytest.fixture(autouse=True)
def _unseen():
    SEEN.clear()


def everything(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_network_is_written_and_answers_as_it_does_in_torch(bench, student, rows, out):
    made = convert(bench.tracking, student, Onnx(), rows, out)
    _, network = networks.load(folder_of(bench, student))
    inputs = rows.modality.to_network(torch.from_numpy(np.array(rows.train.inputs)))
    session = onnxruntime.InferenceSession(str(out))
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, network(inputs).numpy(), atol=1e-5)
    assert 0 <= made.difference < 1e-5
    assert "digits.student version 1" in made.sentence


def test_the_note_says_what_was_made_of_what(bench, student, rows, out):
    made = convert(bench.tracking, student, Stub(), rows, out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.bin", "model.bin.json"]
    note = json.loads((out.parent / "model.bin.json").read_text())
    assert note == made.model_dump(mode="json")
    assert note == {
        "format": "stillmark-export/1",
        "name": "digits.student",
        "version": 1,
        "content": student.model.content,
        "record": student.model.record,
        "network": {
            "role": "student",
            "record": student.model.record,
            "content": student.model.content,
        },
        "exporter": {"name": "stub", "fails": False},
        "rows": min(COMPARED_ROWS, len(rows.train)),
        "difference": 0.25,
        "file": "model.bin",
        "size_bytes": 9,
        "sha256": hashlib.sha256(b"all of it").hexdigest(),
    }


def test_of_an_edge_model_the_network_that_it_was_quantized_from(bench, student, edge, rows, out):
    made = convert(bench.tracking, edge, Stub(), rows, out)
    assert (made.name, made.content) == ("digits.edge", edge.model.content)
    assert made.network.record == student.model.record
    ((network, _),) = SEEN
    _, expected = networks.load(folder_of(bench, student))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
    assert not network.training


def test_a_fine_tuned_edge_model_is_its_own(bench, student, registered, rows, out):
    edge = registered(EDGE._run(bench.run, Sketch(seed=7), dense=student.model))
    made = convert(bench.tracking, edge, Stub(), rows, out)
    assert made.network.record == edge.model.record
    _, expected = networks.load(folder_of(bench, edge))
    ((network, _),) = SEEN
    assert torch.equal(network.head.weight, expected.head.weight)


def test_it_is_checked_on_training_rows_alone(bench, student, rows, out):
    convert(bench.tracking, student, Stub(), rows, out)
    ((_, example),) = SEEN
    train = rows.modality.to_network(torch.from_numpy(np.array(rows.train.inputs)))
    known = {row.numpy().tobytes() for row in train}
    assert {row.numpy().tobytes() for row in example} <= known
    assert len(example) == min(COMPARED_ROWS, len(train))
    assert example.is_contiguous()


def test_nothing_that_is_stored_changes(bench, edge, rows, out):
    before = everything(bench.root / ".stillmark" / "artifacts")
    convert(bench.tracking, edge, Stub(), rows, out)
    assert everything(bench.root / ".stillmark" / "artifacts") == before


def test_what_fails_leaves_an_earlier_file_as_it_was(bench, student, rows, out):
    convert(bench.tracking, student, Stub(), rows, out)
    before = everything(out.parent)
    with pytest.raises(CompressionError, match="'what' is not known"):
        convert(bench.tracking, student, Stub(fails=True), rows, out)
    assert everything(out.parent) == before


def test_without_what_the_format_needs_nothing_is_left(bench, student, rows, out):
    with pytest.raises(SetupError, match="make litert-env"):
        convert(bench.tracking, student, LiteRt(), rows, out)
    assert not list(out.parent.iterdir())


def test_a_damaged_network_is_refused(bench, student, edge, rows, out):
    path = folder_of(bench, student) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"weights\.safetensors has sha256"):
        convert(bench.tracking, edge, Stub(), rows, out)
    assert not list(out.parent.iterdir())


def test_what_is_no_network_that_classifies_is_refused(bench, toy, registered, rows, out):
    with pytest.raises(CompressionError, match="edge version 1 holds no weights"):
        convert(bench.tracking, registered(toy.make(bench)), Stub(), rows, out)
    body = registered(STUDENT._run(bench.run, Sketch(outputs=0)))
    with pytest.raises(CompressionError, match="the student is a body that names no class"):
        convert(bench.tracking, body, Stub(), rows, out)


def test_rows_of_another_shape_are_refused(bench, student, rows, out):
    rows.schema["shape"] = [16, 16, 1]
    with pytest.raises(DataError, match=r"takes rows of shape \(8, 8, 1\), .* \(16, 16, 1\)"):
        convert(bench.tracking, student, Stub(), rows, out)


def test_too_few_rows_are_refused(bench, student, rows, out):
    rows.train = rows.train.first()
    with pytest.raises(DataError, match="there are 1 training rows, 2 or more are needed"):
        convert(bench.tracking, student, Stub(), rows, out)


def test_a_place_that_cannot_take_it_is_named(bench, student, rows, out):
    kept = bench.root / ".stillmark" / "artifacts" / "model.bin"
    (out.parent / "taken.json").mkdir()
    for place, reason in (
        (out.parent, "is a folder"),
        (out.parent / "taken", r"taken\.json is a folder"),
        (out.parent / "none" / "model.bin", "cannot be written: No such file or directory"),
        (kept, "write model.bin elsewhere"),
    ):
        with pytest.raises(SetupError, match=reason) as caught:
            convert(bench.tracking, student, Stub(), rows, place)
        assert "\n" not in str(caught.value)
    assert not kept.exists()
    assert [path.name for path in out.parent.iterdir()] == ["taken.json"]
