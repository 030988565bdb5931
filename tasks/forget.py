"""Forget: a data version without certain rows, and evidence of what still knows them.

Answers a request for deletion. Old data versions keep the bytes, in DVC's cache and remote, as old
models can be made again from them only so; where they lie is listed, for whoever decides that.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet

from tasks.catalogue import MANIFEST, REPORT, Catalogue
from tasks.errors import DataError
from tasks.impact import DATA_FOLDER, SHA256_DIGITS, Impact, of_rows
from tasks.lineage.index import FEWEST_DIGITS, PREFIX
from tasks.records import SUFFIXES
from tasks.refs import Ref
from tasks.removal import keep_others
from tasks.settings import Settings
from tasks.versioning import PREPARED, Versions, md5_of_file, place_of


class Forgotten(Ref):
    """What was removed, and what still knows it.

    Attributes:
        rows: Digests of the rows that were asked to be forgotten.
        files: What was removed, or written anew without the rows, relative to the project's folder.
        absent: Those rows that today's data did not hold any more.
        before: DVC's digest of the raw data with them.
        after: DVC's digest of the raw data without them.
        copies: Files in DVC's cache and remote that still hold the removed bytes.
        tainted: Models that were trained on the rows, or descend from such.
    """

    rows: tuple[str, ...]
    files: tuple[str, ...]
    absent: tuple[str, ...]
    before: str
    after: str
    copies: tuple[str, ...]
    tainted: Impact


def forget(settings: Settings, rows: Sequence[str]) -> Forgotten:
    """Removes rows from the raw data, which becomes a new version; trains nothing.

    All of them are removed, or none.

    Args:
        settings: The project.
        rows: Digests of the rows' contents, or unique beginnings of at least 8 digits.

    Raises:
        DataError: A row is not known, or the data changed since it was prepared.
        SetupError: The registry or DVC does not answer.
        LedgerError: The ledger cannot be read.
    """
    versions = Versions.of(settings)
    sources = _sources(settings.root / PREPARED)
    wanted = [_whole(row, sources) for row in rows]
    files = _files(settings.root, {row: sources[row] for row in wanted if row in sources})
    if files and not versions.is_current():
        raise DataError(
            "data/ or prepared/ has changed since the rows were prepared, so their names may mean "
            "other files by now; run `dvc repro` first"
        )
    with Catalogue.of(settings) as catalogue:
        catalogue.refresh()
        tainted = of_rows(catalogue, ", ".join(f"row {row}" for row in wanted), wanted)
    before = versions.raw()
    digests = {md5_of_file(path) for path in files}
    if files:
        with _set_aside(settings.writable_home(), files):
            versions.add()
    return Forgotten(
        rows=tuple(wanted),
        files=tuple(path.relative_to(settings.root).as_posix() for path in files),
        absent=tuple(row for row in wanted if row not in sources),
        before=before,
        after=versions.raw(),
        copies=tuple(_copies(versions, digests)) if files else (),
        tainted=tainted,
    )


def _sources(prepared: Path) -> dict[str, list[str]]:
    """Every place in `data/` where a row lies, by its digest; merged duplicates too."""
    if not (prepared / MANIFEST).is_file():
        raise DataError("the data has not been prepared; run `dvc repro`, or `dvc pull`")
    table = pyarrow.parquet.read_table(prepared / MANIFEST, columns=["row", "source"])
    rows: list[str] = table["row"].to_pylist()
    first: dict[str, str] = dict(zip(table["source"].to_pylist(), rows, strict=True))
    found = {row: [source] for source, row in first.items()}
    report = prepared / REPORT
    merged: list[str] = (
        json.loads(report.read_text(encoding="utf-8")).get("duplicates", [])
        if report.is_file()
        else []
    )
    for line in merged:
        again, _, source = line.partition(" = ")
        if source not in first:
            raise DataError(
                f"{REPORT} says '{line}', which names no row of the manifest; run `dvc repro`"
            )
        found[first[source]].append(again)
    return found


def _whole(row: str, known: dict[str, list[str]]) -> str:
    if not PREFIX.fullmatch(row) or row.endswith(".dir"):
        raise DataError(
            f"'{row}' is no row's digest; expected at least {FEWEST_DIGITS} hex digits of it"
        )
    if len(row) == SHA256_DIGITS:
        return row
    found = [digest for digest in known if digest.startswith(row)]
    if len(found) != 1:
        raise DataError(
            f"{len(found)} rows of today's data start with '{row}'; give the whole digest"
        )
    return found[0]


Taken = dict[Path, set[int] | None]
"""Files, and which of their rows go; None stands for a file that is one row."""


def _files(root: Path, sources: dict[str, list[str]]) -> Taken:
    found: Taken = {}
    for row, names in sources.items():
        for name in names:
            path = root / DATA_FOLDER / name
            if path.is_file():
                found[path] = None
                continue
            inner, _, position = name.rpartition("#")
            path = root / DATA_FOLDER / inner
            if not position.isdigit() or path.suffix.lower() not in SUFFIXES or not path.is_file():
                raise DataError(
                    f"row {row} is {DATA_FOLDER}/{name}, where nothing is that can be taken out; "
                    "run `dvc checkout`"
                )
            found[path] = {*(found.get(path) or ()), int(position)}
    return dict(sorted(found.items()))


@contextmanager
def _set_aside(home: Path, files: Taken) -> Iterator[None]:
    """Takes rows away for good; or all back to where it was, if what follows fails."""
    aside = Path(tempfile.mkdtemp(prefix="forget-", dir=home))
    moved: list[tuple[Path, Path]] = []
    try:
        for at, (path, rows) in enumerate(files.items()):
            place = aside / f"{at}{path.suffix}"
            shutil.move(path, place)
            moved.append((path, place))
            if rows is not None and not keep_others(place, rows, path):
                path.unlink()
        yield
    except BaseException:
        for path, place in moved:
            shutil.move(place, path)
        raise
    finally:
        shutil.rmtree(aside)


def _copies(versions: Versions, digests: set[str]) -> Iterator[str]:
    places = versions.cache.places
    for folder in filter(None, (places.cache, places.folder)):
        for digest in sorted(digests):
            path = place_of(folder, digest)
            if path.is_file():
                yield str(path)
