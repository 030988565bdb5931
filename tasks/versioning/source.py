"""What lies in `data/`: whether it changed, and what it was imported from."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from tasks.atomic import replace_text
from tasks.errors import DataError
from tasks.versioning import notes
from tasks.versioning.command import Dvc
from tasks.versioning.notes import DATA_FILE

SEEN_FILE = "data-seen"


@dataclass(frozen=True, slots=True)
class Source:
    """The raw data of a project, as it lies there now, and where it came from.

    Attributes:
        dvc: DVC in the project.
        check: Refuses a project that has no data, as `Versions.check` does.
        raw: Gives the version that data.dvc names, as `Versions.raw` does.
    """

    dvc: Dvc
    check: Callable[[], None]
    raw: Callable[[], str]

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
        raw, looks = self.raw(), fingerprint(self.dvc.root / "data")
        note = self.dvc.home / SEEN_FILE
        if note.is_file() and note.read_text("utf-8") == f"{raw} {looks}":
            return raw
        if "modified" in _states(self.dvc, "changed outs"):
            return f"changed-{looks}"
        replace_text(note, f"{raw} {looks}")
        return raw

    @property
    def imported_from(self) -> str | None:
        """Where `data/` was imported from (`dvc import-url`), or None where it was added."""
        file = self.dvc.root / DATA_FILE
        deps = (notes.read(file) or {}).get("deps") if file.is_file() else None
        return str(deps[0]["path"]) if deps else None

    def refresh(self) -> bool:
        """Fetches imported data again where its source changed; says whether it did.

        DVC calls an import up to date whatever its source does, and where that is gone, its
        `update` removes the data: so the source is asked first.

        Raises:
            DataError: The source is missing or does not answer, or `data/` was changed here.
        """
        source = self.imported_from
        if source is None or not self._is_changed(source):
            return False
        if self.seen() != self.raw():
            raise DataError(
                f"data/ was imported from {source} and changed here; undo that (`dvc checkout "
                "data.dvc`), or keep it: remove 'deps' and 'frozen' from data.dvc"
            )
        before = self.raw()
        try:
            self.dvc.run("update", DATA_FILE)
        except DataError:
            self.dvc.run("checkout", DATA_FILE)
            raise
        return self.raw() != before

    def _is_changed(self, source: str) -> bool:
        """Whether what data.dvc was imported from is not as it was then."""
        folder = self.dvc.home / "source"
        self._describe(folder)
        try:
            states = _states(Dvc(folder, self.dvc.home), "changed deps")
        except DataError as error:
            raise DataError(
                f"{source}, which data/ was imported from, cannot be read: {error}"
            ) from None
        if "deleted" in states:
            raise DataError(
                f"{source}, which data/ was imported from, is missing; bring it back, or name "
                "another source: `dvc import-url --force URL data`"
            )
        return bool(states)

    def _describe(self, folder: Path) -> None:
        """Makes a repository beside the project's, in which the import is not frozen."""
        own, other = self.dvc.root / ".dvc", folder / ".dvc"
        other.mkdir(parents=True, exist_ok=True)
        shutil.copy(own / "config", other)
        local = own / "config.local"
        text = local.read_text("utf-8") if local.is_file() else ""
        if "[core]" not in text:
            text += "[core]\n"
        replace_text(other / "config.local", text.replace("[core]", "[core]\n    no_scm = true", 1))
        described = notes.read(self.dvc.root / DATA_FILE)
        dependency = described["deps"][0]
        if "://" not in str(dependency["path"]):
            dependency["path"] = str((self.dvc.root / dependency["path"]).resolve())
        plain = {"deps": [dependency], "outs": described["outs"]}
        replace_text(folder / DATA_FILE, yaml.safe_dump(plain))


def _states(dvc: Dvc, what: str) -> set[str]:
    """States that DVC finds of data.dvc, for example of its `changed outs`."""
    found = json.loads(dvc.run("status", DATA_FILE, "--json").stdout or "{}")
    parts = [part for part in found.get(DATA_FILE, []) if isinstance(part, dict)]
    return {state for part in parts for state in part.get(what, {}).values()}


def fingerprint(folder: Path) -> str:
    """sha256 over names, sizes and times of all files below a folder; none is read."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        facts = path.stat()
        name = path.relative_to(folder).as_posix()
        found.update(f"{name}\0{facts.st_size} {facts.st_mtime_ns} {facts.st_ino}\n".encode())
    return found.hexdigest()
