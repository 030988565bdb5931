"""`stillmark up`: starts the services of one machine, keeps them running, and stops them all.

Each service is a process behind `flows.guard`, in a session of its own: Ctrl-C reaches this process
alone, which ends the others in order, and whatever kills this process ends them too.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

import flows.guard
from flows.services import Plan, Running, Service, plan
from tasks.errors import SetupError, StillmarkError
from tasks.processes import Process
from tasks.settings import Settings

LOCK_FILE, LOGS = "up.lock", "logs"
LOG_BYTES = 5_000_000  # a longer log makes room at the start, for one older one is kept
START_SECONDS = 240.0  # the first start makes two databases
LOOK_SECONDS = 0.3
RESTART_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
STEADY_SECONDS = 600.0  # one that ran for so long may fail as often again
MARGIN_SECONDS = 3.0
STARTS = "starting the services; the first time takes a minute"
SHOWN = 300  # characters of a log's last line

Say = Callable[[str], object]


def up(settings: Settings, healthy: Callable[[Plan], object], say: Say) -> None:
    """Runs the services until SIGINT, SIGTERM or the end of the terminal.

    Args:
        settings: Of the project.
        healthy: Called once, when all of them answer.
        say: Called with what a person should know meanwhile.

    Raises:
        StillmarkError: They cannot be started, or one of them ended again and again; nothing of
            them is left.
    """
    home = settings.writable_home()
    with _the_only_one(home):
        logs = home / LOGS
        logs.mkdir(exist_ok=True)
        asyncio.run(Supervisor(settings, plan(settings), logs, healthy, say).run())


@contextlib.contextmanager
def _the_only_one(home: Path) -> Iterator[None]:
    lock = FileLock(home / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        first = Running.of(home)
        where = f" (Prefect: {first.prefect}, MLflow: {first.mlflow})" if first else ""
        raise SetupError(
            f"`stillmark up` already runs for this project{where}; stop that one first"
        ) from None
    try:
        yield
    finally:
        lock.release()


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


@dataclass
class Kept:
    """A service that runs, and is to go on.

    Attributes:
        service: What it is.
        log: Where it writes.
        root: The project's folder, in which it runs.
        process: Its guard.
    """

    service: Service
    log: Path
    root: Path
    process: asyncio.subprocess.Process

    async def ended(self) -> int:
        """Waits for its end; gives its exit code."""
        code = await self.process.wait()
        _sweep(self.process.pid)
        return code

    async def healthy(self) -> None:
        """Waits until it answers.

        Raises:
            SetupError: It ended instead, or took too long.
        """
        name, loop = self.service.name, asyncio.get_running_loop()
        deadline, ended = loop.time() + START_SECONDS, asyncio.ensure_future(self.ended())
        try:
            while trouble := await asyncio.to_thread(self.service.trouble):
                if loop.time() > deadline:
                    raise SetupError(f"{name} {trouble} after {START_SECONDS:g} s; see {self.log}")
                await asyncio.wait({ended}, timeout=LOOK_SECONDS)
                if ended.done():
                    raise SetupError(
                        f"{name} ended at its start (exit code {ended.result()}: "
                        f"{last_line(self.log)}); see {self.log}"
                    )
        finally:
            ended.cancel()

    async def keep(self, say: Say) -> None:
        """Starts it again whenever it ends, until that is hopeless.

        Raises:
            SetupError: It is.
        """
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            code = await self.ended()
            failures = 1 if loop.time() - began > STEADY_SECONDS else failures + 1
            what = f"{self.service.name} ended (exit code {code}: {last_line(self.log)})"
            if failures > len(RESTART_SECONDS):
                raise SetupError(f"{what} {failures} times in a row; see {self.log}")
            pause = RESTART_SECONDS[failures - 1]
            say(f"{what}; starting it again in {pause:g} s")
            await asyncio.sleep(pause)
            self.process = await launch(self.service, self.log, self.root)

    async def stop(self) -> None:
        """Ends it and all beneath it, by force where it takes too long."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            await asyncio.wait_for(self.process.wait(), self.service.stop_seconds + MARGIN_SECONDS)
        except TimeoutError:
            self.kill()
            await self.process.wait()
        _sweep(self.process.pid)

    def kill(self) -> None:
        """Ends it and all beneath it at once."""
        _sweep(self.process.pid)


class Supervisor:
    """All services of one machine.

    Args:
        settings: Of the project.
        planned: What is to run.
        logs: Folder of the logs.
        healthy: Called once, when all of them answer.
        say: Called with what a person should know meanwhile.
    """

    def __init__(
        self,
        settings: Settings,
        planned: Plan,
        logs: Path,
        healthy: Callable[[Plan], object],
        say: Say,
    ) -> None:
        self._settings, self._planned, self._logs = settings, planned, logs
        self._healthy, self._say = healthy, say
        self._kept: list[Kept] = []
        self._stopping = False

    async def _start(self, service: Service) -> Kept:
        log, root = self._logs / f"{service.name}.log", self._settings.root
        make_room(log)
        kept = Kept(service, log, root, await launch(service, log, root))
        self._kept.append(kept)
        return kept

    async def run(self) -> None:
        """Starts all, keeps them until a signal, and stops all.

        Raises:
            StillmarkError: One of them could not be started or kept.
        """
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        for number in _signals():
            loop.add_signal_handler(number, self._on_signal, asked)
        work, waiting = asyncio.ensure_future(self._work()), asyncio.ensure_future(asked.wait())
        await asyncio.wait({work, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        work.cancel()
        self._stopping = True
        try:
            await asyncio.wait({work})
        finally:
            await self._stop()
        if not work.cancelled():
            work.result()

    def _on_signal(self, asked: asyncio.Event) -> None:
        """The first ends everything in order; another one, at once."""
        asked.set()
        if self._stopping:
            for kept in self._kept:
                kept.kill()

    async def _work(self) -> None:
        await self._check()
        self._say(STARTS)
        planned, home = self._planned, self._settings.home
        for kept in [await self._start(service) for service in planned.servers]:
            await kept.healthy()
        await (await self._start(planned.runner)).healthy()
        Running(prefect=planned.prefect, mlflow=planned.mlflow, process=Process.mine()).write(home)
        self._healthy(planned)
        keeping = {asyncio.ensure_future(kept.keep(self._say)) for kept in self._kept}
        try:
            done, _ = await asyncio.wait(keeping, return_when=asyncio.FIRST_EXCEPTION)
            for failed in done:
                failed.result()
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)

    async def _check(self) -> None:
        """Has everything validated that a flow needs, by a process that may load all of it.

        Raises:
            StillmarkError: Whatever stands in the way.
        """
        process = await asyncio.create_subprocess_exec(
            *self._planned.check,
            cwd=self._settings.root,
            env=os.environ | {"STILLMARK_PROJECT": str(self._settings.root)},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            _, said = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise StillmarkError(said.decode(errors="replace").strip() or "the check was killed")

    async def _stop(self) -> None:
        """The runner first, so that its flows still find servers to report to."""
        Running.remove(self._settings.home)
        for kept in reversed(self._kept):
            await kept.stop()


def _signals() -> list[signal.Signals]:
    """What asks for the end: also a terminal that is closed, unless `nohup` was told otherwise."""
    hung_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hung_up else [])]


def _sweep(session: int) -> None:
    """Kills whatever is left of a session."""
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == session:
                process.kill()
