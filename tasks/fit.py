"""The one training loop. A stage gives it a network and a step function; it does the rest.

Mixed precision, warm-up and cosine decay, averaged weights, reports, atomic checkpoints. A loop
that was killed and started again ends with the same bits as one that was not; a signal waits for
the end of a step, and leaves a checkpoint.
"""

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tasks.compute import Compute
from tasks.errors import TrainingError
from tasks.full_disk import is_full
from tasks.interruption import held_back
from tasks.sections import Section

REPORTS = 40
MOMENTUM = 0.9

log = logging.getLogger("stillmark")

Step = Callable[[int, torch.Generator], Tensor]
"""Computes the loss of step `at`; draws whatever is random from the generator."""


class FitParams(Section):
    """How a network is trained.

    Attributes:
        steps: Optimizer steps; 0 leaves the network as it is.
        learning_rate: Peak learning rate; `sgd` wants one some thirty times `adamw`'s.
        weight_decay: Decoupled with `adamw`; with `sgd` a part of the gradient.
        warmup_share: Share of the steps over which the rate rises linearly; then it falls as a
            cosine to 0.
        ema_decay: Decay per step of the averaged weights that the loop ends with; null ends with
            the last ones.
        optimizer: `adamw` (Loshchilov and Hutter 2019, arXiv:1711.05101), or `sgd` with Nesterov's
            momentum of 0.9 (Sutskever et al. 2013).
    """

    steps: Annotated[int, Field(ge=0)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    optimizer: Literal["adamw", "sgd"] = "adamw"


def silent(_at: int, _steps: int, _metrics: dict[str, float]) -> None:
    """A progress callback that shows nothing."""


def never(_at: int, _metrics: dict[str, float]) -> bool:
    """Lets a loop take all its steps."""
    return False


@dataclass(frozen=True)
class Watch:
    """What a loop reports to, where it resumes from and what may end it early.

    Attributes:
        progress: Called with (steps done, steps in all, metrics).
        checkpoint: File of the last complete state, or None to keep none.
        every_seconds: Time between two checkpoints.
        stop: Called after each report with (steps done, metrics); true ends the loop there. It must
            follow from these alone, so that a loop that is resumed ends where it would have.
    """

    progress: Callable[[int, int, dict[str, float]], None] = silent
    checkpoint: Path | None = None
    every_seconds: float = 20.0
    stop: Callable[[int, dict[str, float]], bool] = never

    def named(self, name: str) -> "Watch":
        """The same, with a checkpoint of its own: for stages that run several loops."""
        place = self.checkpoint and self.checkpoint.with_name(f"{self.checkpoint.stem}-{name}.pt")
        return replace(self, checkpoint=place)


def rate_at(at: int, params: FitParams) -> float:
    """Learning rate of step `at`, from 0: warm-up, then cosine (Loshchilov & Hutter 2017)."""
    warmup = round(params.steps * params.warmup_share)
    if at < warmup:
        return params.learning_rate * (at + 1) / warmup
    share = (at - warmup) / max(1, params.steps - warmup)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def averaged(network: nn.Module, params: FitParams) -> AveragedModel | None:
    """An exponential average of a network's weights and buffers, where `ema_decay` asks for it."""
    if params.ema_decay is None:
        return None
    average = get_ema_multi_avg_fn(params.ema_decay)
    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


def optimizer_of(learning: list[nn.Parameter], params: FitParams) -> torch.optim.Optimizer:
    """The optimizer that the parameters ask for, over the weights that learn."""
    rate, decay = params.learning_rate, params.weight_decay
    if params.optimizer == "sgd":
        return torch.optim.SGD(
            learning, rate, momentum=MOMENTUM, nesterov=True, weight_decay=decay, fused=True
        )
    return torch.optim.AdamW(learning, rate, weight_decay=decay, fused=True)


class _Loop:
    """The whole state of a training run."""

    def __init__(
        self,
        network: nn.Module,
        params: FitParams,
        compute: Compute,
        beside: nn.Module,
        average: AveragedModel | None,
    ) -> None:
        self.network, self.params, self.compute = network, params, compute
        self.beside, self.average = beside, average
        learning = [
            parameter
            for parameter in (*network.parameters(), *beside.parameters())
            if parameter.requires_grad
        ]
        self.optimizer = optimizer_of(learning, params)
        self.generator = compute.generator("fit")
        self.at = 0
        self.stopped = False

    def advance(self, step: Step) -> Tensor:
        """One optimizer step; returns its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.at, self.params)
        with self.compute.autocast():
            loss = step(self.at, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.at += 1
        return loss.detach()

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        cuda = self.compute.device.type == "cuda"
        return {
            "at": self.at,
            "stopped": self.stopped,
            "network": self.network.state_dict(),
            "beside": self.beside.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "generator": self.generator.get_state(),
            "global": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.compute.device) if cuda else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        self.at, self.stopped = state["at"], state["stopped"]
        self.network.load_state_dict(state["network"])
        self.beside.load_state_dict(state["beside"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global"])
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.compute.device)

    def finish(self) -> None:
        """Leaves the averaged weights, where there are any, in the network."""
        if self.average is not None and self.at:
            self.network.load_state_dict(self.average.module.state_dict())


def fit(
    network: nn.Module,
    step: Step,
    params: FitParams,
    compute: Compute,
    watch: Watch | None = None,
    score: Callable[[], dict[str, float]] | None = None,
    *,
    beside: nn.Module | None = None,
    average: AveragedModel | None = None,
) -> int:
    """Trains a network in place.

    Args:
        network: The module whose parameters are trained; on `compute`'s device.
        step: Computes the loss of one step.
        params: Steps, rate and averaging.
        compute: Device, precision and seed.
        watch: Reports and checkpoints; none by default.
        score: Metrics to report beside the loss, for example on validation rows; called in
            evaluation mode about 40 times in all.
        beside: Modules that learn with the network (heads, running means) and are thrown away.
        average: What `averaged` made, where a step reads it; made here otherwise.

    Returns:
        Steps done, fewer than `params.steps` where `watch.stop` ended the loop.

    Raises:
        TrainingError: The loss is not finite; names the step.
    """
    watch = watch or Watch()
    average = averaged(network, params) if average is None else average
    loop = _Loop(network, params, compute, beside or nn.Identity(), average)
    if watch.checkpoint and watch.checkpoint.exists():
        # States of random generators must stay on the CPU; the others find their own way back.
        loop.restore(torch.load(watch.checkpoint, weights_only=True, map_location="cpu"))
    network.train()
    loop.beside.train()
    _run(loop, step, watch, score)
    loop.finish()
    network.eval()
    return loop.at


def _run(
    loop: _Loop, step: Step, watch: Watch, score: Callable[[], dict[str, float]] | None
) -> None:
    """All steps that are left; signals wait for the end of one."""
    steps, on_cpu = loop.params.steps, loop.compute.device.type == "cpu"
    keeper = _Keeper(watch)
    report_every = max(1, steps // REPORTS)
    with held_back() as signals:
        while loop.at < steps and not loop.stopped:
            loss = loop.advance(step)
            reports = loop.at % report_every == 0 or loop.at == steps
            saves = keeper.is_due or signals.pending is not None
            if reports or saves or on_cpu:  # elsewhere a look costs a wait
                _refuse_infinite(float(loss), loop.at)
            if reports:
                metrics = _metrics(float(loss), loop.network, score)
                watch.progress(loop.at, steps, metrics)
                loop.stopped = watch.stop(loop.at, metrics)
            if saves:
                keeper.save(loop)
            if signals.pending is not None:
                signals.deliver()


class _Keeper:
    """Saves a loop's state from time to time; a full disk costs it the newest one, not the run."""

    def __init__(self, watch: Watch) -> None:
        self.place, self.every_seconds = watch.checkpoint, watch.every_seconds
        self.saved, self.warned = time.monotonic(), False

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        late = time.monotonic() - self.saved >= self.every_seconds
        return self.place is not None and late

    def save(self, loop: _Loop) -> None:
        """Keeps the state, where it is to be kept and there is room."""
        if self.place is None:
            return
        try:
            save_atomically(loop.state(), self.place)
        except (OSError, RuntimeError) as error:  # torch hides the one behind the other
            if not is_full(error):
                raise
            if not self.warned:
                log.warning(
                    "no space is left for checkpoints in %s: training goes on, and would start "
                    "again from the last whole one; free some",
                    self.place.parent,
                )
            self.warned = True
        self.saved = time.monotonic()


def _refuse_infinite(loss: float, at: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {at}; lower the stage's learning_rate")


def _metrics(
    loss: float, network: nn.Module, score: Callable[[], dict[str, float]] | None
) -> dict[str, float]:
    if score is None:
        return {"loss": loss}
    network.eval()
    metrics = {"loss": loss, **score()}
    network.train()
    return metrics


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint so that a reader sees the old one or the new one, never a part.

    Raises:
        OSError: It cannot be written; the old one is still there, and no part of the new one.
        RuntimeError: The same, as torch says it while it writes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
