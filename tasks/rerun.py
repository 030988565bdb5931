"""Runs recorded stages in the code that they were recorded with, in a process of its own."""

import io
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import git
from tasks.errors import ArtifactError, SetupError

FULL = ("No space left on device", "disk is full")

# Runs in the recorded code, which knows nothing of this module.
DRIVER = """
import json, sys
from pathlib import Path
import flows
import importlib, inspect
from tasks.compute import ComputeParams
from tasks.refs import DataRef, ModelRef
from tasks.sections import parse
from tasks.settings import Settings
from tasks.stage import Run
from tasks.tracking import Tracking

job = json.loads(Path(sys.argv[1]).read_text())
settings = Settings()
tracking = Tracking(settings.tracking_uri, settings.home)
known = {name: ModelRef(**ref) for name, ref in job["known"].items()}
data = DataRef(**job["data"])


def bring(name, given):
    if name in known:
        return
    run_id = tracking.start(job["project"], given["stage"], given["key"], data)
    model_id = tracking.new_model(job["project"], run_id, given["role"], given["key"])
    tracking.store_model(model_id, Path(given["folder"]))
    fields = {field: given[field] for field in ("stage", "role", "key", "content")}
    known[name] = ModelRef(run_id=run_id, model_id=model_id, record=name, **fields)
    tracking.finish(run_id, known[name])


for step in job["steps"]:
    for name, given in step["given"].items():
        bring(name, given)
    stage = getattr(importlib.import_module("tasks." + step["module"]), step["stage"])
    hints = list(inspect.signature(stage.function, eval_str=True).parameters.values())
    section = parse(hints[1].annotation, step["parameters"], step["stage"])
    run = Run(job["project"], parse(ComputeParams, step["compute"], "compute"), data)
    inputs = {role: known[name] for role, name in step["inputs"].items()}
    known[step["record"]] = made = stage._run(run, section, **inputs)
    found = {"ref": made.model_dump(), "folder": str(tracking.fetch(made).folder)}
    Path(job["results"], step["record"]).write_text(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the code of a record is committed.

    Attributes:
        root: A git repository, or a folder in one.
        commit: The commit.
    """

    root: Path
    commit: str


def run(root: Path, job: Path, scratch: Path) -> str | None:
    """Runs a job in unpacked code, on a store of its own.

    Args:
        root: The code; beside it lies what the job says, as a log.
        job: File with what to run; see `DRIVER`.
        scratch: Folder of the store.

    Returns:
        The last line that it said, where it failed; else None.

    Raises:
        SetupError: No space was left.
    """
    log = root.with_suffix(".log")
    path = filter(None, (str(root), os.environ.get("PYTHONPATH")))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "STILLMARK_PROJECT": str(root),
        "STILLMARK_MLFLOW_URI": f"sqlite:///{scratch / 'mlflow.db'}",
        "PREFECT_HOME": str(scratch / "prefect"),
        "TMPDIR": str(scratch),
    }
    with log.open("w") as stream:
        done = subprocess.run(  # noqa: S603 - our own words only
            [sys.executable, "-c", DRIVER, str(job)],
            cwd=root,
            env=environment,
            stdout=stream,
            stderr=stream,
            check=False,
        )
    if not done.returncode:
        return None
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    if any(word in line for line in said for word in FULL):
        raise full(scratch)
    return said[-1] if said else "no word"


def full(scratch: Path) -> SetupError:
    """What is said where no space is left."""
    return SetupError(
        f"no space is left for {scratch}; free some, or replay in another folder; nothing else was "
        "touched"
    )


def compute_of(environment: dict[str, Any]) -> dict[str, Any]:
    """Section `compute` that asks for what a record says it ran on."""
    plain = {name: environment[name] for name in ("seed", "threads", "precision")}
    return {**plain, "device": "cpu" if environment["device"] == "cpu" else "cuda"}


def unpack(source: Source, root: Path) -> None:
    """Unpacks a commit; the repository and its working tree stay as they are."""
    root.mkdir()
    prefix = git.output(source.root, ("rev-parse", "--show-prefix")).decode().strip()
    packed = git.output(source.root, ("archive", "--format=tar", f"{source.commit}:{prefix}"))
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(root, filter="data")


def module_of(root: Path, stage: str) -> str:
    """The module of a commit that holds a stage."""
    for path in sorted((root / "tasks").glob("*.py")):
        if f"\ndef {stage}(" in path.read_text(encoding="utf-8"):
            return path.stem
    raise ArtifactError(f"the recorded code has no stage '{stage}': the record is of another chain")
