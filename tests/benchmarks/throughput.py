"""Images per second of the training loop, against a plain PyTorch loop and with a teacher.

    python -m tests.benchmarks.throughput --out tests/benchmarks/results/throughput.json

The two sides of a comparison take turns (A B A B …), one epoch each over the same random images; a
ratio is formed within a round. Each side lives in a process of its own, because deterministic mode
and the state of the memory allocator are the whole process's. Beside other work two threads fall to
a tenth of their speed, so a round waits for a quiet machine, and is repeated if it was disturbed;
when patience ends, disturbed rounds count too, and the results say so.
"""

import argparse
import json
import math
import multiprocessing
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from tasks.augmentations.affine import Affine
from tasks.combinations.mean import Mean
from tasks.compute import Compute, ComputeParams
from tasks.distillation import CachedViews, LiveViews, NetworkAnswers, Panel
from tasks.fit import FitParams, Step, Watch, fit
from tasks.losses import Pair
from tasks.losses.soft_labels import SoftLabels
from tasks.modalities import Encoding
from tasks.modalities.images import Images
from tasks.networks import Classifier, Network, Spec
from tasks.networks.convnet import ConvNet
from tasks.networks.resnet import ResNet
from tasks.rows import Part
from tasks.views import Views

SHAPE, CLASSES = (32, 32, 3), 10
ROWS, BATCH, ROUNDS, THREADS = 2048, 128, 9, 2
WARMUP_EPOCHS = 2
RATE, DECAY = 1e-3, 1e-4
ROTATION, SHIFT = 15.0, 0.1
CACHED_VIEWS = 1
QUIET_CORES = 0.25
PATIENCE_SECONDS = 300.0

FASTER_WITH_AMX, FASTER_ELSEWHERE = 2.5, 1.0
DISTILLATION_COST = 1.2

AUGMENTATION = Affine(rotation_degrees=ROTATION, shift_share=SHIFT, flip=True)
RESNET8 = ResNet(widths=(16, 32, 64), blocks=1)
STUDENT = ConvNet(widths=(16, 32, 32))
TEACHER = ResNet(widths=(32, 64, 128), blocks=2)
FLAGS = ("amx_bf16", "amx_tile", "avx512_bf16", "avx512f", "avx2")

Precision = Literal["auto", "fp32"]
Epoch = Callable[[], None]
"""Trains on (or asks a teacher about) as many images as there are rows."""


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        rounds: Epochs of either side.
        rows: Images in an epoch, a multiple of `BATCH`.
        threads: Threads of either side.
        patience: Seconds that a comparison may wait for a quiet machine.
    """

    rounds: int = ROUNDS
    rows: int = ROWS
    threads: int = THREADS
    patience: float = PATIENCE_SECONDS


@dataclass(frozen=True)
class Side:
    """One way to do the work.

    Attributes:
        what: What it does, for the reader of the results.
        start: Sets a process up for it, from the rows and the number of threads; runs there.
    """

    what: str
    start: Callable[[Part, int], Epoch]


@dataclass(frozen=True)
class Mark:
    """The bound that the median ratio has to keep; None where it has none."""

    at_least: float | None = None
    at_most: float | None = None

    def met(self, ratio: float) -> bool:
        """Whether a ratio keeps the bound."""
        enough = self.at_least is None or ratio >= self.at_least
        return enough and (self.at_most is None or ratio <= self.at_most)


@dataclass(frozen=True)
class Comparison:
    """Two sides, and what the ratio of their speeds has to be.

    Attributes:
        ratio: What the ratio states, for the reader of the results.
        above: The side whose speed stands above the line.
        below: The side whose speed stands below it.
        mark: The bound, or None where the figure is only for orientation.
    """

    ratio: str
    above: Side
    below: Side
    mark: Mark | None = None


@dataclass(frozen=True)
class Round:
    """One epoch of either side.

    Attributes:
        above: Images per second of the side above the line.
        below: Images per second of the side below it.
        busy_elsewhere: Cores that other processes kept busy meanwhile, on average.
    """

    above: float
    below: float
    busy_elsewhere: float

    @property
    def ratio(self) -> float:
        """What the comparison is about."""
        return self.above / self.below

    @property
    def quiet(self) -> bool:
        """Whether the machine was left to the benchmark."""
        return self.busy_elsewhere <= QUIET_CORES


@dataclass(frozen=True)
class Finding:
    """What a comparison found in every round."""

    comparison: Comparison
    rounds: list[Round]

    @property
    def median(self) -> float:
        """The median ratio, which the mark is held against."""
        return statistics.median(one.ratio for one in self.rounds)

    @property
    def met(self) -> bool | None:
        """Whether the mark is met, or None where there is none."""
        return self.comparison.mark.met(self.median) if self.comparison.mark else None

    @property
    def quiet(self) -> bool:
        """Whether no round was disturbed."""
        return all(one.quiet for one in self.rounds)

    def plain(self) -> dict[str, Any]:
        """As it enters the results file."""
        mark, ratios = self.comparison.mark, [round(one.ratio, 3) for one in self.rounds]
        return {
            "ratio": self.comparison.ratio,
            "median": round(self.median, 3),
            "range": [min(ratios), max(ratios)],
            "rounds": ratios,
            "mark": mark and {"at_least": mark.at_least, "at_most": mark.at_most},
            "met": self.met,
            "quiet": self.quiet,
            "cores_busy_elsewhere": [round(one.busy_elsewhere, 2) for one in self.rounds],
            "above": _speeds(self.comparison.above, [one.above for one in self.rounds]),
            "below": _speeds(self.comparison.below, [one.below for one in self.rounds]),
        }


def _speeds(side: Side, speeds: list[float]) -> dict[str, Any]:
    return {
        "side": side.what,
        "images_per_second": round(statistics.median(speeds)),
        "rounds": [round(speed) for speed in speeds],
    }


class PlainImages(Dataset[tuple[Tensor, int]]):
    """Images one by one, as PyTorch tutorials write it.

    Args:
        part: The rows.
        augment: Whether every image is flipped, rotated and shifted at random.
    """

    def __init__(self, part: Part, *, augment: bool) -> None:
        self.images, self.labels, self.augment = part.inputs, part.labels, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.images[at]).permute(2, 0, 1).float() / 255
        return (random_view(image) if self.augment else image), int(self.labels[at])


def random_view(image: Tensor) -> Tensor:
    """Flips, rotates and shifts one image (C, H, W) by amounts as `AUGMENTATION` draws them."""
    if torch.rand(1) < 0.5:
        image = image.flip(2)
    angle = math.radians(_uniform(ROTATION))
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin, _uniform(2 * SHIFT)], [sin, cos, _uniform(2 * SHIFT)]])
    grid = functional.affine_grid(turn[None], [1, *image.shape], align_corners=False)
    return functional.grid_sample(image[None], grid, align_corners=False)[0]


def _uniform(amount: float) -> float:
    return torch.empty(1).uniform_(-amount, amount).item()


def random_part(rows: int) -> Part:
    """Random images with random labels."""
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (rows, *SHAPE), dtype=np.uint8)
    labels = random.integers(0, CLASSES, rows)
    names = np.asarray([f"{row:064x}" for row in range(rows)])
    schema = {"shape": list(SHAPE), "classes": [str(label) for label in range(CLASSES)]}
    return Part(names, inputs, labels, Encoding(Images(), schema))


def build(network: Network) -> Classifier:
    """A network for these images, with weights from a fixed seed."""
    torch.manual_seed(0)
    return Spec(network=network, shape=SHAPE, outputs=CLASSES).build()


def plain_loop(part: Part, threads: int, *, augment: bool) -> Epoch:
    """Float32, one sample at a time through a DataLoader."""
    torch.set_num_threads(threads)
    network = build(RESNET8).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    loader = DataLoader(PlainImages(part, augment=augment), BATCH, shuffle=True)

    def epoch() -> None:
        for images, labels in loader:
            optimizer.zero_grad()
            functional.cross_entropy(network(images), labels).backward()
            optimizer.step()

    return epoch


def resolved(threads: int, precision: Precision = "auto") -> Compute:
    """The project's settings on this processor."""
    return Compute.resolve(ComputeParams(threads=threads, device="cpu", precision=precision))


def project_views(part: Part, threads: int, precision: Precision = "auto") -> Views:
    """The rows as the project's stages hold them, in a process set up as theirs."""
    compute = resolved(threads, precision)
    compute.start()
    return Views(part, AUGMENTATION, compute)


def fitting(network: nn.Module, step: Step, views: Views) -> Epoch:
    """Epochs of `tasks.fit.fit`."""
    params = FitParams(steps=len(views) // BATCH, learning_rate=RATE, weight_decay=DECAY)

    def epoch() -> None:
        fit(network, step, params, views.compute)

    return epoch


def labels_loop(
    part: Part,
    threads: int,
    *,
    spec: Network = RESNET8,
    augment: bool = True,
    precision: Precision = "auto",
) -> Epoch:
    """The project's loop on labels alone."""
    views = project_views(part, threads, precision)
    network = views.compute.place(build(spec))

    def step(_at: int, generator: torch.Generator) -> Tensor:
        rows = views.sample(BATCH, generator)
        inputs = views.augmented(rows, generator) if augment else views.clean(rows)
        return functional.cross_entropy(network(inputs).float(), views.labels[rows])

    return fitting(network, step, views)


def ask_teacher(views: Views) -> CachedViews:
    """Runs the teacher over views of every row."""
    teacher = views.compute.place(build(TEACHER)).eval()
    panel = Panel([NetworkAnswers(teacher)], Mean(), views.labels)
    live = LiveViews(views, torch.arange(len(views)), panel, views.compute)
    return CachedViews.ask(live, CACHED_VIEWS, SoftLabels.needs, Watch())


def taught_loop(part: Part, threads: int) -> Epoch:
    """The project's loop on cached outputs of a teacher."""
    views, loss = project_views(part, threads), SoftLabels()
    taught = ask_teacher(views)
    student = views.compute.place(build(STUDENT))

    def step(_at: int, generator: torch.Generator) -> Tensor:
        inputs, said, labels = taught.batch(BATCH, generator)
        return loss(Pair(student.outputs(inputs), said, labels))

    return fitting(student, step, views)


def asking(part: Part, threads: int) -> Epoch:
    """The making of the cache, one view of every row."""
    views = project_views(part, threads)

    def epoch() -> None:
        ask_teacher(views)

    return epoch


OURS = "tasks.fit, tasks.views: whole batches, channels-last"
PLAIN = "plain PyTorch: Dataset and DataLoader, num_workers=0, fp32, NCHW"


def augmented_loops() -> Comparison:
    """The project's loop against the plain one, both augmenting."""
    amx = resolved(THREADS).bf16
    return Comparison(
        "images/s with augmentation, project / plain PyTorch",
        Side(OURS + ", precision auto", labels_loop),
        Side(PLAIN + ", transforms per sample", partial(plain_loop, augment=True)),
        Mark(at_least=FASTER_WITH_AMX if amx else FASTER_ELSEWHERE),
    )


def bare_loops() -> Comparison:
    """The same without augmentation on either side: what is left is arithmetic and loading."""
    return Comparison(
        "images/s without augmentation on either side, project / plain PyTorch",
        Side(OURS + ", precision auto", partial(labels_loop, augment=False)),
        Side(PLAIN, partial(plain_loop, augment=False)),
        Mark(at_least=FASTER_ELSEWHERE),
    )


def fp32_loops() -> Comparison:
    """Both in float32 and augmenting: what a processor without AMX is left with."""
    return Comparison(
        "images/s with augmentation and fp32 on either side, project / plain PyTorch",
        Side(OURS + ", fp32", partial(labels_loop, precision="fp32")),
        Side(PLAIN + ", transforms per sample", partial(plain_loop, augment=True)),
        Mark(at_least=FASTER_ELSEWHERE),
    )


def distillation() -> Comparison:
    """An epoch on cached teacher outputs against one on labels."""
    return Comparison(
        "seconds of an epoch, on the teacher's cached outputs / on labels",
        Side("student on labels", partial(labels_loop, spec=STUDENT)),
        Side("student on the teacher's cached outputs", taught_loop),
        Mark(at_most=DISTILLATION_COST),
    )


def caching() -> Comparison:
    """What the cache itself costs, once for every view."""
    return Comparison(
        "seconds of caching one view of every row / of an epoch on labels",
        Side("student on labels", partial(labels_loop, spec=STUDENT)),
        Side("teacher's outputs on one view", asking),
    )


COMPARISONS = (augmented_loops, bare_loops, fp32_loops, distillation, caching)


def _serve(side: Side, options: Options, channel: Connection) -> None:
    epoch = side.start(random_part(options.rows), options.threads)
    while channel.recv():
        start = time.perf_counter()
        epoch()
        channel.send(options.rows / (time.perf_counter() - start))


@contextmanager
def running(side: Side, options: Options) -> Iterator[Callable[[], float]]:
    """A process for a side; gives a function that runs one epoch there: its images per second."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(side, options, there), daemon=True)
    process.start()
    there.close()  # so that the death of the process ends a wait for its answer

    def speed() -> float:
        here.send(True)
        return here.recv()

    try:
        yield speed
    finally:
        process.terminate()
        process.join()


def measure(comparison: Comparison, options: Options) -> Finding:
    """Takes turns between both sides, after a warm-up of each."""
    quiet: list[Round] = []
    disturbed: list[Round] = []
    deadline = time.monotonic() + options.patience
    with running(comparison.above, options) as above, running(comparison.below, options) as below:
        for _ in range(WARMUP_EPOCHS):
            above()
            below()
        while len(quiet) < options.rounds and (
            time.monotonic() < deadline or len(quiet) + len(disturbed) < options.rounds
        ):
            await_quiet(deadline)
            found = watched(above, below)
            (quiet if found.quiet else disturbed).append(found)
    return Finding(comparison, [*quiet, *disturbed][: options.rounds])


def await_quiet(deadline: float) -> None:
    """Returns as soon as other processes leave the machine alone, or at the deadline."""
    while psutil.cpu_percent(1) * (psutil.cpu_count() or 1) > 100 * QUIET_CORES:
        if time.monotonic() > deadline:
            return


def watched(above: Callable[[], float], below: Callable[[], float]) -> Round:
    """One round, and what other processes did meanwhile."""
    start, busy, own = time.perf_counter(), _busy_seconds(), _children_seconds()
    speeds = above(), below()
    elsewhere = (_busy_seconds() - busy) - (_children_seconds() - own)
    return Round(*speeds, max(0.0, elsewhere / (time.perf_counter() - start)))


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return times.user + times.system


def _children_seconds() -> float:
    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(found.user + found.system for found in times)


def host() -> dict[str, Any]:
    """The processor and those of its instruction sets that decide speed."""
    name, flags = platform.processor() or platform.machine(), list[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
        facts = {key.strip(): value.strip() for key, _, value in lines}
        name, flags = facts.get("model name", name), facts.get("flags", "").split()
    return {
        "cpu": name,
        "cores": psutil.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def report(findings: list[Finding], options: Options) -> dict[str, Any]:
    """The results file."""
    return {
        "command": f"python -m tests.benchmarks.throughput {shlex.join(sys.argv[1:])}".strip(),
        "host": host(),
        "torch": torch.__version__,
        "compute": resolved(options.threads).describe(),
        "data": {"rows": options.rows, "shape": SHAPE, "batch": BATCH},
        "loop_network": RESNET8.plain(),
        "student": STUDENT.plain(),
        "teacher": TEACHER.plain(),
        "findings": [finding.plain() for finding in findings],
    }


def main() -> None:
    """Measures, prints the ratios and writes the results."""
    parser = argparse.ArgumentParser(description="Measures the training loop's speed.")
    parser.add_argument("--out", type=Path)
    for field in fields(Options):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    out, options = given.pop("out"), Options(**given)
    findings: list[Finding] = []
    for comparison in COMPARISONS:
        findings.append(measure(comparison(), options))
        print(json.dumps(findings[-1].plain()))
    if out:
        found = json.dumps(report(findings, options), indent=2)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
