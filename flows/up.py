"""`stillmark up`: starts the services of one machine, keeps them running, and stops them all.

Each service is a process behind `flows.guard`, in a session of its own: Ctrl-C reaches this process
alone, which ends the others in order, and whatever kills this process ends them too.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from flows.kept import PATIENCE, Kept, Patience, Say
from flows.services import Plan, Running, Service, plan
from tasks.errors import SetupError, StillmarkError
from tasks.processes import Process
from tasks.settings import Settings

LOCK_FILE, LOGS = "up.lock", "logs"
STARTS = "starting the services; the first time takes a minute"


def up(
    settings: Settings,
    healthy: Callable[[Plan], object],
    say: Say,
    patience: Patience = PATIENCE,
) -> None:
    """Runs the services until SIGINT, SIGTERM or the end of the terminal.

    Args:
        settings: Of the project.
        healthy: Called once, when all of them answer.
        say: Called with what a person should know meanwhile.
        patience: How long what is borne.

    Raises:
        StillmarkError: They cannot be started, or one of them ended again and again; nothing of
            them is left.
    """
    home = settings.writable_home()
    with _the_only_one(home):
        logs = home / LOGS
        logs.mkdir(exist_ok=True)
        asyncio.run(Supervisor(settings, plan(settings), logs, healthy, say, patience).run())


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


class Supervisor:
    """All services of one machine.

    Args:
        settings: Of the project.
        planned: What is to run.
        logs: Folder of the logs.
        healthy: Called once, when all of them answer.
        say: Called with what a person should know meanwhile.
        patience: How long what is borne.
    """

    def __init__(
        self,
        settings: Settings,
        planned: Plan,
        logs: Path,
        healthy: Callable[[Plan], object],
        say: Say,
        patience: Patience,
    ) -> None:
        self._settings, self._planned, self._logs = settings, planned, logs
        self._patience = patience
        self._healthy, self._say = healthy, say
        self._kept: list[Kept] = []
        self._stopping = False

    async def _start(self, service: Service) -> Kept:
        log = self._logs / f"{service.name}.log"
        kept = await Kept.start(service, log, self._settings.root, self._patience)
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
