"""Versions of data, by DVC: the only module that calls it.

Writes go through the command line, which is DVC's stable interface.
"""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from tasks.errors import DataError, SetupError
from tasks.lineage.digests import digest_of_file, digest_of_files, digests_of_folder
from tasks.refs import DataRef

DATA_FILE, LOCK_FILE = "data.dvc", "dvc.lock"
STAGE = "prepare"
PREPARED = "prepared"
LOCK_SECONDS = 300
OWN_LINE = "stillmark: "


class Versions:
    """The data versions of one project.

    Args:
        root: The project's folder.
        home: Where locks and DVC's own notes are kept.
    """

    def __init__(self, root: Path, home: Path) -> None:
        self.root, self.home = root, home

    def check(self) -> None:
        """Finds out, without running anything, whether there is data to prepare.

        Raises:
            DataError: Data was never added, or is not on this machine.
            SetupError: The project is no DVC repository.
        """
        if not (self.root / ".dvc").is_dir():
            raise SetupError(
                f"{self.root} is no DVC repository; run `dvc init` (or clone the project again)"
            )
        if not (self.root / DATA_FILE).is_file():
            raise DataError(
                f"{DATA_FILE} is missing; put your data into data/ and run `dvc add data`"
            )
        data = self.root / "data"
        if not data.is_dir():
            raise DataError(
                "data/ is missing; run `dvc pull`, or put your data there and `dvc add data`"
            )
        if not any(path.is_file() for path in data.rglob("*")):
            raise DataError("data/ is empty; put images by class there, or run `dvc pull`")

    def is_current(self) -> bool:
        """Whether the prepared rows belong to the data, code and parameters as they are now."""
        found = self._dvc("status", STAGE, DATA_FILE, "--json")
        return found.stdout.strip() == "{}" and (self.root / PREPARED).is_dir()

    def prepare(self) -> DataRef:
        """Runs the data stages, where anything changed, and returns the version.

        Raises:
            DataError: The stage refused the data; its own line says why.
        """
        self.check()
        self._dvc("repro", STAGE)
        return self.current()

    def current(self) -> DataRef:
        """The version that `prepared/` holds, by DVC's own digests and by sha256.

        Raises:
            DataError: There is none yet.
        """
        try:
            raw = self._yaml(DATA_FILE)["outs"][0]["md5"]
            outs = self._yaml(LOCK_FILE)["stages"][STAGE]["outs"]
            prepared = next(out["md5"] for out in outs if out["path"] == PREPARED)
        except (FileNotFoundError, KeyError, TypeError, StopIteration):
            raise DataError("the data has not been prepared; run `stillmark retrain`") from None
        folder = self.root / PREPARED
        return DataRef(
            raw=str(raw),
            prepared=str(prepared),
            manifest=digest_of_file(folder / "manifest.parquet").sha256,
            content=digest_of_files(digests_of_folder(folder)),
        )

    def changed(self) -> datetime:
        """When the data last changed: the commit of data.dvc, or its file where git knows less."""
        file = self.root / DATA_FILE
        if not self._git("status", "--porcelain", "--", DATA_FILE):
            committed = self._git("log", "-1", "--format=%cI", "--", DATA_FILE)
            if committed:
                return datetime.fromisoformat(committed)
        return datetime.fromtimestamp(file.stat().st_mtime, UTC)

    def _git(self, *arguments: str) -> str:
        """What git says of the project; nothing where there is no git or no repository."""
        try:
            done = subprocess.run(  # noqa: S603 - our own words only
                ["git", *arguments],  # noqa: S607 - the user's git, wherever it is
                cwd=self.root,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    def _yaml(self, name: str) -> dict[str, Any]:
        return yaml.safe_load((self.root / name).read_text(encoding="utf-8"))

    def _dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs one DVC command under the project's own lock: DVC's gives up at once."""
        self.home.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        try:
            with FileLock(self.home / "dvc.lock", timeout=LOCK_SECONDS):
                done = subprocess.run(  # noqa: S603 - our own words only
                    [sys.executable, "-m", "dvc", "--cd", str(self.root), *arguments],
                    env={**os.environ, "PATH": path},
                    capture_output=True,
                    text=True,
                    check=False,
                )
        except Timeout:
            raise SetupError(
                f"{self.home / 'dvc.lock'} has been held for {LOCK_SECONDS} s; end that process"
            ) from None
        if done.returncode:
            raise DataError(_reason(done))
        return done


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The data stage's own lines where it wrote any, else DVC's last error."""
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    own = [line.removeprefix(OWN_LINE) for line in lines if line.startswith(OWN_LINE)]
    if own:
        return "\n".join(own)
    errors = [line for line in lines if line.startswith("ERROR")]
    return f"dvc: {(errors or lines or ['it failed without a word'])[-1]}"
