"""Throughput of `verify` against `sha256sum` on the same files.

    python -m tests.benchmarks.verify --out tests/benchmarks/results/verify.json

A made lineage of an edge model and its teacher, whose weights are random bytes, is registered in a
fresh store. Both read the same stored files from the page cache, in turns: `verify` with all that
it does beside hashing (record, tags, ledger, code), `sha256sum` in one call. The throughputs are
those of the best rounds, as other processes can only slow a round down. Their ratio has to reach
the mark.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.compute import ComputeParams
from tasks.ledger import Ledger
from tasks.lineage import origin
from tasks.lineage.digests import canonical, digest_of_file, digest_of_files, digests_of_folder
from tasks.lineage.record import Parent, Record
from tasks.refs import DataRef, ModelRef, VersionRef
from tasks.succession import Succession
from tasks.tracking import PAYLOAD, Tracking
from tasks.verify import Report, verify
from tasks.versioning import Places, Versions, md5_of_file, place_of
from tests.benchmarks.throughput import host

PROJECT, ROUNDS, MARK = "digits", 5, 0.70
MEGABYTES, FILES = 400, 4


@dataclass(frozen=True)
class Lineage:
    """A registered edge model and where its lineage lies."""

    tracking: Tracking
    versions: Versions
    succession: Succession
    version: VersionRef

    @property
    def files(self) -> list[Path]:
        """Every stored file of the two models."""
        record = self.tracking.record_of(self.version.model.model_id, self.version.model.record)
        models = [str(self.version.model.model_id), *(str(one.model_id) for one in record.parents)]
        folders = [self.tracking.stored_at(one) for one in models]
        return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]

    def verify(self) -> Report:
        """What is measured."""
        return verify(self.tracking, self.versions, self.succession, self.version)


@dataclass(frozen=True)
class Finding:
    """What was measured.

    Attributes:
        size_bytes: Of all files together.
        verify_seconds: Of every round.
        sha256sum_seconds: Of every round.
    """

    size_bytes: int
    verify_seconds: list[float]
    sha256sum_seconds: list[float]

    @property
    def ratio(self) -> float:
        """Throughput of `verify` by that of `sha256sum`."""
        return min(self.sha256sum_seconds) / min(self.verify_seconds)

    @property
    def met(self) -> bool:
        """Whether the mark is met."""
        return self.ratio >= MARK

    def plain(self) -> dict[str, Any]:
        """As it enters the results file."""
        size = self.size_bytes / 1e6
        return {
            "megabytes": round(size, 1),
            "verify_megabytes_per_second": round(size / min(self.verify_seconds), 1),
            "sha256sum_megabytes_per_second": round(size / min(self.sha256sum_seconds), 1),
            "verify_seconds": [round(one, 3) for one in self.verify_seconds],
            "sha256sum_seconds": [round(one, 3) for one in self.sha256sum_seconds],
            "ratio": round(self.ratio, 3),
            "mark": MARK,
            "met": self.met,
        }


def made_lineage(root: Path, megabytes: float = MEGABYTES, files: int = FILES) -> Lineage:
    """An edge model and its teacher, each with half of the bytes."""
    cache = root / "cache"
    data = _data(root, cache)
    tracking = Tracking(f"sqlite:///{root / 'mlflow.db'}", root / "home")
    sizes = int(megabytes * 1e6 / 2 / files)
    teacher = _made(tracking, root, data, "teacher", [sizes] * files)
    edge = _made(tracking, root, data, "edge", [sizes] * files, teacher=teacher)
    version = tracking.register(f"{PROJECT}.edge", edge, {})
    versions = Versions(root, root / "home")
    versions.cache.places = Places(cache, None, None)
    return Lineage(
        tracking, versions, Succession(Ledger(f"sqlite:///{root / 'ledger.db'}"), tracking), version
    )


def _data(root: Path, cache: Path) -> DataRef:
    """A data version that holds one small file, kept as DVC would."""
    manifest = root / "manifest.parquet"
    manifest.write_bytes(b"no rows")
    md5 = md5_of_file(manifest)
    listing = root / "listing"
    listing.write_bytes(canonical([{"md5": md5, "relpath": manifest.name}]))
    directory = f"{md5_of_file(listing)}.dir"
    for source, name in ((manifest, md5), (listing, directory)):
        place_of(cache, name).parent.mkdir(parents=True)
        source.rename(place_of(cache, name))
    found = digest_of_file(place_of(cache, md5))
    content = digest_of_files({manifest.name: found})
    return DataRef(raw=directory, prepared=directory, manifest=found.sha256, content=content)


def _made(
    tracking: Tracking, root: Path, data: DataRef, role: str, sizes: list[int], **parents: ModelRef
) -> ModelRef:
    """A stored model of random bytes."""
    key = f"{len(role):064x}"
    folder = root / "made" / role
    (folder / PAYLOAD).mkdir(parents=True)
    random = np.random.default_rng(len(role))
    for at, size in enumerate(sizes):
        (folder / PAYLOAD / f"weights-{at}.bin").write_bytes(random.bytes(size))
    record = Record(
        stage=role,
        role=role,
        key=key,
        data=data,
        code=origin.code().model_copy(update={"commit": None, "clean": False}),
        parameters={},
        environment=ComputeParams().plain(),
        parents=tuple(
            Parent(role=name, record=ref.record, model_id=ref.model_id)
            for name, ref in parents.items()
        ),
        files=digests_of_folder(folder),
        content=digest_of_files(digests_of_folder(folder / PAYLOAD)),
        metrics={},
    )
    record.write(folder)
    run_id = tracking.start(PROJECT, role, key, data)
    model_id = tracking.new_model(PROJECT, run_id, role, key)
    tracking.store_model(model_id, folder)
    ref = ModelRef(
        stage=role,
        role=role,
        key=key,
        run_id=run_id,
        model_id=model_id,
        record=record.digest,
        content=record.content,
    )
    tracking.finish(run_id, ref)
    return ref


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measured(lineage: Lineage, rounds: int = ROUNDS) -> Finding:
    """Both in turns, after one round that fills the page cache."""
    files = lineage.files
    command = ["sha256sum", *map(str, files)]

    def reference() -> None:
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    reference()
    lineage.verify()
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(seconds(reference))
        ours.append(seconds(lineage.verify))
    return Finding(sum(path.stat().st_size for path in files), ours, theirs)


def main() -> None:
    """Measures, prints the figures and writes the results."""
    parser = argparse.ArgumentParser(description="Measures verify against sha256sum.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--megabytes", type=float, default=MEGABYTES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measured(made_lineage(Path(scratch), arguments.megabytes)).plain()
    print(json.dumps(found))
    if arguments.out:
        report = {
            "command": f"python -m tests.benchmarks.verify {shlex.join(sys.argv[1:])}".strip(),
            "host": host(),
            "cores": os.cpu_count(),
            "finding": found,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
