import numpy as np

from tasks.quantizers.float32 import Float32


def test_the_file_stays_as_it_is(tmp_path):
    source, target = tmp_path / "model.onnx", tmp_path / "edge.onnx"
    source.write_bytes(b"float weights")
    Float32().quantize(source, target, np.zeros((0, 1), np.float32))
    assert target.read_bytes() == b"float weights"
    assert source.read_bytes() == b"float weights"
