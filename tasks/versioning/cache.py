"""DVC's cache, and what it lacks from the default remote: data versions of whatever age."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import yaml

from tasks.errors import DataError, SetupError
from tasks.versioning.command import TEAM, Dvc
from tasks.versioning.places import (
    LISTED,
    NAMED,
    Copy,
    Places,
    adopt,
    check_name,
    md5_of_file,
    place_of,
    read_listing,
)

UNREACHED = re.compile(r"connect|timed out|unreachable|resolve", re.IGNORECASE)


class Cache:
    """Every data file that a project has ever had, by its md5.

    Args:
        dvc: DVC in the project.
    """

    def __init__(self, dvc: Dvc) -> None:
        self.dvc = dvc

    @cached_property
    def places(self) -> Places:
        """The cache and the default remote.

        Raises:
            SetupError: The project is no DVC repository.
        """
        self.dvc.check_repository()
        lines = self.dvc.run("config", "--list").stdout.splitlines()
        known = dict(line.split("=", 1) for line in lines if "=" in line)
        remote = TEAM if self.dvc.remote else known.get("core.remote")
        return Places(
            cache=Path(known.get("cache.dir", self.dvc.root / ".dvc" / "cache")),
            remote=remote,
            address=known.get(f"remote.{remote}.url"),
        )

    @property
    def is_shared(self) -> bool:
        """Whether the cache lies outside the project, where others may have files in it."""
        return not self.places.cache.resolve().is_relative_to(self.dvc.root.resolve())

    def files(self) -> Iterator[tuple[str, Path]]:
        """Every file in the cache with its digest; with an empty one, what has none.

        DVC's and our own unfinished copies lie there, too.
        """
        for path in (self.places.cache / "files" / "md5").glob("*/*"):
            name = f"{path.parent.name}{path.name}"
            yield name if path.is_file() and NAMED.fullmatch(name) else "", path

    def delete(self, paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
        """Deletes files of the cache, while no command of DVC's runs here.

        Returns:
            Those that cannot be deleted, and why.
        """
        with self.dvc.locked():
            for path in paths:
                try:
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                except OSError as error:
                    yield path, str(error.strerror)

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
        return read_listing(path)

    def stored(self, md5: str) -> Path:
        """DVC's copy of a file, by its digest; fetched where the cache lacks it, not hashed.

        Raises:
            DataError: Neither the cache nor the default remote has it.
            SetupError: The project is no DVC repository, or the remote does not answer.
        """
        check_name(md5)
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
        check_name(directory)
        places = {"cache": self.places.cache}
        if self.places.folder is not None:
            places[self.places.remote or "remote"] = self.places.folder
        elif self.places.address is not None:
            self._fill(directory)
        found = [Copy.find("", place, folder, directory) for place, folder in places.items()]
        whole = next((copy.path for copy in found if copy.is_whole), None)
        files = read_listing(whole) if whole is not None else {}
        wanted = [
            (name, place, folder, md5)
            for name, md5 in files.items()
            for place, folder in places.items()
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [*found, *pool.map(lambda one: Copy.find(*one), wanted)]

    def _fill(self, directory: str) -> None:
        """Fetches what the cache lacks of a version; what nobody has stays missing."""
        listing = Copy.find("", "cache", self.places.cache, directory)
        files = read_listing(listing.path).values() if listing.is_whole else ()
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
            adopt(source, path, md5)
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
        self.dvc.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.dvc.home) as scratch:
            here = replace(self.dvc, root=Path(scratch))
            self.dvc.copy_configuration(here.root)
            out = {"md5": md5, "hash": "md5", "path": "wanted"}
            (here.root / "wanted.dvc").write_text(yaml.safe_dump({"outs": [out]}), "utf-8")
            try:
                here.run("config", "--local", "core.no_scm", "true")
                here.run("config", "--local", "cache.dir", str(self.places.cache))
                done = here.run("fetch", "--verbose", "--remote", remote, "wanted.dvc")
            except DataError as error:
                raise SetupError(f"DVC's remote '{remote}' cannot be used: {error}") from None
        return _of_remote(remote, done)


def _of_remote(remote: str, done: subprocess.CompletedProcess[str]) -> str:
    """Why DVC left something out: it ends well even where the remote did not answer."""
    found = re.search(r"from storage (?!local)\S+ \(.*?\) - (.*)", f"{done.stdout}\n{done.stderr}")
    if found is None:
        return ""
    if UNREACHED.search(found[1]):
        raise SetupError(f"DVC's remote '{remote}' does not answer: {found[1]}")
    return f" ({found[1]})"
