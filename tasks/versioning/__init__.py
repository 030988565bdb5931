"""Versions of data, by DVC: the only package that calls it.

Writes go through the command line, which is DVC's stable interface.
"""

import configparser
from pathlib import Path

from tasks.errors import DataError
from tasks.lineage.digests import digest_of_file, digest_of_files, digests_of_folder
from tasks.refs import DataRef
from tasks.settings import Settings
from tasks.versioning import notes
from tasks.versioning.cache import Cache
from tasks.versioning.command import TEAM, Dvc, Remote
from tasks.versioning.history import History, Past
from tasks.versioning.notes import DATA_FILE, LOCK_FILE, PREPARED, STAGE
from tasks.versioning.places import LISTED, Copy, Places, md5_of_file, place_of
from tasks.versioning.source import Source, fingerprint

__all__ = [
    "DATA_FILE",
    "LISTED",
    "PREPARED",
    "STAGE",
    "Cache",
    "Copy",
    "Dvc",
    "History",
    "Past",
    "Places",
    "Remote",
    "Source",
    "Versions",
    "fingerprint",
    "md5_of_file",
    "place_of",
]

PUSHED_FILE = "pushed"


class Versions:
    """The data versions of one project.

    Args:
        root: The project's folder.
        home: Where locks and DVC's own notes are kept.
        remote: What is pushed to and pulled from, in place of the repository's default remote.

    Attributes:
        dvc: DVC in the project.
        cache: The files of all versions.
        history: Which ones there were, as git knows.
        source: What lies in `data/` now, and where it came from.
    """

    def __init__(self, root: Path, home: Path, remote: Remote | None = None) -> None:
        self.root, self.home = root, home
        self.dvc = Dvc(root, home, remote)
        self.cache = Cache(self.dvc)
        self.history = History(root)
        self.source = Source(self.dvc, self.check, self.raw)

    @classmethod
    def of(cls, settings: Settings) -> "Versions":
        """The data versions of the project that the settings name."""
        remote = settings.dvc_remote and Remote(settings.dvc_remote, settings.dvc_endpoint)
        return cls(settings.root, settings.home, remote or None)

    def check(self) -> None:
        """Finds out, without running anything, whether there is data to prepare.

        Raises:
            DataError: Data was never added, or is not on this machine.
            SetupError: The project is no DVC repository.
        """
        self.dvc.check_repository()
        if not (self.root / DATA_FILE).is_file():
            raise DataError(
                f"{DATA_FILE} is missing; put your data into data/ and run `dvc add data`"
            )
        data = self.root / "data"
        if not data.is_dir() and self.dvc.remote is not None:
            self.dvc.run("pull", "--remote", TEAM, DATA_FILE)
        if not data.is_dir():
            raise DataError(
                "data/ is missing; run `dvc pull`, or put your data there and `dvc add data`"
            )
        if not any(path.is_file() for path in data.rglob("*")):
            raise DataError("data/ is empty; put images by class there, or run `dvc pull`")

    def is_current(self) -> bool:
        """Whether the prepared rows belong to the data, code and parameters as they are now."""
        found = self.dvc.run("status", STAGE, DATA_FILE, "--json")
        return found.stdout.strip() == "{}" and (self.root / PREPARED).is_dir()

    def prepare(self) -> DataRef:
        """Runs the data stages, where anything changed, and returns the version.

        Raises:
            DataError: The stage refused the data; its own line says why.
        """
        self.check()
        self.dvc.run("repro", STAGE)
        found = self.current()
        if self.dvc.remote is not None:
            self._push(self.dvc.remote, found)
        return found

    def _push(self, remote: Remote, found: DataRef) -> None:
        """Shares a version with the team, once."""
        note = self.home / PUSHED_FILE
        text = f"{remote.address} {remote.endpoint} {found.raw} {found.prepared}\n"
        if not note.is_file() or note.read_text(encoding="utf-8") != text:
            self.dvc.run("push", "--remote", TEAM)
            note.write_text(text, encoding="utf-8")

    def current(self) -> DataRef:
        """The version that `prepared/` holds, by DVC's own digests and by sha256.

        Raises:
            DataError: There is none yet.
        """
        try:
            raw = notes.read(self.root / DATA_FILE)["outs"][0]["md5"]
            outs = notes.read(self.root / LOCK_FILE)["stages"][STAGE]["outs"]
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

    def add(self) -> str:
        """Makes what lies in `data/` the raw data's version.

        Returns:
            DVC's digest of it (`<md5>.dir`).

        Raises:
            DataError: DVC refused it; its own line says why.
        """
        self.check()
        self.dvc.run("add", "data")
        return self.raw()

    def raw(self) -> str:
        """DVC's digest of `data/` as it was added last.

        Raises:
            DataError: It never was.
        """
        try:
            return str(notes.read(self.root / DATA_FILE)["outs"][0]["md5"])
        except (FileNotFoundError, KeyError, TypeError):
            raise DataError(f"{DATA_FILE} names no version; run `dvc add data`") from None

    def share(self, folder: Path) -> None:
        """Makes a folder a repository of its own, outside of git, with this cache and this remote.

        Raises:
            SetupError: The project is no DVC repository.
        """
        file = self.dvc.copy_configuration(folder) / "config.local"
        local = configparser.RawConfigParser()
        local.read(file)
        # What the file says is relative to where it lies.
        places = self.cache.places
        remote = {f"'remote \"{places.remote}\"'": {"url": places.address}}
        told = {"core": {"no_scm": "true"}, "cache": {"dir": str(places.cache.absolute())}}
        for section, values in (told | (remote if places.address else {})).items():
            if not local.has_section(section):
                local.add_section(section)
            for name, value in values.items():
                local.set(section, name, value)
        with file.open("w", encoding="utf-8") as stream:
            local.write(stream)
