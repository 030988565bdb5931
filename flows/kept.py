"""One service that is kept running: started behind its guard, asked whether it answers, ended.

Whether it answers is asked again and again while it runs: a process that lives may serve nobody.
One miss means nothing, as a machine may be slow or wake from a sleep; several in a row do. They are
counted, not timed, so that no clock has a say in it.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

import flows.guard
from flows.services import Service
from tasks.errors import SetupError

LOG_BYTES = 5_000_000  # a longer log makes room at the start, for one older one is kept
LOOK_SECONDS = 0.3
MARGIN_SECONDS = 3.0
SHOWN = 300  # characters of a log's last line
NO_SIGN = "gives no sign of life"

Say = Callable[[str], object]


@dataclass(frozen=True)
class Patience:
    """How long what is borne.

    Attributes:
        start_seconds: Until a service has to answer; the first start makes two databases.
        restart_seconds: Pauses before it is started again, one for each end in a row.
        steady_seconds: One that ran for so long may end as often again.
        ask_seconds: Between two questions whether it still answers.
        misses: Answers that may be missing in a row; with the last of them it is ended.
    """

    start_seconds: float = 240.0
    restart_seconds: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    steady_seconds: float = 600.0
    ask_seconds: float = 15.0
    misses: int = 4


PATIENCE = Patience()


def make_room(log: Path) -> None:
    """Moves a log that has grown long out of the way; the one moved before it goes."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def last_line(log: Path) -> str:
    """The last that a service said."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:SHOWN] if said else "it said nothing"


async def launch(service: Service, log: Path, root: Path) -> asyncio.subprocess.Process:
    """Starts a service behind its guard; whether it is of use is another question.

    Args:
        service: What to start.
        log: Where it writes.
        root: The project's folder, in which it runs.
    """
    guarded = [sys.executable, flows.guard.__file__, str(service.stop_seconds), *service.command]
    with log.open("ab") as place:
        return await asyncio.create_subprocess_exec(
            *guarded,
            cwd=root,
            env=os.environ | service.environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=place,
            stderr=place,
            start_new_session=True,
        )


class Kept:
    """A service that runs, and is to go on.

    Args:
        service: What it is.
        log: Where it writes.
        root: The project's folder, in which it runs.
        patience: How long what is borne.
        process: Its guard.
        seen: When its pulse was last touched before it was started; None without one.
    """

    def __init__(
        self,
        service: Service,
        log: Path,
        root: Path,
        patience: Patience,
        process: asyncio.subprocess.Process,
        seen: int | None,
    ) -> None:
        self.service, self.log = service, log
        self._root, self._patience, self._process, self._seen = root, patience, process, seen

    @classmethod
    async def start(cls, service: Service, log: Path, root: Path, patience: Patience) -> "Kept":
        """Starts one; `log`, where it is long, makes room."""
        make_room(log)
        before = _touched(service)
        return cls(service, log, root, patience, await launch(service, log, root), before)

    async def ended(self) -> int:
        """Waits for its end; gives its exit code."""
        code = await self._process.wait()
        _sweep(self._process.pid)
        return code

    async def healthy(self) -> None:
        """Waits until it is of use.

        Raises:
            SetupError: It ended instead, or took too long.
        """
        name = self.service.name
        ended = asyncio.ensure_future(self.ended())
        useful = asyncio.ensure_future(self._useful())
        try:
            await asyncio.wait({ended, useful}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise SetupError(
                    f"{name} ended at its start (exit code {ended.result()}: "
                    f"{last_line(self.log)}); see {self.log}"
                )
            if trouble := useful.result():
                seconds = self._patience.start_seconds
                raise SetupError(f"{name} {trouble} after {seconds:g} s; see {self.log}")
        finally:
            ended.cancel()
            useful.cancel()

    async def _useful(self) -> str | None:
        trouble = await self._first_answer(self.service.trouble)
        if trouble is None and self.service.pulse is not None:
            return await self._first_answer(self._silence)
        return trouble

    async def keep(self, say: Say) -> None:
        """Starts it again whenever it ends or no longer answers, until that is hopeless.

        Raises:
            SetupError: It is.
        """
        loop, failures, pauses = asyncio.get_running_loop(), 0, self._patience.restart_seconds
        while True:
            began = loop.time()
            what = await self._over(has_answered=failures == 0)
            failures = 1 if loop.time() - began > self._patience.steady_seconds else failures + 1
            if failures > len(pauses):
                raise SetupError(f"{what} {failures} times in a row; see {self.log}")
            say(f"{what}; starting it again in {pauses[failures - 1]:g} s")
            await asyncio.sleep(pauses[failures - 1])
            if self.service.obstacle is not None:  # it would only end again, and use up its starts
                await self._first_answer(self.service.obstacle)
            self._seen = _touched(self.service)
            self._process = await launch(self.service, self.log, self._root)

    async def _over(self, *, has_answered: bool) -> str:
        """Waits until it has ended, or has to be; says which. Nothing of it runs any more then."""
        ended = asyncio.ensure_future(self.ended())
        mute = asyncio.ensure_future(self._mute(has_answered=has_answered))
        try:
            await asyncio.wait({ended, mute}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return (
                    f"{self.service.name} ended (exit code {ended.result()}: {last_line(self.log)})"
                )
            await self.stop()
            return f"{self.service.name} {mute.result()} and was ended"
        finally:
            ended.cancel()
            mute.cancel()

    async def _mute(self, *, has_answered: bool) -> str:
        """Waits until it has not answered too often in a row; says what was wrong last."""
        if not has_answered and (trouble := await self._first_answer(self._silence)):
            return f"{trouble} {self._patience.start_seconds:g} s after its start"
        misses, trouble = 0, None
        while misses < self._patience.misses:
            await asyncio.sleep(self._patience.ask_seconds)
            trouble = await asyncio.to_thread(self._silence)
            misses = misses + 1 if trouble else 0
        return f"{trouble}, {misses} times in a row,"

    async def _first_answer(self, ask: Callable[[], str | None]) -> str | None:
        """Waits until nothing is wrong; gives what is, where that takes too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience.start_seconds
        while (trouble := await asyncio.to_thread(ask)) and loop.time() < deadline:
            await asyncio.sleep(LOOK_SECONDS)
        return trouble

    def _silence(self) -> str | None:
        """Why it seems dead, or None: what is asked of another service is no proof of that."""
        if self.service.pulse is None:
            return self.service.trouble()
        before, self._seen = self._seen, _touched(self.service)
        return NO_SIGN if self._seen == before else None

    async def stop(self) -> None:
        """Ends it and all beneath it, by force where it takes too long."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), self.service.stop_seconds + MARGIN_SECONDS)
        except TimeoutError:
            self.kill()
            await self._process.wait()
        _sweep(self._process.pid)

    def kill(self) -> None:
        """Ends it and all beneath it at once."""
        _sweep(self._process.pid)


def _touched(service: Service) -> int | None:
    """When a service last touched its pulse; only whether that changes means anything."""
    try:
        return service.pulse.stat().st_mtime_ns if service.pulse else None
    except FileNotFoundError:
        return None


def _sweep(session: int) -> None:
    """Kills whatever is left of a session."""
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session:
                process.kill()
