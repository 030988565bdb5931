"""Seconds of `stillmark retrain` beyond what its stages take by themselves.

    python -m tests.benchmarks.overhead --out tests/benchmarks/results/overhead.json

A project of the repository's own sample and parameters, in a folder of its own:

- empty: nothing was ever run there; MLflow's, Prefect's and the ledger's databases are made, the
  data is prepared;
- afterwards: another seed, so that every stage is trained again, in a project where all of these
  exist;
- nothing changed: the same once more; nothing is trained.

What stages take is the time of their own MLflow runs, as the journal of retrainings adds it up. The
rest is starting Python, imports, Prefect, the data version, registration and the decision. The
processor's speed is measured beside it (seconds of twenty million additions in Python), as these
seconds grow with it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.throughput import host

REPOSITORY = Path(__file__).parents[2]
OWN = ("STILLMARK_", "PREFECT_", "MLFLOW_", "DVC_")
EMPTY_SECONDS, AFTERWARDS_SECONDS, NOTHING_SECONDS = 25.0, 12.0, 15.0
ADDITIONS = 20_000_000


@dataclass(frozen=True)
class Finding:
    """One retraining.

    Attributes:
        name: In which state the project was.
        wall_seconds: From the command's start to its end.
        training_seconds: Of its stages.
        trained: Number of them.
        mark_seconds: What the rest may take.
    """

    name: str
    wall_seconds: float
    training_seconds: float
    trained: int
    mark_seconds: float

    @property
    def beyond_seconds(self) -> float:
        """What is not the stages' own."""
        return self.wall_seconds - self.training_seconds

    @property
    def met(self) -> bool:
        """Whether the mark is met."""
        return self.beyond_seconds <= self.mark_seconds

    def plain(self) -> dict[str, Any]:
        """As it is written."""
        return {**asdict(self), "beyond_seconds": self.beyond_seconds, "met": self.met}


def made(root: Path) -> None:
    """A clone of the repository's project: code, sample data, git and DVC; nothing was run."""
    caches = shutil.ignore_patterns("__pycache__")
    for name in ("flows", "tasks"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=caches)
    for name in ("params.yaml", "dvc.yaml", "dvc.lock", "data.dvc", ".dvcignore", ".gitignore"):
        shutil.copy(REPOSITORY / name, root)
    (root / ".dvc").mkdir()
    shutil.copy(REPOSITORY / ".dvc" / "config", root / ".dvc")
    shutil.copytree(REPOSITORY / ".dvc" / "sample", root / ".dvc" / "sample")
    who = ["-c", "user.name=Benchmark", "-c", "user.email=benchmark@localhost"]
    for words in (["init", "-q"], ["add", "--all"], [*who, "commit", "-qm", "A project"]):
        subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)
    pull = [sys.executable, "-m", "dvc", "pull", "--quiet", "data.dvc"]
    subprocess.run(pull, cwd=root, check=True, capture_output=True)


def retrained(root: Path, name: str, mark_seconds: float) -> Finding:
    """One call of the command, timed from outside."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    environment |= {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flows.cli", "retrain", "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, check=False)
    wall_seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr.decode())
    said = json.loads(done.stdout)
    return Finding(name, wall_seconds, said["training_seconds"], said["trained"], mark_seconds)


def measure(root: Path) -> list[Finding]:
    """All three."""
    made(root)
    findings = [retrained(root, "empty", EMPTY_SECONDS)]
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["compute"]["seed"] += 1
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    findings.append(retrained(root, "afterwards", AFTERWARDS_SECONDS))
    findings.append(retrained(root, "nothing changed", NOTHING_SECONDS))
    return findings


def additions_seconds() -> float:
    """How fast this processor runs Python."""
    started, total = time.perf_counter(), 0
    for one in range(ADDITIONS):
        total += one
    return time.perf_counter() - started


def main() -> None:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        findings = measure(Path(scratch))
    for found in findings:
        sys.stdout.write(f"{json.dumps(found.plain())}\n")
    report = {
        "host": host(),
        "additions_seconds": additions_seconds(),
        "findings": [found.plain() for found in findings],
    }
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
