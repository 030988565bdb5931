import numpy as np
import pytest
from safetensors.numpy import save_file

from tasks.differences import differing


def test_differences_are_measured_tensor_by_tensor(tmp_path):
    before, now = tmp_path / "before", tmp_path / "now"
    for folder in (before, now):
        folder.mkdir()
    weights = {"a": np.float32([1, -4]), "b": np.float32([[0.5]])}
    save_file(weights, before / "w.safetensors")
    save_file(weights | {"b": np.float32([[0.501]])}, now / "w.safetensors")
    for folder, text in ((before, "one"), (now, "two")):
        (folder / "words.txt").write_text(text)
        (folder / "same.txt").write_text("same")
    np.save(before / "odd.npy", np.int8([1, 2]))
    np.save(now / "odd.npy", np.int8([1, 4]))
    np.save(before / "even.npy", np.int8([1, 2]))
    np.save(now / "even.npy", np.int8([2, 2]))
    (now / "new.txt").write_text("new")
    found = {one.name: one for one in differing(before, now)}
    assert found.keys() == {"w.safetensors", "words.txt", "odd.npy", "even.npy", "new.txt"}
    assert found["new.txt"].expected is None
    assert found["w.safetensors"].difference == pytest.approx(0.001 / 0.5, rel=1e-3)
    assert found["words.txt"].difference is None
    assert found["odd.npy"].difference is None
    assert found["even.npy"].difference == 0.0
