"""What several of these tests share. Exports cost seconds, so each happens once."""

import io
import os
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image

import tasks
from tasks.compute import Compute
from tasks.exporters.onnx import Onnx
from tasks.modalities import Encoding
from tasks.modalities.images import Images
from tasks.networks import Spec
from tasks.networks.convnet import ConvNet
from tasks.networks.resnet import ResNet
from tasks.prepare import PrepareParams, prepare
from tasks.rows import Part, Rows
from tasks.sections import parse
from tests.postgres import postgres, postgres_url  # noqa: F401 - fixtures

REPOSITORY = Path(tasks.__file__).parents[1]

# Its cache of constants would otherwise lie in the repository.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "stillmark-hypothesis")
settings.register_profile("stillmark", deadline=None, derandomize=True, database=None)
settings.load_profile("stillmark")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compute():
    return Compute(seed=0, threads=1, device=torch.device("cpu"), bf16=False)


@pytest.fixture(scope="session")
def python():
    """Runs Python in a process of its own, with the repository on its path."""

    def run(*arguments, cwd=None, timeout=60):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", place]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a file system of its own")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(scope="session")
def png():
    """Encodes an array as PNG."""

    def encode(array):
        stream = io.BytesIO()
        Image.fromarray(np.asarray(array)).save(stream, "PNG")
        return stream.getvalue()

    return encode


@pytest.fixture(scope="session")
def params():
    """Parameters of the data stage, all labels shown unless a test says otherwise."""

    def build(**changes):
        plain = {
            "modality": {"name": "images"},
            "test_share": 0.3,
            "validation_share": 0.1,
            "labels_per_class": None,
            "validation_labels_per_class": None,
        }
        return parse(PrepareParams, plain | changes, "prepare")

    return build


@pytest.fixture(scope="session")
def stripes(png):
    """Noisy pictures of side 8, `h` and `v` by their stripes; seeded, so that all differ."""

    def draw(name, seed):
        noise = np.random.default_rng(seed).integers(0, 90, (8, 8))
        bars = np.zeros((8, 8), int)
        bars[::2] = 160
        return png((noise + (bars if name == "h" else bars.T)).astype(np.uint8))

    return draw


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, stripes, params):
    """A prepared folder: 2 classes, 60 labelled and 40 unlabelled pictures, 6 labels shown each."""
    root = tmp_path_factory.mktemp("project")
    for at in range(100):
        name = "hv"[at % 2]
        folder = root / "data" / (name if at < 60 else "unlabelled")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{at:03}.png").write_bytes(stripes(name, at))
    prepare(root, params(labels_per_class=6, validation_labels_per_class=1))
    return root / "prepared"


@pytest.fixture(scope="session")
def rows(prepared):
    return Rows(prepared)


@pytest.fixture(scope="session")
def part():
    """Makes a part of image arrays (N, side, side, channels) and labels (-1: hidden)."""

    def make(inputs, labels, classes=None):
        inputs, labels = np.asarray(inputs, np.uint8), np.asarray(labels, np.int64)
        names = [
            str(at)
            for at in range(max(2, labels.max(initial=0) + 1) if classes is None else classes)
        ]
        schema = {"shape": list(inputs.shape[1:]), "classes": names}
        rows = np.asarray([f"{at:064x}" for at in range(len(inputs))])
        return Part(rows, inputs, labels, Encoding(Images(), schema))

    return make


@pytest.fixture(scope="session")
def build():
    """Builds a network as if it had been trained: its normalisation has seen data."""

    def make(spec, seed=0):
        torch.manual_seed(seed)
        network = spec.build()
        side, _, channels = spec.shape
        for _ in range(3):
            network(torch.rand(16, channels, side, side))
        return network.eval()

    return make


@pytest.fixture(scope="session")
def convnet_spec():
    return Spec(network=ConvNet(widths=(8, 16, 16)), shape=(8, 8, 1), outputs=10)


@pytest.fixture(scope="session")
def resnet_spec():
    return Spec(network=ResNet(widths=(16, 32, 64)), shape=(32, 32, 3), outputs=10)


def _export(network, shape, path):
    side, _, channels = shape
    torch.manual_seed(1)
    example = torch.rand(4, channels, side, side)
    return network, path, Onnx().export(network, example, path)


@pytest.fixture(scope="session")
def exported_convnet(build, convnet_spec, tmp_path_factory):
    path = tmp_path_factory.mktemp("convnet") / "model.onnx"
    return _export(build(convnet_spec), convnet_spec.shape, path)


@pytest.fixture(scope="session")
def exported_resnet(build, resnet_spec, tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "model.onnx"
    return _export(build(resnet_spec), resnet_spec.shape, path)


@pytest.fixture(scope="session")
def state_digest():
    """sha256 over every tensor of a network, names and bytes."""

    def digest(network):
        seen = sha256()
        for name, tensor in sorted(network.state_dict().items()):
            seen.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return seen.hexdigest()

    return digest
