"""The auditor's questions as flows: each keeps its report in MLflow, and shows it on a page."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from pydantic import BaseModel

from flows.history import rechecked
from flows.naming import version_named
from flows.once import NOTED
from tasks.catalogue import Catalogue
from tasks.forget import Forgotten
from tasks.forget import forget as forget_rows
from tasks.impact import Impact
from tasks.impact import impact as impact_of
from tasks.impact import lines as impact_lines
from tasks.params import load
from tasks.replay import TOLERANCE, Replay
from tasks.replay import replay as replay_of
from tasks.settings import Settings
from tasks.succession import Succession
from tasks.trace import Lineage, svg, tree
from tasks.trace import trace as trace_of
from tasks.tracking import Tracking
from tasks.verify import Report, verify_all
from tasks.verify import verify as verify_one
from tasks.versioning import Versions

REPORT_FILE, PICTURE_FILE = "report.json", "lineage.svg"


class Audit(BaseModel):
    """What a verification found.

    Attributes:
        reports: One per version.
        evidence: Where kept evidence gives another verdict than it was promoted on.
    """

    reports: tuple[Report, ...]
    evidence: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether everything is there and is what was recorded."""
        return not self.evidence and all(report.passed for report in self.reports)

    def lines(self) -> Iterator[str]:
        """Every part of every lineage, the worst that was found of it, and what is not shown."""
        for report in self.reports:
            yield f"{report.name} version {report.version}:"
            for edge, status in report.edges.items():
                yield f"  {status:<9} {edge}"
            declared = {one.sentence: None for one in report.findings if one.status == "declared"}
            yield from (f"  declared: {sentence}" for sentence in declared)

    def problems(self) -> Iterator[str]:
        """What is missing or differs, one line each."""
        for report in self.reports:
            for one in report.problems:
                yield f"{one.edge}: {one.subject}: {one.status}: {one.sentence}"
        yield from self.evidence


@flow(name="trace", validate_parameters=False, **NOTED)
def trace(model: str) -> Lineage:
    """Where does this come from?

    Args:
        model: MODEL (its champion), MODEL@ALIAS or MODEL:VERSION.
    """
    settings = Settings()
    with Catalogue.of(settings) as catalogue:
        found = trace_of(catalogue, version_named(catalogue.tracking, model))
    _keep(settings, "trace", found.model_dump(mode="json"), {PICTURE_FILE: svg(found)})
    create_markdown_artifact(f"```\n{tree(found)}\n```", key="trace", description=model)
    return found


@flow(name="verify", validate_parameters=False, **NOTED)
def verify(model: str | None = None, public_key: str | None = None) -> Audit:
    """Is it still what was recorded?

    Args:
        model: As for `trace`; without one, every version that holds an alias or ought to.
        public_key: File with the key that each of them must have been signed with.
    """
    settings = Settings()
    succession = Succession.of(settings)
    tracking, versions = succession.tracking, Versions.of(settings)
    key = None if public_key is None else Path(public_key)
    if model is None:
        reports = verify_all(tracking, versions, succession, key=key)
    else:
        version = version_named(tracking, model)
        reports = [verify_one(tracking, versions, succession, version, key=key)]
    names = sorted({report.name for report in reports})
    evidence = tuple(line for name in names for line in rechecked(succession, name))
    found = Audit(reports=tuple(reports), evidence=evidence)
    _keep(settings, "verify", found.model_dump(mode="json"))
    create_table_artifact(_rows(found), key="verify", description=model or "every alias")
    return found


@flow(name="impact", validate_parameters=False, **NOTED)
def impact(
    row: str | None = None,
    data: str | None = None,
    code: str | None = None,
    model: str | None = None,
) -> Impact:
    """What did this touch? Exactly one of them.

    Args:
        row: Digest of a row, or a unique beginning.
        data: A file in data/, or a digest of a data version.
        code: A commit.
        model: As for `trace`.
    """
    settings = Settings()
    with Catalogue.of(settings) as catalogue:
        version = None if model is None else version_named(catalogue.tracking, model)
        found = impact_of(catalogue, row=row, data=data, code=code, model=version)
    _keep(settings, "impact", found.model_dump(mode="json"))
    text = "\n".join(impact_lines(found))
    create_markdown_artifact(f"```\n{text}\n```", key="impact", description=found.asked)
    return found


@flow(name="replay", validate_parameters=False, **NOTED)
def replay(
    model: str, scratch: str, stage: str | None = None, tolerance: float = TOLERANCE
) -> Replay:
    """Can it be made again?

    Args:
        model: As for `trace`.
        scratch: An empty folder, or one that is not there yet, to make it in.
        stage: Only this stage, from its recorded parents; the whole chain without one.
        tolerance: Largest difference of a weight where the machine differs from the recorded one.
    """
    settings = Settings()
    tracking = Tracking(settings.tracking_uri, settings.home)
    version = version_named(tracking, model)
    found = replay_of(settings, version, scratch=Path(scratch), stage=stage, tolerance=tolerance)
    _keep(settings, "replay", found.model_dump(mode="json"))
    rows = [one.model_dump(include={"role", "stage", "status", "reasons"}) for one in found.remade]
    create_table_artifact(rows, key="replay", description=model)
    return found


@flow(name="forget", validate_parameters=False, **NOTED)
def forget(rows: list[str]) -> Forgotten:
    """Makes a data version without certain rows, and says what still knows them.

    Args:
        rows: Their digests, or unique beginnings.
    """
    settings = Settings()
    found = forget_rows(settings, rows)
    _keep(settings, "forget", found.model_dump(mode="json"))
    text = "\n".join(forgotten_lines(found))
    create_markdown_artifact(f"```\n{text}\n```", key="forget", description=", ".join(found.rows))
    return found


def forgotten_lines(found: Forgotten) -> Iterator[str]:
    """What was removed, and what still knows it, for people."""
    yield f"data {found.before} → {found.after}: {len(found.files)} files removed"
    yield from (f"  {file}" for file in found.files)
    yield from (f"  {row}: not in today's data" for row in found.absent)
    if found.copies:
        yield "the bytes still lie in these files, which make old versions reproducible:"
        yield from (f"  {copy}" for copy in found.copies)
    yield from impact_lines(found.tainted)


def _rows(found: Audit) -> list[dict[str, Any]]:
    """Each part of each lineage with the worst that was found of it."""
    return [
        {"version": f"{report.name}:{report.version}", "part": edge, "status": status}
        for report in found.reports
        for edge, status in report.edges.items()
    ] + [{"version": "", "part": line, "status": "mismatch"} for line in found.evidence]


def _keep(
    settings: Settings, name: str, report: dict[str, Any], more: dict[str, str] | None = None
) -> None:
    """Leaves a report in a run of its own in MLflow."""
    tracking = Tracking(settings.tracking_uri, settings.home)
    run_id = tracking.start(load(settings.root).project, name)
    with tempfile.TemporaryDirectory() as scratch:
        text = json.dumps(report, indent=2)
        for file, content in {REPORT_FILE: text, **(more or {})}.items():
            (Path(scratch) / file).write_text(content, encoding="utf-8")
        tracking.store_report(run_id, Path(scratch))
    tracking.end(run_id)
