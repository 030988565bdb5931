"""The one wrapper round every stage: key, reuse, run, record, checkpoint place, progress.

A stage is a function of (its section of params.yaml, references). It writes files into a folder and
returns metrics; everything else happens here, once.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks import estimators, networks
from tasks.budget import Redraw
from tasks.compute import Compute, ComputeParams
from tasks.distillation import Answering, NetworkAnswers, StoredAnswers
from tasks.errors import ArtifactError
from tasks.exporters import MODEL_FILE
from tasks.fit import Watch
from tasks.full_disk import clear_when_full
from tasks.interruption import name_of
from tasks.lineage import origin
from tasks.lineage.digests import digest_of_files, digest_of_value, digests_of_folder
from tasks.lineage.record import Parent, Record
from tasks.networks import Classifier, Spec
from tasks.outbox import Outbox
from tasks.progress import StageProgress
from tasks.refs import DataRef, ModelRef
from tasks.rows import Rows
from tasks.sections import Section
from tasks.settings import Settings
from tasks.time_limit import limited
from tasks.tracking import PAYLOAD, Figures, Tracking, payload_of, wrap
from tasks.transience import RETRIES
from tasks.versioning import PREPARED

P = TypeVar("P", bound=Section)
Q = ParamSpec("Q")

log = logging.getLogger("stillmark")


@dataclass(frozen=True)
class Run:
    """What all stages of one run share; small and plain, so that it can be sent anywhere.

    Attributes:
        project: Name under which models are registered.
        compute: Section `compute` of params.yaml.
        data: The version of the data.
        redraw: Shows other labels than the data version does; None takes those.
        journal: Id of the retraining's own run in MLflow, below which its stages' runs are shown.
    """

    project: str
    compute: ComputeParams
    data: DataRef
    redraw: Redraw | None = None
    journal: str | None = None


@dataclass(frozen=True)
class Work:
    """What a stage has at hand while it runs.

    Attributes:
        rows: The prepared rows.
        compute: Device, precision and seed, settled for this machine.
        folder: Files written here become the stored model or report.
        watch: Progress and checkpoints for `fit`.
    """

    rows: Rows
    compute: Compute
    folder: Path
    watch: Watch
    tracking: Tracking

    def files(self, ref: ModelRef) -> Path:
        """Folder with the files that an earlier stage wrote, hashed again."""
        return payload_of(self.tracking.fetch(ref).folder)

    def network(self, ref: ModelRef) -> tuple[Spec, Classifier]:
        """An earlier stage's network, in evaluation mode, on the device."""
        spec, network = networks.load(self.files(ref))
        return spec, self.compute.place(network)

    def answering(self, ref: ModelRef) -> Answering:
        """A teacher, ready to be asked about training rows: a network, or an estimator."""
        folder = self.files(ref)
        if estimators.is_stored(folder):
            said = torch.from_numpy(estimators.answers(folder))
            return StoredAnswers(said.to(self.compute.device))
        return NetworkAnswers(self.network(ref)[1])

    def fresh(
        self, network: networks.Network, outputs: int | None = None
    ) -> tuple[Spec, Classifier]:
        """A new network for these rows; `outputs` 0 makes a body alone, None a classifier."""
        count = len(self.rows.classes) if outputs is None else outputs
        spec = Spec(network=network, shape=self.rows.encoding.input_shape, outputs=count)
        return spec, self.compute.place(spec.build())


class Stage(Generic[P]):
    """A stage of the chain: call `run` to have its result, `find` to see whether it is there."""

    def __init__(
        self,
        function: Callable[Concatenate[Work, P, ...], dict[str, float]],
        role: str,
        *,
        is_model: bool,
    ) -> None:
        self.function, self.role, self.is_model = function, role, is_model
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self.run = task(
            name=self.name,
            description=(function.__doc__ or "").partition("\n")[0],
            task_run_name=self.name,
            cache_policy=NO_CACHE,
            persist_result=False,
            **RETRIES,
        )(self._run)

    def key(self, run: Run, section: P, inputs: dict[str, ModelRef]) -> str:
        """sha256 over all that the result follows from; equal keys mean an equal result."""
        return digest_of_value(
            {
                "stage": self.name,
                "code": origin.code().digest,
                "parameters": section.plain(),
                "data": run.data.content,
                **({} if run.redraw is None else {"redraw": run.redraw.plain()}),
                "inputs": {name: ref.content for name, ref in inputs.items()},
                "environment": _environment(Compute.resolve(run.compute)),
            }
        )

    def find(self, tracking: Tracking, run: Run, section: P, **inputs: ModelRef) -> ModelRef | None:
        """The finished result for these inputs, where its files still match their digests."""
        stored = tracking.find(run.project, self.key(run, section, inputs))
        return stored.ref if stored else None

    def _run(self, run: Run, section: P, **inputs: ModelRef) -> ModelRef:
        settings = Settings()
        tracking = Tracking(settings.tracking_uri, settings.home)
        found = self.find(tracking, run, section, **inputs)
        with StageProgress(self.name, reused=found is not None) as progress:
            return found or _Execution(self, settings, tracking, run, section, inputs).make(
                progress
            )


@dataclass(frozen=True)
class _Execution(Generic[P]):
    """One execution of a stage, from an open MLflow run to a stored result."""

    stage: Stage[P]
    settings: Settings
    tracking: Tracking
    run: Run
    section: P
    inputs: dict[str, ModelRef]

    @cached_property
    def compute(self) -> Compute:
        return Compute.resolve(self.run.compute)

    @cached_property
    def key(self) -> str:
        return self.stage.key(self.run, self.section, self.inputs)

    @property
    def checkpoint(self) -> Path:
        return self.settings.home / "checkpoints" / f"{self.key}.pt"

    def make(self, progress: StageProgress) -> ModelRef:
        """Runs the stage's function; whatever stops it ends the MLflow run with the reason."""
        self.compute.start()
        run_id = self.tracking.start(
            self.run.project, self.stage.name, self.key, self.run.data, self.run.journal
        )
        name, minutes = self.stage.name, self.run.compute.time_limit_minutes
        full = clear_when_full(f"the result of {name}", self.settings.home)
        try:
            with limited(minutes, f"stage {name}"), full:
                ref = self._result(run_id, progress)
                self.tracking.finish(run_id, ref)
        except BaseException as error:
            self._give_up(run_id, error)
            raise
        for used in self.checkpoint.parent.glob(f"{self.key}*.pt"):
            used.unlink()
        return ref

    def _result(self, run_id: str, progress: StageProgress) -> ModelRef:
        """Everything but the run's end."""
        parameters = {self.stage.name: self.section.plain(), "compute": self.compute.describe()}
        self.tracking.log_params(run_id, parameters)
        with tempfile.TemporaryDirectory() as scratch:
            with Outbox(self.tracking.send) as figures:
                work = self._work(Path(scratch) / PAYLOAD, run_id, progress, figures)
                metrics = self.stage.function(work, self.section, **self.inputs)
            ref = self._store(work, metrics, run_id)
        model = ref if self.stage.is_model else None
        self.tracking.log_metrics(run_id, metrics, model=model, data=self.run.data)
        return ref

    def _give_up(self, run_id: str, error: BaseException) -> None:
        """Ends the MLflow run with the reason; what stopped the stage stays the error."""
        by_signal = name_of(error)
        status = "FAILED" if by_signal is None else "KILLED"
        reason = f"ended by {by_signal}" if by_signal else f"{type(error).__name__}: {error}"
        try:
            self.tracking.fail(run_id, reason, status)
        except Exception as trouble:  # noqa: BLE001 - whatever MLflow or its database raises
            log.warning(
                "MLflow cannot be told that %s ended (%s): the next start does",
                self.stage.name,
                trouble,
            )

    def _work(
        self, folder: Path, run_id: str, progress: StageProgress, figures: Outbox[Figures]
    ) -> Work:
        def report(at: int, steps: int, metrics: dict[str, float]) -> None:
            progress(at, steps, metrics)
            if metrics:
                figures.put(Figures.now(run_id, at, metrics))

        folder.mkdir()
        rows = _rows(self.settings, self.run)
        watch = Watch(report, self.checkpoint, self.settings.checkpoint_seconds)
        return Work(rows, self.compute, folder, watch, self.tracking)

    def _store(self, work: Work, metrics: dict[str, float], run_id: str) -> ModelRef:
        """Writes the record beside the files and uploads both; nothing counts before that."""
        folder, stored = work.folder, work.folder.with_name("stored")
        content = digest_of_files(digests_of_folder(folder))
        if (folder / MODEL_FILE).is_file():
            requirements = work.rows.modality.requirements
            wrap(folder, work.rows.modality.runtime, stored, content, requirements)
        else:
            shutil.copytree(folder, stored / PAYLOAD)
        record = self._record(content, stored, metrics)
        record.write(stored)
        model_id = None
        if self.stage.is_model:
            role = self.stage.role
            model_id = self.tracking.new_model(self.run.project, run_id, role, self.key)
            self.tracking.store_model(model_id, stored)
        else:
            self.tracking.store_report(run_id, stored)
        return ModelRef(
            stage=self.stage.name,
            role=self.stage.role,
            key=self.key,
            run_id=run_id,
            model_id=model_id,
            record=record.digest,
            content=record.content,
        )

    def _record(self, content: str, stored: Path, metrics: dict[str, float]) -> Record:
        return Record(
            stage=self.stage.name,
            role=self.stage.role,
            key=self.key,
            data=self.run.data,
            code=origin.code(),
            parameters=self.section.plain(),
            environment=_environment(self.compute),
            parents=tuple(
                Parent(role=name, record=ref.record, model_id=ref.model_id)
                for name, ref in self.inputs.items()
            ),
            files=digests_of_folder(stored),
            content=content,
            metrics=metrics,
        )


def stage(
    role: str, *, is_model: bool = True
) -> Callable[[Callable[Concatenate[Work, P, ...], dict[str, float]]], Stage[P]]:
    """Makes a function a stage.

    Args:
        role: What its result is in the chain, for example `teacher`; models are registered as
            `<project>.<role>`.
        is_model: False for a stage whose files are a report.
    """

    def wrapped(function: Callable[Concatenate[Work, P, ...], dict[str, float]]) -> Stage[P]:
        return Stage(function, role, is_model=is_model)

    return wrapped


def _environment(compute: Compute) -> dict[str, Any]:
    return {**compute.describe(), "packages": origin.packages()}


def _rows(settings: Settings, run: Run) -> Rows:
    folder = settings.root / PREPARED
    found = digest_of_files(digests_of_folder(folder))
    if found != run.data.content:
        raise ArtifactError(
            f"{folder} has changed under the run ({found}, expected {run.data.content}); "
            "start it again"
        )
    return Rows(folder, run.redraw)
