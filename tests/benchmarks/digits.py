"""The digits figures in README.md: five label draws and seeds through the real command.

    python -m tests.benchmarks.digits --out tests/benchmarks/results/digits.json

Each run is a project folder of its own with another `prepare.draw` and `compute.seed`. Variants:

- chain: params.yaml as it is committed.
- no_pretraining: the teacher starts from fresh weights.
- small_student: the pruned shape distilled from scratch with as many steps, and its own control.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

ROOT = Path(__file__).parents[2]
COPIED = ("flows", "tasks", "data", ".dvc", "data.dvc", "dvc.yaml", "dvc.lock", ".dvcignore")
DRAWS = range(5)
COMMAND = "python -m tests.benchmarks.digits --out tests/benchmarks/results/digits.json"

Tree = dict[str, Any]


def chain(tree: Tree) -> None:
    """The committed parameters."""


def no_pretraining(tree: Tree) -> None:
    """A teacher from scratch."""
    tree["teach"]["network"] = tree["pretrain"]["network"]


def small_student(tree: Tree) -> None:
    """The shape that pruning arrives at, distilled from scratch with as many steps."""
    small = {"name": "convnet", "widths": [8, 16, 16]}
    tree["distill"]["network"] = tree["supervise"]["network"] = small
    tree["distill"]["fit"]["steps"] = tree["supervise"]["fit"]["steps"]


VARIANTS: tuple[Callable[[Tree], None], ...] = (chain, no_pretraining, small_student)


def run(variant: Callable[[Tree], None], draw: int) -> dict[str, float]:
    """Accuracy by role of one retraining in a folder of its own, and the edge file's size."""
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, project / name)
        tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        tree["prepare"]["draw"] = tree["compute"]["seed"] = draw
        variant(tree)
        subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)  # DVC asks for one
        (project / "params.yaml").write_text(
            yaml.safe_dump(tree, sort_keys=False), encoding="utf-8"
        )
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "STILLMARK_"))
        }
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "retrain", "--json"],
            cwd=project,
            env={**clean, "PYTHONPATH": str(project)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{variant.__name__} draw {draw}: {done.stderr[-2000:]}")
        models = json.loads(done.stdout)["evaluation"]["models"]
    figures = {found["role"]: found["accuracy"] for found in models}
    edge = next(found for found in models if found["role"] == "edge")
    return {**figures, "edge_bytes": edge["size_bytes"], "edge_parameters": edge["parameters"]}


def interval(values: list[float]) -> dict[str, float]:
    """Mean and 95% t-interval over the draws."""
    mean, sem = float(np.mean(values)), float(stats.sem(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * sem
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Figures of one variant over its draws."""
    roles = [role for role in runs[0] if not role.startswith("edge_")]
    errors = [(1 - found["edge"], 1 - found["control"]) for found in runs]
    return {
        "accuracy": {role: interval([found[role] for found in runs]) for role in roles},
        "edge_errors_per_control_error": {
            "of_means": sum(edge for edge, _ in errors) / sum(control for _, control in errors),
            "by_draw": interval([edge / control for edge, control in errors]),
        },
        "runs": runs,
    }


def main() -> None:
    """Runs all variants and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"command": COMMAND, "draws": len(DRAWS)}
    for variant in VARIANTS:
        with ThreadPoolExecutor(options.jobs) as pool:
            result[variant.__name__] = summary(list(pool.map(partial(run, variant), DRAWS)))
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
