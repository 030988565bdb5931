"""Runs: who began them, what they were given, what they measured, how they ended."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
    ViewType,
)
from pydantic import ValidationError

from tasks.errors import ArtifactError
from tasks.processes import Process
from tasks.refs import DataRef, ModelRef
from tasks.tracking.store import Store, every
from tasks.tracking.tags import (
    CONTENT_TAG,
    KEY_TAG,
    OUTCOME_TAG,
    PARENT_TAG,
    PROCESS_TAG,
    REASON_TAG,
    RECORD_TAG,
    REF_TAG,
    STAGE_TAG,
)
from tasks.tracking.values import Figures, Made, moment, now_ms

DATASET = "prepared"
PARAMS_PER_CALL = 100
LONGEST_PARAM = 5000


class Runs(Store):
    """The runs of a store.

    A run is named by its id throughout: MLflow's active run belongs to a thread and scatters runs.
    """

    def __init__(self, uri: str, home: Path) -> None:
        super().__init__(uri, home)
        self._began: dict[str, int] = {}

    def start(
        self,
        project: str,
        stage: str,
        key: str | None = None,
        data: DataRef | None = None,
        parent: str | None = None,
    ) -> str:
        """Opens a run, on a data version and below another run where it has one; returns its id."""
        tags = {STAGE_TAG: stage, "mlflow.runName": stage} | ({KEY_TAG: key} if key else {})
        tags |= {PARENT_TAG: parent} if parent else {}
        tags[PROCESS_TAG] = Process.mine().model_dump_json()
        run = self.client.create_run(self.experiment(project), tags=tags)
        self._began[run.info.run_id] = run.info.start_time or 0
        if data is not None:
            self._log_data(run.info.run_id, data)
        return run.info.run_id

    def _log_data(self, run_id: str, data: DataRef) -> None:
        dataset = Dataset(
            name=DATASET,
            digest=data.prepared,
            source_type="dvc",
            source=json.dumps({"raw": data.raw, "manifest": data.manifest}),
        )
        self.client.log_inputs(run_id, [DatasetInput(dataset, [])])

    def log_params(self, run_id: str, params: dict[str, Any]) -> None:
        """Logs a parameter tree under dotted names."""
        flat = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in _flatten(params)]
        for at in range(0, len(flat), PARAMS_PER_CALL):
            self.client.log_batch(run_id, params=flat[at : at + PARAMS_PER_CALL])

    def log_metrics(
        self,
        run_id: str,
        metrics: dict[str, float],
        *,
        step: int = 0,
        model: ModelRef | None = None,
        data: DataRef | None = None,
    ) -> None:
        """Logs figures on a run and, where given, on a model and a data version."""
        now = now_ms()
        about = {"model_id": model.model_id} if model else {}
        if data:
            about |= {"dataset_name": DATASET, "dataset_digest": data.prepared}
        batch = [Metric(name, value, now, step, **about) for name, value in metrics.items()]
        self.client.log_batch(run_id, metrics=batch)

    def send(self, figures: Figures) -> None:
        """Logs figures of a step, with the time at which they were measured."""
        batch = [
            Metric(name, value, figures.time_ms, figures.step)
            for name, value in figures.metrics.items()
        ]
        self.client.log_batch(figures.run_id, metrics=batch)

    def note(self, run_id: str, tags: dict[str, str]) -> None:
        """Adds tags to a run."""
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])

    def finish(self, run_id: str, ref: ModelRef) -> None:
        """Ends a run whose results are complete: from here on it is found by its key."""
        tags = {REF_TAG: ref.model_dump_json(), RECORD_TAG: ref.record, CONTENT_TAG: ref.content}
        self.client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        self._terminate(run_id, "FINISHED")

    def end(self, run_id: str) -> None:
        """Ends a run that is no stage's, and so is never found by a key."""
        self._terminate(run_id, "FINISHED")

    def fail(self, run_id: str, reason: str, status: str = "FAILED") -> None:
        """Ends a run that did not finish, with the reason; `KILLED` where it was ended."""
        self.client.set_tag(run_id, REASON_TAG, reason[:LONGEST_PARAM])
        self._terminate(run_id, status)

    def _terminate(self, run_id: str, status: str) -> None:
        """Ends a run, never before it began: somebody may have set the clock back meanwhile."""
        ended = max(now_ms(), self._began.pop(run_id, 0))
        self.client.set_terminated(run_id, status, ended)

    def unended(self, project: str) -> list[tuple[Run, Process]]:
        """Runs of a project that have not ended, and the process that each was begun by.

        Those that do not say so, which Stillmark did not begin, are left out.
        """
        experiment = self.client.get_experiment_by_name(project)
        found: list[tuple[Run, Process]] = []
        wanted = "attributes.status = 'RUNNING'"
        ids = [experiment.experiment_id] if experiment else []
        for run in every(self.client.search_runs, ids, wanted) if ids else ():
            with suppress(ValidationError):
                text = run.data.tags.get(PROCESS_TAG, "")
                found.append((run, Process.model_validate_json(text)))
        return found

    def bury(self, run: Run, reason: str) -> None:
        """Ends a run whose process died, and marks the models that it had begun as failed."""
        run_id = run.info.run_id
        wanted = f"source_run_id = '{run_id}'"
        for model in self.client.search_logged_models([run.info.experiment_id], wanted):
            if model.status == LoggedModelStatus.PENDING:
                self.client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)
        self._began[run_id] = run.info.start_time or 0
        self.client.set_tag(run_id, OUTCOME_TAG, "killed")
        self.fail(run_id, reason, "KILLED")

    def runs(self, project: str) -> Iterator[Run]:
        """Every run of a project, deleted ones too, oldest first."""
        experiment = self.client.get_experiment_by_name(project)
        if experiment is not None:
            yield from every(
                self.client.search_runs,
                [experiment.experiment_id],
                run_view_type=ViewType.ALL,
                order_by=["attributes.start_time ASC"],
            )

    def last_runs(self, project: str, count: int, wanted: str = "") -> list[Run]:
        """The newest runs of a project, or those of them that MLflow's filter lets pass."""
        experiment = self.client.get_experiment_by_name(project)
        if experiment is None:
            return []
        return list(
            self.client.search_runs(
                [experiment.experiment_id],
                wanted,
                order_by=["attributes.start_time DESC"],
                max_results=count,
            )
        )

    def finished(self, since_ms: int = 0) -> Iterator[Run]:
        """Finished runs of all projects, deleted ones too.

        Args:
            since_ms: Only those that ended then or later, in milliseconds since 1970.
        """
        wanted = f"attributes.status = 'FINISHED' and attributes.end_time >= {since_ms}"
        for experiment in every(self.client.search_experiments, view_type=ViewType.ALL):
            yield from every(
                self.client.search_runs,
                [experiment.experiment_id],
                wanted,
                run_view_type=ViewType.ALL,
                # A run that ends meanwhile moves no later one to a page that was read.
                order_by=["attributes.start_time ASC"],
            )

    def made(self, run_id: str) -> Made:
        """When a finished run began and ended.

        Raises:
            ArtifactError: The run is gone, or has not ended.
        """
        info = self.about_run(run_id).info
        if info.start_time is None or info.end_time is None:
            raise ArtifactError(f"run {run_id} is {info.status}, expected one that has ended")
        ended = max(info.start_time, info.end_time)  # written by whoever, by whatever clock
        return Made(run_id, moment(info.start_time), moment(ended))

    def maker(self, model_id: str) -> Made:
        """The run that made a model.

        Raises:
            ArtifactError: The model or the run is gone.
        """
        return self.made(str(self.about_model(model_id).source_run_id))


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{path}.")
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield from _flatten({str(at): item for at, item in enumerate(value)}, f"{path}.")
        else:
            yield path, value
