"""What a stored model costs on this host: measured, with what can be counted beside it."""

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks import networks
from tasks.answers import Ask, asking
from tasks.errors import CompressionError
from tasks.exporters import MODEL_FILE
from tasks.modalities import Modality
from tasks.networks import SPEC_FILE, Spec
from tasks.rows import Part
from tasks.sections import parse
from tasks.statistics import Estimate, estimate, medians_again

WARM_UP_CALLS = 10
BATCH, BATCH_CALLS = 256, 5
CPU_INFO = Path("/proc/cpuinfo")
X86 = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
ARM = ("asimd", "asimddp", "i8mm", "bf16", "sve")

# A parent's size is handed down into `ru_maxrss` when it starts a process, so that beside torch any
# model would seem to take hundreds of megabytes; `VmHWM` starts anew.
MEMORY_PROGRAM = """
import resource, sys
import numpy, onnxruntime

def kib(field):
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        unit = 1024 if sys.platform == "darwin" else 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

row = numpy.load(sys.argv[2])
before = kib("VmRSS")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
for _ in range(10):
    session.run(None, {session.get_inputs()[0].name: row})
print(kib("VmHWM") - before)
"""


class Cost(BaseModel):
    """What a stored network costs on this host.

    The intervals are of the latency in that one run, see `latencies`; None in reports from before
    they were kept.

    Attributes:
        size_bytes: Size of its ONNX file.
        parameters: Trainable values; None where no spec is stored beside the file.
        macs: Multiply-accumulates per row; None where no spec is stored.
        latency_p50_ms: Median time of a call at batch 1 on one thread.
        latency_p95_ms: 95th percentile of the same.
        throughput_rows_per_second: Rows per second in the median call of 256 rows on one thread.
        peak_memory_kib: See `peak_memory_kib`.
        latency_low_ms: Lower end of the 95% interval of `latency_p50_ms`.
        latency_high_ms: Upper end.
        latency_ratio: `latency_p50_ms` over that of the first network measured in the same run.
        latency_ratio_low: Lower end of its 95% interval, paired: the two took turns.
        latency_ratio_high: Upper end.
    """

    model_config = ConfigDict(frozen=True)

    size_bytes: int
    parameters: int | None
    macs: int | None
    latency_p50_ms: float
    latency_p95_ms: float
    throughput_rows_per_second: float
    peak_memory_kib: float
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    latency_ratio: float | None = None
    latency_ratio_low: float | None = None
    latency_ratio_high: float | None = None


def costs(
    modality: Modality, folders: Mapping[str, Path], rows: Part, calls: int
) -> dict[str, Cost]:
    """What each of several stored networks costs, the networks taking turns.

    Args:
        modality: Of the rows.
        folders: Each with a network's files, by name; latencies are held against the first's.
        rows: At least one row.
        calls: Timed calls of each at batch 1.

    Raises:
        CompressionError: ONNX Runtime cannot run a file.
    """
    one, row = rows.first(), network_row(modality, rows)
    asks = {name: asking(modality, folder) for name, folder in folders.items()}
    seconds = interleaved({name: _call(ask, one) for name, ask in asks.items()}, calls)
    speeds = throughputs(asks, rows)
    medians = latencies(seconds)
    found: dict[str, Cost] = {}
    for name, folder in folders.items():
        parameters, macs = effort(folder, torch.from_numpy(row))
        p50, p95 = percentiles_ms(seconds[name])
        median, ratio = medians[name]
        found[name] = Cost(
            size_bytes=(folder / MODEL_FILE).stat().st_size,
            parameters=parameters,
            macs=macs,
            latency_p50_ms=p50,
            latency_p95_ms=p95,
            throughput_rows_per_second=speeds[name],
            peak_memory_kib=peak_memory_kib(folder / MODEL_FILE, row),
            latency_low_ms=median.low,
            latency_high_ms=median.high,
            latency_ratio=ratio.value,
            latency_ratio_low=ratio.low,
            latency_ratio_high=ratio.high,
        )
    return found


def latencies(
    seconds: Mapping[str, NDArray[np.float64]],
) -> dict[str, tuple[Estimate, Estimate]]:
    """Median call of each model in milliseconds, and that over the first model's.

    The 95% intervals are those of `medians_again`, rounds being drawn whole. They tell how well
    this run of calls knows its medians; another hour of the same host may be busier.

    Args:
        seconds: What `interleaved` gave: of each model as many calls, at least one.
    """
    columns = np.stack([*seconds.values()], axis=1)
    value, again = np.median(columns, axis=0) * 1000, medians_again(columns) * 1000
    return {
        name: (
            estimate(float(value[at]), again[:, at]),
            estimate(float(value[at] / value[0]), again[:, at] / again[:, 0]),
        )
        for at, name in enumerate(seconds)
    }


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = WARM_UP_CALLS
) -> dict[str, NDArray[np.float64]]:
    """Seconds of each call, (rounds,) by name; all take turns, so a busy host is fair to all.

    Args:
        calls: What is timed.
        rounds: Timed calls of each.
        warm_up: Calls of each before that, one after another.
    """
    for call in calls.values():
        for _ in range(warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: np.asarray(found) for name, found in times.items()}


def percentiles_ms(seconds: NDArray[np.float64]) -> tuple[float, float]:
    """Median and 95th percentile, in milliseconds."""
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return float(p50), float(p95)


def throughputs(asks: Mapping[str, Ask], rows: Part) -> dict[str, float]:
    """Rows per second in the median call of 256 rows on one thread, the models taking turns.

    Args:
        asks: The models by name.
        rows: At least one; where there are fewer than 256, they come again.
    """
    many = rows.take(np.arange(BATCH) % len(rows))
    calls = {name: _call(ask, many) for name, ask in asks.items()}
    seconds = interleaved(calls, BATCH_CALLS, warm_up=1)
    return {name: BATCH / float(np.median(found)) for name, found in seconds.items()}


def peak_memory_kib(model: Path, row: NDArray[Any]) -> float:
    """Memory that one model takes at most beside the runtime's own, in units of 1,024 bytes.

    Counted is the largest resident size of a fresh process that opens the file with ONNX Runtime
    on one thread and runs one row ten times, less its resident size just before it opens the file.
    So: the file as it is parsed, weights packed for the kernels, activations, arenas, and those
    pages of the runtime's code that only now are touched. Not: Python, numpy, the runtime at rest.
    Linux tells both sizes; elsewhere both are the largest so far, which may understate.

    Args:
        model: An ONNX file.
        row: One row as the network takes it, (1, …).

    Raises:
        CompressionError: ONNX Runtime cannot open or run it.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "row.npy"
        np.save(place, row)
        done = subprocess.run(  # noqa: S603 - this Python, and paths of our own
            [sys.executable, "-c", MEMORY_PROGRAM, str(model), str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise CompressionError(
            f"{model} cannot be run in a process of its own, to measure its memory: {reason}"
        )
    return float(done.stdout)


def effort(folder: Path, example: torch.Tensor) -> tuple[int | None, int | None]:
    """Parameters and multiply-accumulates per row of a stored network.

    Args:
        folder: Its files; without a spec among them, as of an estimator, there are no figures.
        example: A batch of rows as the network takes them.

    Raises:
        ParamsError: The spec is none.
    """
    if not (folder / SPEC_FILE).is_file():
        return None, None
    spec = parse(Spec, json.loads((folder / SPEC_FILE).read_text(encoding="utf-8")), SPEC_FILE)
    network = spec.build().eval()
    return networks.count_parameters(network), networks.count_macs(network, example)


def network_row(modality: Modality, rows: Part) -> NDArray[Any]:
    """The first row as a network takes it, (1, …)."""
    stored = torch.from_numpy(np.array(rows.inputs[:1]))
    return modality.to_network(stored).contiguous().numpy()


def host(cpu_info: Path = CPU_INFO) -> str:
    """Processor, cores, torch's instruction set, and the processor's own flags that kernels use.

    Args:
        cpu_info: Where Linux describes its processors.
    """
    told = _described(cpu_info)
    cpu = told.get("model name") or platform.processor() or platform.machine()
    known = {*told.get("flags", "").split(), *told.get("Features", "").split()}
    flags = [flag for flag in (*X86, *ARM) if flag in known]
    parts = [cpu, f"{psutil.cpu_count()} cores", torch.backends.cpu.get_cpu_capability()]
    return ", ".join([*parts, " ".join(["flags", *flags])] if flags else parts)


def _described(cpu_info: Path) -> dict[str, str]:
    """What is said of the processors, of each field the last; nothing where there is no file."""
    if not cpu_info.exists():
        return {}
    lines = (line.partition(":") for line in cpu_info.read_text(encoding="utf-8").splitlines())
    return {name.strip(): text.strip() for name, _, text in lines}


def _call(ask: Ask, rows: Part) -> Callable[[], Any]:
    return lambda: ask(rows)
