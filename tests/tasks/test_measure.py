import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tasks import measure
from tasks.errors import CompressionError
from tasks.measure import (
    BATCH,
    WARM_UP_CALLS,
    costs,
    effort,
    host,
    interleaved,
    latencies,
    network_row,
    peak_memory_kib,
    percentiles_ms,
    throughputs,
)
from tasks.modalities.images import Images
from tasks.networks import count_macs, count_parameters, save


def linear(path, hidden):
    """An ONNX file of two products, 64 → hidden → 3."""
    random = np.random.default_rng(0)
    shapes = {"first": (64, hidden), "second": (hidden, 3)}
    weights = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["inputs"], ["flat"]),
            helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "second"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        weights,
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


# Time


def test_models_take_turns():
    order = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = interleaved(calls, 5)
    assert order == sorted("abc" * WARM_UP_CALLS) + list("abc") * 5
    assert {name: found.shape for name, found in times.items()} == dict.fromkeys("abc", (5,))
    assert all((found >= 0).all() for found in times.values())


def test_seconds_become_percentiles_in_milliseconds():
    p50, p95 = percentiles_ms(np.arange(101) / 1000)
    assert (p50, p95) == pytest.approx((50, 95))


def test_a_busy_host_widens_the_medians_and_not_their_ratio():
    random = np.random.default_rng(0)
    busy = np.repeat(random.uniform(1, 3, 10), 20)  # all calls of a round are slowed alike
    own = {name: random.normal(1, 0.01, 200) for name in ("first", "second")}
    found = latencies({"first": busy * own["first"], "second": 0.5 * busy * own["second"]})
    first, alone = found["first"]
    second, ratio = found["second"]
    assert first.value == pytest.approx(1000 * np.median(busy * own["first"]))
    assert (alone.value, alone.low, alone.high) == (1, 1, 1)
    assert second.low < second.value < second.high
    assert (second.high - second.low) / second.value > 0.1
    assert ratio.low < 0.5 < ratio.high
    assert ratio.high - ratio.low < 0.02


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where a model says so."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def take(seconds):
        now[0] += seconds

    return take


def test_throughput_is_that_of_the_median_call_of_256_rows(part, clock):
    seen = []
    slow = iter([9.0, 2.0, 2.0, 8.0, 2.0, 2.0])  # the first warms up

    def ask(rows):
        seen.append(rows.inputs)
        clock(next(slow))
        return np.zeros((len(rows), 2), np.float32)

    def other(rows):
        clock(0.5)
        return np.zeros((len(rows), 2), np.float32)

    rows = part(np.arange(3 * 4).reshape(3, 2, 2, 1), [0, 1, 0])
    assert throughputs({"slow": ask, "fast": other}, rows) == {"slow": 128.0, "fast": 512.0}
    assert {len(inputs) for inputs in seen} == {BATCH}
    assert (seen[0] == rows.inputs[np.arange(BATCH) % 3]).all()


# Memory


@pytest.fixture(scope="module")
def row():
    return np.zeros((1, 1, 8, 8), np.float32)


def test_a_larger_model_takes_its_weights_more(tmp_path, row):
    small, large = (linear(tmp_path / str(size), size) for size in (8, 200_000))
    weights_kib = large.stat().st_size / 1024
    more = peak_memory_kib(large, row) - peak_memory_kib(small, row)
    assert 0.9 * weights_kib < more < 4 * weights_kib


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_size_of_the_process_that_asks_does_not_count(tmp_path, row):
    model = linear(tmp_path / "model", 8)
    before = peak_memory_kib(model, row)
    weight = np.ones(64 * 2**20 // 8)  # 64 MiB
    assert peak_memory_kib(model, row) < before + 16 * 1024
    assert weight.sum() == len(weight)
    assert 0 < before < 32 * 1024  # nor does the runtime, which alone takes more


def test_a_file_that_cannot_be_run_is_named_with_the_reason(tmp_path, row):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nothing")
    with pytest.raises(CompressionError, match=r"broken\.onnx cannot be run .*Protobuf"):
        peak_memory_kib(broken, row)


def test_a_row_of_the_wrong_shape_is_an_error_too(tmp_path):
    model = linear(tmp_path / "model.onnx", 8)
    with pytest.raises(CompressionError, match=r"model\.onnx cannot be run"):
        peak_memory_kib(model, np.zeros((1, 2), np.float32))


# Together


def test_costs_of_several_networks(tmp_path, build, convnet_spec, part):
    network = build(convnet_spec)
    rows = part(np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)), [0, 1, 2, 0, 1], 3)
    example = torch.from_numpy(network_row(Images(), rows))
    assert example.shape == (1, 1, 8, 8)
    folders = {"network": tmp_path / "network", "bare": tmp_path / "bare"}
    for folder in folders.values():
        folder.mkdir()
        schema = {"classes": ["a", "b", "c"], "side": 8, "channels": 1}
        (folder / "schema.json").write_text(json.dumps(schema))
    save(folders["network"], convnet_spec, network)
    linear(folders["network"] / "model.onnx", 8)
    linear(folders["bare"] / "model.onnx", 64)
    found = costs(Images(), folders, rows, 20)
    assert list(found) == ["network", "bare"]
    for name, cost in found.items():
        assert cost.size_bytes == (folders[name] / "model.onnx").stat().st_size
        assert 0 < cost.latency_p50_ms <= cost.latency_p95_ms
        assert 0 < cost.latency_low_ms <= cost.latency_p50_ms <= cost.latency_high_ms
        assert cost.latency_ratio_low <= cost.latency_ratio <= cost.latency_ratio_high
        # In batches rows are cheaper than one by one.
        assert cost.throughput_rows_per_second > 1000 / cost.latency_p95_ms
        assert cost.peak_memory_kib > 0
    assert found["network"].latency_ratio_low == found["network"].latency_ratio_high == 1
    quotient = found["bare"].latency_p50_ms / found["network"].latency_p50_ms
    assert found["bare"].latency_ratio == pytest.approx(quotient)
    assert found["network"].parameters == count_parameters(network)
    assert found["network"].macs == count_macs(network, example)
    assert (found["bare"].parameters, found["bare"].macs) == (None, None)
    assert effort(folders["network"], example) == (
        found["network"].parameters,
        found["network"].macs,
    )


# The host

X86 = """processor\t: 0
model name\t: Some Processor @ 2.00GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_int8 rdpid

processor\t: 1
model name\t: Some Processor @ 2.00GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_int8 rdpid
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd crc32 asimddp i8mm
"""


def test_the_host_is_named_with_the_flags_that_matter(tmp_path):
    (tmp_path / "x86").write_text(X86)
    said = host(tmp_path / "x86")
    assert said.startswith("Some Processor @ 2.00GHz, ")
    assert " cores, " in said
    assert said.endswith(", flags avx2 avx512f avx512_vnni amx_int8")
    (tmp_path / "arm").write_text(ARM)
    assert host(tmp_path / "arm").endswith(", flags asimd asimddp i8mm")


def test_this_host_and_one_that_says_nothing_are_named_too(tmp_path):
    for said in (host(), host(tmp_path / "missing")):
        assert "cores" in said
        assert not said.startswith(",")
        assert not said.endswith(", ")
        assert "\n" not in said
