"""Live progress of one stage: a bar in the terminal, a progress artifact in Prefect."""

import sys
import time
from types import TracebackType
from typing import Self
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ARTIFACT_SECONDS = 2.0
LINE_SECONDS = 5.0


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
        self.started = self.sent = self.printed = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        if TaskRunContext.get() is not None:
            found = create_progress_artifact(
                0.0, key=f"progress-{self.stage}", description=self.stage
            )
            self.artifact = found if isinstance(found, UUID) else None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.bar.stop()
            return
        self._send(100.0)
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
        if self.artifact is not None:
            update_progress_artifact(self.artifact, progress=percent)

    def _print(self, text: str) -> None:
        sys.stderr.write(f"{self.stage:<9} {text}\n")
        sys.stderr.flush()
