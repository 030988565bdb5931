"""Versions of data, by DVC: the only module that calls it.

Writes go through the command line, which is DVC's stable interface.
"""

import configparser
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from filelock import FileLock, Timeout

from tasks import commits
from tasks.errors import DataError, SetupError
from tasks.lineage.digests import digest_of_file, digest_of_files, digests_of_folder
from tasks.refs import DataRef
from tasks.settings import Settings

DATA_FILE, LOCK_FILE = "data.dvc", "dvc.lock"
STAGE = "prepare"
PREPARED = "prepared"
LOCK_SECONDS = 300
OWN_LINE = "stillmark: "
LISTED = ".dir"
NAMED = re.compile(r"[0-9a-f]{32}(\.dir)?")
NOTES = ("*.dvc", LOCK_FILE, f"*/{LOCK_FILE}")
OUTPUTS = ("data", PREPARED)
SEEN_FILE = "data-seen"
TEAM = "stillmark"
PUSHED_FILE, CONFIG_FOLDER = "pushed", "dvc-config"
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


@dataclass(frozen=True, slots=True)
class Past:
    """A data version as git's history knows it.

    Attributes:
        raw: DVC's digest of `data/` (`<md5>.dir`).
        commit: The commit that brought it in.
        date: When that was.
    """

    raw: str
    commit: str
    date: datetime


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


class Versions:
    """The data versions of one project.

    Args:
        root: The project's folder.
        home: Where locks and DVC's own notes are kept.
        remote: What is pushed to and pulled from, in place of the repository's default remote.
    """

    def __init__(self, root: Path, home: Path, remote: Remote | None = None) -> None:
        self.root, self.home, self.remote = root, home, remote

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
        self._check_repository()
        if not (self.root / DATA_FILE).is_file():
            raise DataError(
                f"{DATA_FILE} is missing; put your data into data/ and run `dvc add data`"
            )
        data = self.root / "data"
        if not data.is_dir() and self.remote is not None:
            self._dvc("pull", "--remote", TEAM, DATA_FILE)
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
        found = self.current()
        if self.remote is not None:
            self._push(self.remote, found)
        return found

    def _push(self, remote: Remote, found: DataRef) -> None:
        """Shares a version with the team, once."""
        note = self.home / PUSHED_FILE
        text = f"{remote.address} {remote.endpoint} {found.raw} {found.prepared}\n"
        if not note.is_file() or note.read_text(encoding="utf-8") != text:
            self._dvc("push", "--remote", TEAM)
            note.write_text(text, encoding="utf-8")

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

    def named(self) -> set[str]:
        """Every digest that a file of DVC's names, in the working tree or any commit of git's.

        Raises:
            SetupError: Git cannot be asked.
        """
        contents = [path.read_bytes() for path in self._notes()]
        contents += commits.all_contents(self.root, NOTES)
        return {name for content in set(contents) for name in _outs(content)}

    def _notes(self) -> Iterator[Path]:
        """DVC's own files in the working tree."""
        for folder, inner, files in os.walk(self.root):
            inner[:] = [name for name in inner if name[0] != "." and name not in OUTPUTS]
            yield from (
                Path(folder, name) for name in files if name == LOCK_FILE or name.endswith(".dvc")
            )

    def past(self) -> list[Past]:
        """The data versions that git's history knows from HEAD back, oldest first.

        One that was brought back later is there twice.

        Raises:
            SetupError: The project is in no git repository.
        """
        return [
            Past(raw, change.commit, change.date)
            for change in commits.changes(self.root, DATA_FILE)
            for raw in _outs((change.content or "").encode())
        ]

    @property
    def shares_cache(self) -> bool:
        """Whether the cache lies outside the project, where others may have files in it."""
        return not self.places.cache.resolve().is_relative_to(self.root.resolve())

    def share(self, folder: Path) -> None:
        """Makes a folder a repository of its own, outside of git, with this cache and this remote.

        Raises:
            SetupError: The project is no DVC repository.
        """
        notes = folder / ".dvc"
        notes.mkdir(parents=True, exist_ok=True)
        local = configparser.RawConfigParser()
        for name in ("config", "config.local"):
            if (self.root / ".dvc" / name).is_file():
                shutil.copy(self.root / ".dvc" / name, notes)
        local.read(notes / "config.local")
        # What the file says is relative to where it lies.
        remote = {f"'remote \"{self.places.remote}\"'": {"url": self.places.address}}
        told = {"core": {"no_scm": "true"}, "cache": {"dir": str(self.places.cache.absolute())}}
        for section, values in (told | (remote if self.places.address else {})).items():
            if not local.has_section(section):
                local.add_section(section)
            for name, value in values.items():
                local.set(section, name, value)
        with (notes / "config.local").open("w", encoding="utf-8") as stream:
            local.write(stream)

    def cached(self) -> Iterator[tuple[str, Path]]:
        """Every file in the cache with its digest; with None's stead, an empty one, what is none.

        DVC's and our own unfinished copies lie there, too.
        """
        for path in (self.places.cache / "files" / "md5").glob("*/*"):
            name = f"{path.parent.name}{path.name}"
            yield name if path.is_file() and NAMED.fullmatch(name) else "", path

    def uncache(self, paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
        """Deletes files of the cache, while no command of DVC's runs here.

        Returns:
            Those that cannot be deleted, and why.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        with FileLock(self.home / "dvc.lock", timeout=LOCK_SECONDS):
            for path in paths:
                try:
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                except OSError as error:
                    yield path, str(error.strerror)

    @cached_property
    def places(self) -> Places:
        """The cache and the default remote.

        Raises:
            SetupError: The project is no DVC repository.
        """
        self._check_repository()
        lines = self._dvc("config", "--list").stdout.splitlines()
        known = dict(line.split("=", 1) for line in lines if "=" in line)
        remote = TEAM if self.remote else known.get("core.remote")
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
            here = Versions(notes.parent, self.home, self.remote)
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
        environment = {**os.environ, "PATH": path}
        if self.remote is not None:
            self.remote.configure(self.home / CONFIG_FOLDER)
            environment["DVC_SYSTEM_CONFIG_DIR"] = str(self.home / CONFIG_FOLDER)
        try:
            with FileLock(self.home / "dvc.lock", timeout=LOCK_SECONDS):
                done = subprocess.run(  # noqa: S603 - our own words only
                    [sys.executable, "-m", "dvc", "--cd", str(self.root), *arguments],
                    env=environment,
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

    def seen(self) -> str:
        """What lies in `data/` now, found without reading it where names, sizes and times suffice.

        Returns:
            DVC's digest where it is the version that data.dvc names, else one of names, sizes and
            times that starts with `changed-`.

        Raises:
            DataError: Data was never added, or is not on this machine.
            SetupError: The project is no DVC repository.
        """
        self.check()
        raw, looks = self.raw(), fingerprint(self.root / "data")
        note = self.home / SEEN_FILE
        if note.is_file() and note.read_text("utf-8") == f"{raw} {looks}":
            return raw
        found = json.loads(self._dvc("status", DATA_FILE, "--json").stdout or "{}")
        if "modified" in _states(found, DATA_FILE, "changed outs"):
            return f"changed-{looks}"
        replace_text(note, f"{raw} {looks}")
        return raw

    @property
    def imported_from(self) -> str | None:
        """Where `data/` was imported from (`dvc import-url`), or None where it was added."""
        file = self.root / DATA_FILE
        deps = (self._yaml(DATA_FILE) or {}).get("deps") if file.is_file() else None
        return str(deps[0]["path"]) if deps else None

    def refresh(self) -> bool:
        """Fetches imported data again where its source changed; says whether it did.

        DVC calls an import up to date whatever its source does, and where that is gone, its
        `update` removes the data: so the source is asked first.

        Raises:
            DataError: The source is missing or does not answer, or `data/` was changed here.
        """
        source = self.imported_from
        if source is None or not self._source_changed(source):
            return False
        if self.seen() != self.raw():
            raise DataError(
                f"data/ was imported from {source} and changed here; undo that (`dvc checkout "
                "data.dvc`), or keep it: remove 'deps' and 'frozen' from data.dvc"
            )
        before = self.raw()
        try:
            self._dvc("update", DATA_FILE)
        except DataError:
            self._dvc("checkout", DATA_FILE)
            raise
        return self.raw() != before

    def _source_changed(self, source: str) -> bool:
        """Whether what data.dvc was imported from is not as it was then."""
        folder = self.home / "source"
        self._describe_source(folder)
        here = Versions(folder, self.home)
        try:
            found = json.loads(here._dvc("status", DATA_FILE, "--json").stdout or "{}")
        except DataError as error:
            raise DataError(
                f"{source}, which data/ was imported from, cannot be read: {error}"
            ) from None
        states = _states(found, DATA_FILE, "changed deps")
        if "deleted" in states:
            raise DataError(
                f"{source}, which data/ was imported from, is missing; bring it back, or name "
                "another source: `dvc import-url --force URL data`"
            )
        return bool(states)

    def _describe_source(self, folder: Path) -> None:
        """A repository beside the project's in which the import is not frozen."""
        notes, own = folder / ".dvc", self.root / ".dvc"
        notes.mkdir(parents=True, exist_ok=True)
        shutil.copy(own / "config", notes)
        local = own / "config.local"
        text = local.read_text("utf-8") if local.is_file() else ""
        if "[core]" not in text:
            text += "[core]\n"
        replace_text(notes / "config.local", text.replace("[core]", "[core]\n    no_scm = true", 1))
        described = self._yaml(DATA_FILE)
        dependency = described["deps"][0]
        if "://" not in str(dependency["path"]):
            dependency["path"] = str((self.root / dependency["path"]).resolve())
        plain = {"deps": [dependency], "outs": described["outs"]}
        replace_text(folder / DATA_FILE, yaml.safe_dump(plain))


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The data stage's own lines where it wrote any, else DVC's last error."""
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    own = [line.removeprefix(OWN_LINE) for line in lines if line.startswith(OWN_LINE)]
    if own:
        return "\n".join(own)
    errors = [line for line in lines if line.startswith("ERROR")]
    return f"dvc: {(errors or lines or ['it failed without a word'])[-1]}"


def fingerprint(folder: Path) -> str:
    """sha256 over names, sizes and times of all files below a folder; none is read."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        facts = path.stat()
        name = path.relative_to(folder).as_posix()
        found.update(f"{name}\0{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}\n".encode())
    return found.hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Writes a small file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, delete=False
    ) as stream:
        stream.write(text)
    Path(stream.name).replace(path)


def _states(status: dict[str, Any], stage: str, what: str) -> set[str]:
    """States that `dvc status --json` names, for example of `changed outs`."""
    parts = [part for part in status.get(stage, []) if isinstance(part, dict)]
    return {state for part in parts for state in part.get(what, {}).values()}


def md5_of_file(path: Path) -> str:
    """md5 (hex) of a file's bytes: the name under which DVC keeps it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, _md5).hexdigest()


def _md5() -> Any:  # noqa: ANN401 - hashlib has no public name for it
    return hashlib.md5(usedforsecurity=False)


def place_of(folder: Path, md5: str) -> Path:
    """Where a cache or a remote of DVC 3 keeps a file."""
    return folder / "files" / "md5" / md5[:2] / md5[2:]


def _outs(content: bytes) -> set[str]:
    """Digests of what a file of DVC's says it keeps; none of one that it would not read either."""
    try:
        tree = yaml.safe_load(content)
        stages = [tree, *(tree.get("stages") or {}).values()]
        found = {str(out.get("md5")) for stage in stages for out in stage.get("outs") or ()}
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError):
        return set()
    return {name for name in found if NAMED.fullmatch(name)}


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
