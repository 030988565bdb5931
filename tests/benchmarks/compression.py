"""What compression of a trained student costs and gives, meant for a CIFAR-10 chain.

    python -m tests.benchmarks.compression PROJECT --out tests/benchmarks/results/compression.json

PROJECT is a folder where `stillmark retrain` has ended. Its newest registered student is pruned to
half of its multiply-accumulates, with recovery from its newest teacher, and quantized; beside it
stands the control that pruning has to beat: a network of the pruned shape, distilled from fresh
weights with as many steps as the recovery has (`--control-steps` for more, as the student had its
own before). All are asked about the same test
rows, which chose nothing here; latencies take turns at batch 1 on one thread. The marks:

- int8 loses at most 1 point against the unpruned float student (the paired interval is shown);
- its file has at most 30% of the student's bytes as float ONNX;
- a call is faster than with both float files;
- against the teacher, a tenth of the latency and a twenty-fifth of the bytes.

The store of PROJECT gets the new models; nothing in it is changed.
"""

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import flows  # noqa: F401 - sets the environment
from tasks.answers import asking
from tasks.distillation import DistillationParams, distill_into
from tasks.keep import keep_classifier
from tasks.measure import costs, host
from tasks.params import Params, load
from tasks.prune import PruneParams, prune
from tasks.pruners.magnitude import Magnitude
from tasks.quantize import QuantizeParams, quantize
from tasks.quantizers.static_int8 import StaticInt8
from tasks.refs import ModelRef
from tasks.rows import Rows
from tasks.settings import Settings
from tasks.stage import Run, Work, stage
from tasks.statistics import bootstrap, paired, share
from tasks.tracking import Tracking, payload_of
from tasks.versioning import PREPARED

KEEP_MACS = 0.5
CALLS = 1000
LARGEST_DROP, LARGEST_SIZE = 0.01, 0.30
TEACHER_LATENCY, TEACHER_BYTES = 10.0, 25.0


@stage("student")
def distill_again(
    work: Work, params: DistillationParams, *, shape: ModelRef, **teachers: ModelRef
) -> dict[str, float]:
    """Distills fresh weights into the shape that another network has."""
    spec, _ = work.network(shape)
    network = work.compute.place(spec.build())
    answering = [work.answering(ref) for ref in teachers.values()]
    metrics = distill_into(network, answering, work.rows, params, work.compute, work.watch)
    keep_classifier(work.folder, spec, network, work.rows)
    return metrics


@dataclass(frozen=True)
class Recovery:
    """How a pruned network learns again.

    Attributes:
        steps: Steps of it.
        control_steps: Steps of the control, which starts from fresh weights.
        learning_rate: Of both.
        views: Cached views of every row, of both.
    """

    steps: int
    control_steps: int
    learning_rate: float
    views: int

    def section(self, distill: DistillationParams, steps: int) -> DistillationParams:
        """Section `distill` with these."""
        said = {name: getattr(distill, name) for name in DistillationParams.model_fields}
        update = {"steps": steps, "learning_rate": self.learning_rate}
        changed = {"fit": distill.fit.model_copy(update=update), "views": self.views}
        return DistillationParams(**{**said, **changed})


def compress(
    run: Run, params: Params, recovery: Recovery, student: ModelRef, teacher: ModelRef
) -> dict[str, ModelRef]:
    """The models that are compared, by name."""
    again_by = recovery.section(params.distill, recovery.steps)
    section = PruneParams(method=Magnitude(keep_macs=KEEP_MACS), recovery=again_by)
    pruned = prune._run(run, section, student=student, teacher=teacher)
    edge = quantize._run(run, QuantizeParams(method=StaticInt8()), dense=pruned)
    total = recovery.section(params.distill, recovery.control_steps)
    again = distill_again._run(run, total, shape=pruned, teacher=teacher)
    return {
        "teacher": teacher,
        "student": student,
        "pruned": pruned,
        "int8": edge,
        "same shape from scratch": again,
        "same shape from scratch, int8": quantize._run(
            run, QuantizeParams(method=StaticInt8()), dense=again
        ),
    }


def measure(tracking: Tracking, rows: Rows, models: dict[str, ModelRef]) -> dict[str, Any]:
    """Accuracies, costs and marks."""
    folders = {name: payload_of(tracking.fetch(ref).folder) for name, ref in models.items()}
    test = rows.open_test()
    right = {
        name: asking(rows.modality, folder)(test).argmax(1) == test.labels
        for name, folder in folders.items()
    }
    spent = costs(rows.modality, folders, test, CALLS)
    figures: dict[str, Any] = {}
    for name, found in right.items():
        lost = bootstrap((right["student"].astype(float) - found)[None])
        accuracy = share(found)
        figures[name] = {
            "accuracy": [accuracy.value, accuracy.low, accuracy.high],
            "points_lost_against_student": [100 * x for x in (lost.value, lost.low, lost.high)],
            **spent[name].model_dump(),
        }
    int8, student, pruned, teacher = (
        figures[name] for name in ("int8", "student", "pruned", "teacher")
    )
    slowest = min(student["latency_p50_ms"], pruned["latency_p50_ms"])
    return {
        "test_rows": len(test),
        "host": host(),
        "models": figures,
        "int8_against_control": {
            "p_value": paired(right["int8"], right["same shape from scratch, int8"]).p_value,
            "points": 100
            * float(
                np.mean(right["int8"].astype(float))
                - np.mean(right["same shape from scratch, int8"])
            ),
        },
        "marks": {
            "macs_kept": pruned["macs"] / student["macs"],
            "at most 1 point lost": int8["points_lost_against_student"][0] <= 100 * LARGEST_DROP,
            "at most 30% of the bytes": int8["size_bytes"] <= LARGEST_SIZE * student["size_bytes"],
            "faster than both float files": int8["latency_p50_ms"] < slowest,
            "a tenth of the teacher's latency": teacher["latency_p50_ms"]
            >= TEACHER_LATENCY * int8["latency_p50_ms"],
            "a twenty-fifth of the teacher's bytes": teacher["size_bytes"]
            >= TEACHER_BYTES * int8["size_bytes"],
        },
    }


def main() -> None:
    """The command in the docstring."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--control-steps", type=int, default=6000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--views", type=int, default=4)
    options = parser.parse_args()
    recovery = Recovery(options.steps, options.control_steps, options.learning_rate, options.views)
    os.environ["STILLMARK_PROJECT"] = str(options.project)
    settings = Settings()
    params = load(settings.root)
    tracking = Tracking(settings.tracking_uri, settings.home)
    newest = {
        role: tracking.ref_of(tracking.versions(f"{params.project}.{role}")[0])
        for role in ("student", "teacher")
    }
    data = tracking.record_of(newest["student"].model_id, newest["student"].record).data
    run = Run(params.project, params.compute, data)
    models = compress(run, params, recovery, **newest)
    found = {
        "command": "python -m tests.benchmarks.compression PROJECT",
        "student": params.plain()["distill"],
        "recovery": asdict(recovery),
        **measure(tracking, Rows(settings.root / PREPARED), models),
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
