"""DVC's command line, its stable interface: one command at a time, under a lock of our own.

DVC gives up at once where another one holds its lock; what holds it without ours is waited for.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from tasks.errors import DataError, SetupError
from tasks.processes import kill

LOCK_SECONDS = 300
BUSY_SECONDS, PAUSE_SECONDS = 60.0, 1.0
BUSY = re.compile("is busy, it is being blocked by|Unable to acquire lock")
OWN_LINE = "stillmark: "
TEAM = "stillmark"
CONFIG_FOLDER = "dvc-config"


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote that the settings name, and no file of the repository.

    Attributes:
        address: `s3://bucket/folder`, or a folder.
        endpoint: Address of the S3 service, where it is not Amazon's.
    """

    address: str
    endpoint: str | None

    def configure(self, folder: Path) -> None:
        """Tells DVC of it, in a configuration folder that every repository's own files overrule."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"['remote \"{TEAM}\"']", f"    url = {self.address}"]
        lines += [f"    endpointurl = {self.endpoint}"] if self.endpoint else []
        partial = folder / f"config.{os.getpid()}"
        partial.write_text("\n".join([*lines, ""]), encoding="utf-8")
        partial.replace(folder / "config")


@dataclass(frozen=True, slots=True)
class Dvc:
    """DVC, as it is called in one project.

    Attributes:
        root: The project's folder.
        home: Where locks and DVC's own notes are kept.
        remote: What is pushed to and pulled from, in place of the repository's default remote.
    """

    root: Path
    home: Path
    remote: Remote | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds what every command holds while it runs: DVC's own lock gives up at once.

        Raises:
            SetupError: Another process has held it for too long.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        path = self.home / "dvc.lock"
        try:
            held = FileLock(path).acquire(timeout=LOCK_SECONDS)
        except Timeout:
            raise SetupError(
                f"{path} has been held for {LOCK_SECONDS} s; end that process"
            ) from None
        with held:
            yield

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs one command.

        Raises:
            DataError: It failed; the data stage's own lines or DVC's error say why.
            SetupError: Another process has held the lock for too long.
        """
        with self.locked():
            done = self._run_when_free(arguments)
        if done.returncode:
            raise DataError(_reason(done))
        return done

    def _run_when_free(self, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        """Waits for a DVC that is not ours: a person's, or one that outlived who started it."""
        words = [sys.executable, "-m", "dvc", "--cd", str(self.root), *arguments]
        environment, deadline = self._environment(), time.monotonic() + BUSY_SECONDS
        while True:
            done = _to_its_end(words, environment)
            is_busy = done.returncode and BUSY.search(done.stderr)
            if not is_busy or time.monotonic() > deadline:
                return done
            time.sleep(PAUSE_SECONDS)  # nothing of DVC's can be waited for

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path}
        if self.remote is not None:
            self.remote.configure(self.home / CONFIG_FOLDER)
            environment["DVC_SYSTEM_CONFIG_DIR"] = str(self.home / CONFIG_FOLDER)
        return environment

    def check_repository(self) -> None:
        """Refuses a project that DVC does not know.

        Raises:
            SetupError: It is no DVC repository.
        """
        if not (self.root / ".dvc").is_dir():
            raise SetupError(
                f"{self.root} is no DVC repository; run `dvc init` (or clone the project again)"
            )

    def copy_configuration(self, folder: Path) -> Path:
        """Gives another repository this one's addresses and cache.

        Args:
            folder: That repository; its `.dvc` is made where it has none.

        Returns:
            Its `.dvc`.
        """
        own, notes = self.root / ".dvc", folder / ".dvc"
        notes.mkdir(parents=True, exist_ok=True)
        for name in ("config", "config.local"):
            if (own / name).is_file():
                shutil.copy(own / name, notes)
        return notes


def _to_its_end(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs a command; where it is not waited for, it ends with all that it has started."""
    with subprocess.Popen(  # noqa: S603 - our own words only
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, said = process.communicate()
        except BaseException:  # a signal's, or a time limit's
            if process.poll() is None:
                kill(psutil.Process(process.pid))
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, said)


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The data stage's own lines where it wrote any, else DVC's last error."""
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    own = [line.removeprefix(OWN_LINE) for line in lines if line.startswith(OWN_LINE)]
    if own:
        return "\n".join(own)
    errors = [line for line in lines if line.startswith("ERROR")]
    return f"dvc: {(errors or lines or ['it failed without a word'])[-1]}"
