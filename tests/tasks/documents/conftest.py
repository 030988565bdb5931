"""A chain made once, without training: teacher, student, edge, control, report and promotion."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tasks import documents
from tasks.evaluate import REPORT_FILE, Evaluation, Measured
from tasks.gates.budget import Budget
from tasks.ledger import Ledger
from tasks.lineage.digests import digest_of_file, digest_of_files, digests_of_folder
from tasks.membership import Attack, Membership
from tasks.params import load
from tasks.promote import PromoteParams, promote
from tasks.refs import DataRef, ModelRef, VersionRef
from tasks.sections import Section
from tasks.settings import Settings
from tasks.stage import Run, stage
from tasks.tracking import EVALUATION_TAG, Tracking
from tasks.versioning import Versions
from tests.conftest import Bench, toy_of

FIGURES = {"control": 0.25, "teacher": 0.875, "student": 0.75, "edge": 0.5}


ATTACK = Attack(auc=0.625, low=0.5, high=0.75, members=24, held_out=40)
MEMBERSHIP = Membership(labelled=ATTACK, pool=None)


class Nothing(Section):
    pass


def measured(role, accuracy):
    return Measured(
        role=role,
        accuracy=accuracy,
        low=accuracy - 0.125,
        high=accuracy + 0.125,
        parameters=None,
        macs=None,
        size_bytes=2048,
        latency_p50_ms=0.25,
        latency_p95_ms=0.5,
        membership=MEMBERSHIP if role == "edge" else None,
    )


def judge_all(work, params, **models):
    report = Evaluation(
        rows=40,
        majority_share=0.375,
        host="A <processor>, 2 cores",
        models=tuple(measured(role, FIGURES[role]) for role in models),
        gain_over_control=0.25,
        p_value=0.015625,
    )
    (work.folder / REPORT_FILE).write_text(report.model_dump_json())
    return {}


@dataclass(frozen=True)
class Story:
    """A project's store with a chain in it."""

    bench: Bench
    models: dict[str, ModelRef]
    report: ModelRef
    version: VersionRef

    @property
    def versions(self):
        return Versions(self.bench.root, self.bench.root / ".stillmark")

    @property
    def ledger(self):
        return Ledger(f"sqlite:///{self.bench.root / 'ledger.db'}")

    def gather(self, **options):
        return documents.gather(
            self.bench.tracking, self.versions, self.version, **{"ledger": self.ledger, **options}
        )


def tell(root: Path, toy) -> Story:
    """Makes the chain in a copied project, which has to be the current one."""
    prepared = root / "prepared"
    params = load(root)
    data = DataRef(
        raw="raw.dir",
        prepared="prepared.dir",
        manifest=digest_of_file(prepared / "manifest.parquet").sha256,
        content=digest_of_files(digests_of_folder(prepared)),
    )
    tracking = Tracking(f"sqlite:///{root / 'mlflow.db'}", root / ".stillmark")
    bench = Bench(root, Run(params.project, params.compute, data), params, tracking)
    teacher = toy.make(bench, "good", 1)
    student = toy.make(bench, "good", 2, teacher=teacher)
    edge = toy.make(bench, "fair", 3, dense=student, teacher=teacher)
    control = toy.make(bench, "lazy", 4)
    models = {"control": control, "teacher": teacher, "student": student, "edge": edge}
    report = stage("evaluation", is_model=False)(judge_all)._run(bench.run, Nothing(), **models)
    versions = {
        role: tracking.register(f"digits.{role}", ref, {EVALUATION_TAG: report.record})
        for role, ref in models.items()
    }
    promote.fn(bench.run, PromoteParams(gates=(Budget(size_kib=1000.0),)), versions["edge"])
    return Story(bench, models, report, versions["edge"])


@pytest.fixture(scope="session")
def story(bench_template, linear, tmp_path_factory):
    """Read only, as all tests share it."""
    root = tmp_path_factory.mktemp("documents") / "project"
    shutil.copytree(bench_template, root, ignore=shutil.ignore_patterns("data"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILLMARK_PROJECT", str(root))
        assert Settings().root == root
        return tell(root, toy_of(linear))


@pytest.fixture(scope="session")
def chain(story):
    return story.gather()


@pytest.fixture
def own(story, tmp_path, monkeypatch):
    """A copy of the story's project, to be damaged: the store's addresses lead to the copy."""
    root = tmp_path / "project"
    shutil.copytree(story.bench.root, root)
    database = root / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
        ):
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)",  # noqa: S608 - as above
                (str(story.bench.root), str(root)),
            )
    monkeypatch.setenv("STILLMARK_PROJECT", str(root))
    tracking = Tracking(f"sqlite:///{database}", root / ".stillmark")
    bench = Bench(root, story.bench.run, story.bench.params, tracking)
    return Story(bench, story.models, story.report, story.version)
