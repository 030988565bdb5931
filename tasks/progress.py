"""Live progress of one stage: a bar in the terminal, a progress artifact in Prefect."""

import logging
import sys
import time
from types import TracebackType
from typing import Self
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tasks.outbox import Outbox

ARTIFACT_SECONDS = 2.0
LINE_SECONDS = 5.0
LAST_SECONDS, HASTY_SECONDS = 5.0, 1.0

log = logging.getLogger("stillmark")


class StageProgress:
    """Shows a stage's steps, metrics and time left; used as a context.

    Args:
        stage: The stage's name.
        reused: Whether an earlier result is taken, so that nothing will run.
    """

    def __init__(self, stage: str, *, reused: bool = False) -> None:
        self.stage, self.reused = stage, reused
        console = Console(file=sys.stderr)
        self.is_terminal = console.is_terminal
        self.bar = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not self.is_terminal,
        )
        self.line = self.bar.add_task(stage, total=None, metrics="")
        self.artifact: UUID | None = None
        self.page: Outbox[float] | None = None
        self.warned = False
        self.started = self.sent = self.printed = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        if TaskRunContext.get() is not None:
            self.page = Outbox(self._show, waits=())
            self.page.put(0.0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._send(100.0)
        if self.page is not None:
            self.page.close(LAST_SECONDS if kind is None else HASTY_SECONDS)
        if kind is not None:
            self.bar.stop()
            return
        steps = self.bar.tasks[0].total or 1
        shown = "reused" if self.reused else self.bar.tasks[0].fields["metrics"]
        self.bar.update(self.line, total=steps, completed=steps, metrics=shown)
        self.bar.stop()
        if not self.is_terminal:
            took = f"done in {time.monotonic() - self.started:.1f} s"
            self._print("reused" if self.reused else took)

    def __call__(self, at: int, steps: int, metrics: dict[str, float]) -> None:
        """Shows that `at` of `steps` are done."""
        shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self.bar.update(self.line, total=steps, completed=at, metrics=shown)
        now = time.monotonic()
        if now - self.sent >= ARTIFACT_SECONDS:
            self.sent = now
            self._send(100.0 * at / max(1, steps))
        if not self.is_terminal and now - self.printed >= LINE_SECONDS:
            self.printed = now
            left = (now - self.started) / max(1, at) * (steps - at)
            self._print(f"{at}/{steps}  {shown}  {left:.0f} s left")

    def _send(self, percent: float) -> None:
        if self.page is not None:
            self.page.put(percent)

    def _show(self, percent: float) -> None:
        """On a thread of its own: Prefect may be away, and no stage waits or fails for that."""
        try:
            if self.artifact is not None:
                update_progress_artifact(self.artifact, progress=percent)
                return
            key = f"progress-{self.stage}"
            found = create_progress_artifact(percent, key=key, description=self.stage)
            self.artifact = found if isinstance(found, UUID) else None
        except Exception as error:  # noqa: BLE001 - whatever the client raises
            if not self.warned:
                log.warning("Prefect's page does not show how %s goes: %s", self.stage, error)
            self.warned = True

    def _print(self, text: str) -> None:
        sys.stderr.write(f"{self.stage:<9} {text}\n")
        sys.stderr.flush()
