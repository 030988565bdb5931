"""A recipe through the real command, over several label draws and seeds.

Each run is a project folder of its own, with another `prepare.draw` and `compute.seed`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from tasks.estimators import Estimator
from tasks.rows import Rows

ROOT = Path(__file__).parents[2]
OWN = ("PREFECT_", "STILLMARK_", "MLFLOW_", "DVC_")

Tree = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A recipe, changed.

    Attributes:
        name: As the results call it.
        change: Changes the parameter tree in place, for a draw.
    """

    name: str
    change: Callable[[Tree, int], None]


@dataclass(frozen=True)
class Recipe:
    """What is run.

    Attributes:
        params: The parameter file.
        write_data: Fills a project's `data/`.
        variants: Each is run on every draw.
        draws: How many.
        baselines: scikit-learn models on the same labels, beside the chain.
    """

    params: Path
    write_data: Callable[[Path], None]
    variants: tuple[Variant, ...]
    draws: int
    baselines: tuple[Estimator, ...] = ()


def committed(_tree: Tree, _draw: int) -> None:
    """The parameters as they are."""


@contextmanager
def _folder(kept: Path | None, name: str) -> Iterator[Path]:
    """A folder for a project, thrown away unless it is to be kept."""
    if kept is not None:
        yield kept / name
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch) / name


def _environment(root: Path) -> dict[str, str]:
    """The command's, in a project."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    return clean | {
        "PYTHONPATH": str(root),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(root / ".stillmark" / "dvc"),
    }


def _make_project(root: Path, recipe: Recipe, tree: Tree) -> None:
    root.mkdir(parents=True)
    for name in ("flows", "tasks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, root / name)
    (root / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    (root / "data").mkdir()
    recipe.write_data(root / "data")
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        ["git", "init", "--quiet"],
        [*dvc, "init", "--quiet"],
        [*dvc, "add", "--quiet", "data"],
    ):
        subprocess.run(command, cwd=root, env=_environment(root), check=True)


@dataclass(frozen=True)
class Run:
    """One retraining.

    Attributes:
        models: Figures by role.
        minutes: Of the command, as it ran last.
        training_minutes: Of the stages that it trained, with those of the command that it went on
            from.
    """

    models: dict[str, dict[str, Any]]
    minutes: float
    training_minutes: float


def run(recipe: Recipe, variant: Variant, draw: int, kept: Path | None) -> Run:
    """One retraining through the real command.

    Args:
        recipe: What is run.
        variant: How it is changed.
        draw: Of the labels; the seed, too.
        kept: Where the project is kept, so that one that was killed goes on.
    """
    tree = yaml.safe_load(recipe.params.read_text(encoding="utf-8"))
    tree["prepare"]["draw"] = tree["compute"]["seed"] = draw
    variant.change(tree, draw)
    with _folder(kept, f"{variant.name}-{draw}") as root:
        if not root.exists():
            _make_project(root, recipe, tree)
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "retrain", "--json"],
            cwd=root,
            env=_environment(root),
            capture_output=True,
            text=True,
            check=False,
        )
        minutes = (time.monotonic() - began) / 60
        if done.returncode:
            raise RuntimeError(f"{variant.name}, draw {draw}: {done.stderr[-3000:]}")
        baselines = _ask_baselines(recipe, Rows(root / "prepared"))
    sys.stderr.write(f"{variant.name}, draw {draw}: done\n")
    said = json.loads(done.stdout)
    models = {found["role"]: found for found in said["evaluation"]["models"]}
    return Run(models | baselines, minutes, said["training_seconds"] / 60)


def _ask_baselines(recipe: Recipe, rows: Rows) -> dict[str, dict[str, Any]]:
    test = rows.open_test()
    found: dict[str, dict[str, Any]] = {}
    for method in recipe.baselines:
        said = method.logits(method.fit(rows.train, seed=0).model, test).argmax(1)
        found[f"baseline {method.plain()['name']}"] = {
            "accuracy": float((said == test.labels).mean())
        }
    return found


def interval(values: list[float]) -> dict[str, float]:
    """Mean and 95% t-interval over the draws."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return {"mean": mean}
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _accuracy(found: list[dict[str, Any]]) -> dict[str, float]:
    """Mean over the draws; of a single one, its own with the 95% interval over test rows."""
    ends = {end: found[0][end] for end in ("low", "high") if end in found[0]}
    return interval([one["accuracy"] for one in found]) | (ends if len(found) == 1 else {})


def summary(done: list[Run]) -> dict[str, Any]:
    """Figures of one variant over its draws."""
    runs = [one.models for one in done]

    def over(role: str, figure: str) -> list[float]:
        return [found[role][figure] for found in runs]

    errors = [(1 - found["edge"]["accuracy"], 1 - found["control"]["accuracy"]) for found in runs]
    result: dict[str, Any] = {
        "accuracy": {role: _accuracy([found[role] for found in runs]) for role in runs[0]},
        "minutes": [round(one.minutes, 1) for one in done],
        "training_minutes": [round(one.training_minutes, 1) for one in done],
        "edge_bytes": interval(over("edge", "size_bytes")),
        "edge_parameters": runs[0]["edge"]["parameters"],
        "edge_errors_per_control_error": sum(edge for edge, _ in errors)
        / max(sum(control for _, control in errors), 1e-9),
        "edge_gain_over_control": interval([control - edge for edge, control in errors]),
        "edge_gain_over_baselines": {
            role: interval(
                [
                    edge - other
                    for edge, other in zip(
                        over("edge", "accuracy"), over(role, "accuracy"), strict=True
                    )
                ]
            )
            for role in runs[0]
            if role.startswith("baseline")
        },
        "runs": [{role: found["accuracy"] for role, found in one.items()} for one in runs],
    }
    if runs[0]["edge"].get("zero_shot"):
        result["zero_shot"] = {
            role: {
                figure: interval([one[role]["zero_shot"][figure] for one in runs])
                for figure in runs[0][role]["zero_shot"]
            }
            for role in runs[0]
            if runs[0][role].get("zero_shot")
        }
    return result


def main(recipe: Recipe, options: argparse.Namespace) -> None:
    """Runs all variants and writes the figures, after each."""
    module = Path(sys.argv[0]).stem
    shown = f"--out tests/benchmarks/results/{options.out.name}"
    command = f"python -m tests.benchmarks.{module} {shown}"
    result: dict[str, Any] = {"command": command, "draws": recipe.draws}
    if options.only and options.out.exists():
        result = json.loads(options.out.read_text(encoding="utf-8"))
    for variant in recipe.variants:
        if options.only not in {None, variant.name}:
            continue
        with ThreadPoolExecutor(options.jobs) as pool:
            runs = pool.map(
                lambda draw: run(recipe, variant, draw, options.projects),  # noqa: B023
                range(recipe.draws),
            )
            result[variant.name] = summary(list(runs))
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def options(description: str | None, *, data: str | None = None) -> argparse.Namespace:
    """The command line that all recipes share.

    Args:
        description: What the benchmark measures.
        data: Help on `--data`, for those whose data is not in the repository.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--projects", type=Path, help="keep the projects there, and go on in them")
    parser.add_argument("--only", help="one variant alone, into results that are there")
    if data:
        parser.add_argument("--data", type=Path, required=True, help=data)
    return parser.parse_args()
