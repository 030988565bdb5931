"""Many scheduled retrainings with growing data and kills, and what is left of them.

    python -m tests.soak --cycles 50 --out tests/benchmarks/results/soak.json

Beside a running `stillmark up`, each cycle adds rows to `data/` (or none), then lets the triggers
look and retrain (`stillmark watch --run`). Some of these commands are killed with SIGKILL at a
random moment and started again until one ends well. Garbage is collected now and then. In the end:

- no process, lock or run is left behind, and the servers hold no more files than at the start;
- ledger, registry, lineage index and stored bytes agree (`history --check --recheck`, `verify`);
- what `stillmark gc` cannot explain has not grown.

Stages take a few steps each: what is tested is everything around them.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from filelock import FileLock, Timeout
from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import REPOSITORY, Project, draw_digits, free_port, settle, small

CLASSES = 3
MOST_NEW_ROWS = 8
KILLED_SHARE = 0.4
LONGEST_SECONDS = 60.0
TRIES = 6
BUSY = 2  # exit code of a command that could not begin
WARNED = 1  # of a look in which a trigger could not answer
COLLECT_EVERY = 10


@dataclass
class Soak:
    """A project under stress.

    Attributes:
        project: The project.
        chance: What all that is random follows from.
        kills: Commands that were killed.
        gave_way: Commands that found a retraining of the schedule going on.
        outcomes: Of all cycles, in order.
        said_last: What came of the last retraining, in words.
    """

    project: Project
    chance: random.Random
    kills: int = 0
    gave_way: int = 0
    outcomes: list[str] = field(default_factory=list)
    said_last: str = ""

    @classmethod
    def at(cls, root: Path, seed: int) -> "Soak":
        """A new project of tiny stages, with the triggers that a growing folder needs."""
        root.mkdir(exist_ok=True)
        for name in ("flows", "tasks"):
            shutil.copytree(
                REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in ("dvc.yaml", ".dvcignore", ".gitignore", "pyproject.toml"):
            shutil.copy(REPOSITORY / name, root)
        params = tiny(small(yaml.safe_load((REPOSITORY / "params.yaml").read_text())))
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        draw_digits(root / "data")
        project = Project(root)
        settle(project)
        return cls(project, random.Random(seed))

    def cycle(self) -> str:
        """Grows the data, retrains through kills, and collects garbage now and then."""
        self.grow(self.chance.randrange(MOST_NEW_ROWS + 1))
        outcome = self.retrain()
        self.outcomes.append(outcome)
        if len(self.outcomes) % COLLECT_EVERY == 0:
            self.said("gc")
        return outcome

    def grow(self, count: int) -> None:
        """Adds real digits with noise, so that no two rows are the same; a third are labelled."""
        digits = load_digits()
        pool = np.flatnonzero(digits.target < CLASSES)
        for _ in range(count):
            at = self.chance.choice(pool.tolist())
            noise = np.random.default_rng(self.chance.randrange(2**32)).normal(0, 8, (8, 8))
            pixels = np.clip(digits.images[at] * 15.9 + noise, 0, 255).astype(np.uint8)
            labelled = self.chance.random() < 1 / 3
            place = (
                self.project.root / "data" / (str(digits.target[at]) if labelled else "unlabelled")
            )
            Image.fromarray(pixels).save(place / f"{self.chance.randrange(2**60):015x}.png")

    def retrain(self) -> str:
        """Lets the triggers look, and what they start end, however often it is killed."""
        for _ in range(TRIES):
            killed_after = None
            if self.chance.random() < KILLED_SHARE:
                killed_after = self.chance.uniform(0, LONGEST_SECONDS)
            code, out, err = self.command("watch", "--run", "--json", killed_after=killed_after)
            if code == 0 or (code == WARNED and self.warned_of_deaths(out)):
                ran = json.loads(out)["outcome"]
                self.said_last = ran["sentence"] if ran else ""
                return ran["outcome"] if ran else "nothing"
            if code == BUSY and "another run of" in err:  # the schedule's own watch was first
                self.gave_way += 1
                with FileLock(self.project.root / ".stillmark" / "retrain.lock", timeout=600):
                    continue
            if code != -signal.SIGKILL:
                raise AssertionError(f"watch --run ended with {code}: {err}{out}")
            self.kills += 1
        raise AssertionError(f"it did not end well {TRIES} times in a row")

    def warned_of_deaths(self, out: str) -> bool:
        """Whether the one trigger that cannot say yes or no is about retrainings that were killed.

        After the third in a row it leaves the next one to a person, or to another trigger.
        """
        said = json.loads(out)
        failed = {one["trigger"] for one in said["answers"] if one["failed"]}
        if failed == {"unfinished"} and said["outcome"] is None:
            self.said("retrain")
        return failed == {"unfinished"}

    def command(self, *words: str, killed_after: float | None = None) -> tuple[int, str, str]:
        """A command of its own process group; exit code, standard output and error."""
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *words],
            cwd=self.project.root,
            env=self.project.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=killed_after)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        return process.returncode, out, err

    def said(self, *words: str) -> Any:
        """What a command prints as JSON.

        Raises:
            AssertionError: It failed.
        """
        code, out, err = self.command(*words, "--json")
        if code:
            raise AssertionError(f"stillmark {' '.join(words)} ended with {code}: {err}{out}")
        return json.loads(out)

    def left(self) -> Iterator[str]:
        """What should not be there when nothing runs, one sentence each."""
        for process in at_work_in(self.project.root):
            yield f"process {process.pid} is left: {' '.join(process.cmdline())}"
        for path in sorted((self.project.root / ".stillmark").rglob("*.lock")):
            try:
                FileLock(path).acquire(timeout=0).lock.release()
            except Timeout:
                yield f"{path.name} is held"
        yield from self._left_in_databases()

    def _left_in_databases(self) -> Iterator[str]:
        queries = {
            "mlflow.db": "SELECT run_uuid FROM runs WHERE status = 'RUNNING'",
            ".stillmark/prefect/prefect.db": (
                "SELECT id FROM flow_run WHERE state_type IN ('RUNNING', 'PENDING')"
            ),
        }
        for name, query in queries.items():
            path = self.project.root / name
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as found:
                for (run,) in found.execute(query):
                    yield f"{name}: run {run} is left running"

    def disagreements(self) -> Iterator[str]:
        """Where ledger, registry, index and stored bytes do not say the same."""
        for words in (
            ("history", "digits.edge", "--check", "--recheck"),
            ("verify", "digits.edge"),
            ("trace", "digits.edge"),
        ):
            code, out, err = self.command(*words)
            if code:
                yield f"stillmark {' '.join(words)}: {err}{out}"


def tiny(tree: dict[str, Any]) -> dict[str, Any]:
    """Few steps, fewest for the control, and triggers for new data and code."""
    for section, steps in (("distill", 150), ("supervise", 1)):
        tree[section]["fit"]["steps"] = steps
    tree["teach"][0]["fit"]["steps"] = 80
    tree["prune"]["recovery"]["fit"]["steps"] = 80
    tree["evaluate"]["latency_calls"] = 10
    tree["schedule"] = {"triggers": [{"name": "data"}, {"name": "code"}]}
    tree["gc"] = {"keep_last": 2, "keep_days": 0.0}
    return tree


def at_work_in(folder: Path) -> list[psutil.Process]:
    """Processes that run in a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd() == str(folder):
                found.append(process)
    return found


def size_bytes(folder: Path) -> int:
    """Of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def served(project: Project) -> Iterator[psutil.Process]:
    """`stillmark up` beside the cycles, on free ports; ended by Ctrl-C."""
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "up", "--json", *ports],
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        if not process.stdout.readline():
            raise AssertionError("stillmark up did not come up")
        yield psutil.Process(process.pid)
        process.send_signal(signal.SIGINT)
        process.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def open_files(process: psutil.Process) -> int:
    """Of a process and all below it."""
    return sum(one.num_fds() for one in [process, *process.children(recursive=True)])


def soak(root: Path, cycles: int, seed: int) -> dict[str, Any]:
    """All of it.

    Returns:
        Figures and what was left or disagreed, as plain data.
    """
    found = Soak.at(root, seed)
    files: list[int] = []
    sizes: list[int] = []
    started = time.monotonic()
    with served(found.project) as services:
        for at in range(cycles):
            outcome = found.cycle()
            files.append(open_files(services))
            sizes.append(size_bytes(root / ".stillmark"))
            sys.stderr.write(f"{at + 1}/{cycles}  {outcome}  {files[-1]} files open\n")
    found.said("gc")
    return {
        "cycles": cycles,
        "seed": seed,
        "kills": found.kills,
        "gave_way": found.gave_way,
        "outcomes": {name: found.outcomes.count(name) for name in sorted(set(found.outcomes))},
        "open_files": files,
        "size_bytes": sizes,
        "size_bytes_after_gc": size_bytes(root / ".stillmark"),
        "left_for_gc_bytes": found.said("gc", "--dry-run")["bytes"],
        "left": list(found.left()),
        "disagreements": list(found.disagreements()),
        "minutes": (time.monotonic() - started) / 60,
    }


def main() -> None:
    """Runs it, writes the report, and fails where anything was left or disagreed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report = soak(Path(scratch), asked.cycles, asked.seed)
    asked.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    problems = [*report["left"], *report["disagreements"]]
    sys.exit("\n".join(problems) if problems else 0)


if __name__ == "__main__":
    main()
