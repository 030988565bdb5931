"""Versions of data, by DVC: the only module that calls it.

Writes go through the command line, which is DVC's stable interface.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
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
LISTED = ".dir"
NAMED = re.compile(r"[0-9a-f]{32}(\.dir)?")
UNREACHED = re.compile(r"connect|timed out|unreachable|resolve", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Places:
    """Where DVC keeps data files, each under its md5.

    Attributes:
        cache: The cache's folder.
        remote: Name of the default remote, or None where there is none.
        address: The remote's address, or None.
    """

    cache: Path
    remote: str | None
    address: str | None

    @property
    def folder(self) -> Path | None:
        """The remote's folder, where it lies on this machine."""
        if self.address is None or "://" in self.address:
            return None
        return Path(self.address)


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a data file, as it was found and hashed.

    Attributes:
        name: Path inside the data version; empty for the listing of the version itself.
        place: `cache`, or the remote's name.
        path: Where the copy lies, or should.
        expected: md5 (hex) that it is named by.
        found: md5 (hex) of its bytes, or None where it is missing.
        size_bytes: Its size, or None where it is missing.
    """

    name: str
    place: str
    path: Path
    expected: str
    found: str | None
    size_bytes: int | None

    @property
    def is_whole(self) -> bool:
        """Whether the bytes are those that it is named by."""
        return self.found == self.expected


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
        self._check_repository()
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

    def add(self) -> str:
        """Makes what lies in `data/` the raw data's version.

        Returns:
            DVC's digest of it (`<md5>.dir`).

        Raises:
            DataError: DVC refused it; its own line says why.
        """
        self.check()
        self._dvc("add", "data")
        return self.raw()

    def raw(self) -> str:
        """DVC's digest of `data/` as it was added last.

        Raises:
            DataError: It never was.
        """
        try:
            return str(self._yaml(DATA_FILE)["outs"][0]["md5"])
        except (FileNotFoundError, KeyError, TypeError):
            raise DataError(f"{DATA_FILE} names no version; run `dvc add data`") from None

    def changed(self) -> datetime:
        """When the data last changed: the commit of data.dvc, or its file where git knows less."""
        file = self.root / DATA_FILE
        if not self._git("status", "--porcelain", "--", DATA_FILE):
            committed = self._git("log", "-1", "--format=%cI", "--", DATA_FILE)
            if committed:
                return datetime.fromisoformat(committed)
        return datetime.fromtimestamp(file.stat().st_mtime, UTC)

    @cached_property
    def places(self) -> Places:
        """The cache and the default remote.

        Raises:
            SetupError: The project is no DVC repository.
        """
        self._check_repository()
        lines = self._dvc("config", "--list").stdout.splitlines()
        known = dict(line.split("=", 1) for line in lines if "=" in line)
        remote = known.get("core.remote")
        return Places(
            cache=Path(known.get("cache.dir", self.root / ".dvc" / "cache")),
            remote=remote,
            address=known.get(f"remote.{remote}.url"),
        )

    def listing(self, directory: str) -> dict[str, str]:
        """md5 of every file of a data version, by its relative POSIX path.

        Args:
            directory: DVC's digest of the version (`<md5>.dir`), of whatever age: no checkout is
                needed.

        Raises:
            DataError: Neither the cache nor the default remote has it, or it is damaged.
            SetupError: The project is no DVC repository, or the remote does not answer.
        """
        if not directory.endswith(LISTED):
            raise DataError(f"'{directory}' is no digest of a folder, expected '<md5>.dir'")
        path = self.stored(directory)
        found = md5_of_file(path)
        if f"{found}{LISTED}" != directory:
            raise DataError(
                f"{path} has md5 {found}, expected {directory.removesuffix(LISTED)}; remove it, so "
                "that it is fetched again"
            )
        return _listed(path)

    def stored(self, md5: str) -> Path:
        """DVC's copy of a file, by its digest; fetched where the cache lacks it, not hashed.

        Raises:
            DataError: Neither the cache nor the default remote has it.
            SetupError: The project is no DVC repository, or the remote does not answer.
        """
        _check_name(md5)
        path = place_of(self.places.cache, md5)
        if not path.is_file():
            self._fetch(md5, path)
        return path

    def restore(self, directory: str, target: Path) -> None:
        """Copies a data version into a new folder; each file is hashed on its way.

        Raises:
            DataError: A file is damaged, or neither the cache nor the default remote has it.
            SetupError: The project is no DVC repository, or the remote does not answer.
        """
        for name, md5 in self.listing(directory).items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.stored(md5), path)
            if (found := md5_of_file(path)) != md5:
                source = place_of(self.places.cache, md5)
                raise DataError(f"{source} ({name}) has md5 {found}, expected {md5}; `dvc pull` it")

    def copies(self, directory: str) -> list[Copy]:
        """Hashes every copy of a data version's files; DVC's notes of what it hashed are not asked.

        Looks into the cache, where what it lacks is fetched from a remote elsewhere, and into the
        default remote where that is a folder. Missing copies are listed, too.

        Returns:
            First the copies of the listing; of the files only where one listing is whole.

        Raises:
            DataError: It is no digest, or a whole listing names files outside its folder.
            SetupError: The project is no DVC repository, or the remote does not answer.
        """
        _check_name(directory)
        places = {"cache": self.places.cache}
        if self.places.folder is not None:
            places[self.places.remote or "remote"] = self.places.folder
        elif self.places.address is not None:
            self._fill(directory)
        found = [_copy("", place, folder, directory) for place, folder in places.items()]
        whole = next((copy.path for copy in found if copy.is_whole), None)
        files = _listed(whole) if whole is not None else {}
        wanted = [
            (name, place, folder, md5)
            for name, md5 in files.items()
            for place, folder in places.items()
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [*found, *pool.map(lambda one: _copy(*one), wanted)]

    def _fill(self, directory: str) -> None:
        """Fetches what the cache lacks of a version; what nobody has stays missing."""
        listing = _copy("", "cache", self.places.cache, directory)
        files = _listed(listing.path).values() if listing.is_whole else ()
        lacks = not all(place_of(self.places.cache, md5).is_file() for md5 in files)
        if listing.found is None or lacks:
            self._pull(directory)

    def _fetch(self, md5: str, path: Path) -> None:
        """Has a file in the cache, or says what is missing."""
        places, why = self.places, ""
        if places.address is None:
            raise DataError(
                f"{md5} is not in DVC's cache ({places.cache}), and there is no default remote; "
                "put the cache back, or name a remote that has it: `dvc remote add -d NAME URL`"
            )
        if places.folder is None:
            why = self._pull(md5)
        elif not places.folder.is_dir():
            raise SetupError(
                f"DVC's remote '{places.remote}' is not there: {places.folder} is no folder; mount "
                "it, or correct the address: `dvc remote modify`"
            )
        elif (source := place_of(places.folder, md5)).is_file():
            _adopt(source, path, md5)
        if not path.is_file():
            raise DataError(
                f"neither DVC's cache nor the remote '{places.remote}' ({places.address}) has "
                f"{md5}{why}; run `dvc push` where it still is"
            )

    def _pull(self, md5: str) -> str:
        """Lets DVC fetch a digest that no file of the project names any more.

        Works in a throw-away repository that shares the project's addresses and cache.

        Returns:
            What DVC said, where it did not get everything.

        Raises:
            SetupError: The remote does not answer.
        """
        remote = str(self.places.remote)
        self.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.home) as scratch:
            notes = Path(scratch) / ".dvc"
            notes.mkdir()
            for name in ("config", "config.local"):
                if (self.root / ".dvc" / name).is_file():
                    shutil.copy(self.root / ".dvc" / name, notes)
            out = {"md5": md5, "hash": "md5", "path": "wanted"}
            (notes.parent / "wanted.dvc").write_text(yaml.safe_dump({"outs": [out]}), "utf-8")
            here = Versions(notes.parent, self.home)
            try:
                here._dvc("config", "--local", "core.no_scm", "true")
                here._dvc("config", "--local", "cache.dir", str(self.places.cache))
                done = here._dvc("fetch", "--verbose", "--remote", remote, "wanted.dvc")
            except DataError as error:
                raise SetupError(f"DVC's remote '{remote}' cannot be used: {error}") from None
        return _of_remote(remote, done)

    def _check_repository(self) -> None:
        if not (self.root / ".dvc").is_dir():
            raise SetupError(
                f"{self.root} is no DVC repository; run `dvc init` (or clone the project again)"
            )

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


def md5_of_file(path: Path) -> str:
    """md5 (hex) of a file's bytes: the name under which DVC keeps it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, _md5).hexdigest()


def _md5() -> Any:  # noqa: ANN401 - hashlib has no public name for it
    return hashlib.md5(usedforsecurity=False)


def place_of(folder: Path, md5: str) -> Path:
    """Where a cache or a remote of DVC 3 keeps a file."""
    return folder / "files" / "md5" / md5[:2] / md5[2:]


def _check_name(md5: str) -> None:
    if not NAMED.fullmatch(md5):
        raise DataError(f"'{md5}' is no digest of DVC's, expected 32 hex digits")


def _listed(path: Path) -> dict[str, str]:
    """The files that a stored listing names.

    Raises:
        DataError: It is no listing, or names a file outside its folder.
    """
    try:
        found = {str(one["relpath"]): str(one["md5"]) for one in json.loads(path.read_bytes())}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is no listing of DVC's; remove it and fetch it again") from None
    for name in found:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{path} names '{name}', which lies outside the data version")
    return found


def _copy(name: str, place: str, folder: Path, md5: str) -> Copy:
    path = place_of(folder, md5)
    try:
        size, found = path.stat().st_size, md5_of_file(path)
    except OSError:
        return Copy(name, place, path, md5, None, None)
    return Copy(name, place, path, md5, f"{found}{LISTED if md5.endswith(LISTED) else ''}", size)


def _adopt(source: Path, path: Path, md5: str) -> None:
    """Copies a remote's file into the cache, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        copy = Path(shutil.copyfile(source, Path(scratch) / "copy"))
        found = md5_of_file(copy)
        if found != md5.removesuffix(LISTED):
            raise DataError(
                f"{source} has md5 {found}, expected {md5.removesuffix(LISTED)}: the remote's copy "
                "is damaged; `dvc push` it again where it still is whole"
            )
        copy.chmod(0o444)  # as DVC keeps it
        copy.replace(path)


def _of_remote(remote: str, done: subprocess.CompletedProcess[str]) -> str:
    """Why DVC left something out: it ends well even where the remote did not answer."""
    found = re.search(r"from storage (?!local)\S+ \(.*?\) - (.*)", f"{done.stdout}\n{done.stderr}")
    if found is None:
        return ""
    if UNREACHED.search(found[1]):
        raise SetupError(f"DVC's remote '{remote}' does not answer: {found[1]}")
    return f" ({found[1]})"
