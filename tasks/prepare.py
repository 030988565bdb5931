"""The DVC stage: raw data → encoded rows, a schema and the row manifest.

Runs as `python -m tasks.prepare` from dvc.yaml. Imports no Prefect, MLflow, DVC or torch.
"""

import hashlib
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from pydantic import Field

from tasks.errors import DataError, ParamsError, StillmarkError
from tasks.modalities import MODALITIES, Modality, RawRow
from tasks.sections import Section, parse, read_tree

RAW = Path("data")
PREPARED = Path("prepared")
NAMED_AT_MOST = 5
FEWEST_CLASSES = 2


class PrepareParams(Section):
    """Section `prepare` of params.yaml.

    Attributes:
        modality: What the raw files hold.
        test_share: Share of rows that the digest puts into the test split, for ever.
        validation_share: Share of rows that the digest puts into the validation split.
        labels_per_class: Label budget: how many labelled rows of each class are shown, validation
            included; null shows all.
        validation_labels_per_class: How many of that budget come from the validation split, where
            it has that many; null takes all it has.
        draw: Which labels are shown; another number is another draw from the same rows.
        unreadable: `refuse` stops at rows that cannot be decoded, `skip` leaves them out; both name
            them.
    """

    modality: Annotated[Modality, MODALITIES]
    test_share: Annotated[float, Field(gt=0, lt=1)]
    validation_share: Annotated[float, Field(ge=0, lt=1)]
    labels_per_class: Annotated[int, Field(ge=1)] | None
    validation_labels_per_class: Annotated[int, Field(ge=0)] | None
    draw: Annotated[int, Field(ge=0, le=2**53 - 1)] = 0
    unreadable: Literal["refuse", "skip"] = "refuse"


@dataclass(frozen=True, slots=True)
class Row:
    """One distinct row: its name (sha256 of its content), label, split and where it was found."""

    digest: str
    label: str | None
    split: str
    source: str
    shown: bool = False


def fraction(*parts: str) -> float:
    """A number in [0, 1) that follows from texts alone: the first 64 bits of their sha256."""
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest()[:8]) / 2**64


def split_of(digest: str, params: PrepareParams) -> str:
    """The split of a row, from its content digest alone, so that growing data moves no row."""
    at = fraction("split", digest)
    if at < params.test_share:
        return "test"
    return "validation" if at < params.test_share + params.validation_share else "train"


def prepare(root: Path, params: PrepareParams) -> dict[str, Any]:
    """Reads `root/data`, writes `root/prepared` and returns the report that is written with it.

    Files: `manifest.parquet` (row, label, split, shown, source), `rows.npy` (uint8, one entry per
    manifest row), `schema.json` (shape, classes, modality), `report.json`.

    Raises:
        DataError: The data is missing, empty, unreadable, contradicts itself or lacks labels.
    """
    rows, report = distinct_rows(params.modality.read(existing(root / RAW)), params)
    schema = params.modality.survey(_contents(root, params, {row.source for row in rows}))
    folder = root / f"{PREPARED}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    unreadable = _encode(root, params, rows, schema, folder)
    _refuse_unreadable(unreadable, params)
    rows = show_labels([row for row in rows if row.source not in unreadable], params)
    schema["classes"] = sorted({row.label for row in rows if row.label is not None})
    schema["modality"] = params.modality.plain()
    report |= {"unreadable": sorted(unreadable), "rows": _counts(rows)}
    _write_manifest(rows, folder / "manifest.parquet")
    for name, value in (("schema.json", schema), ("report.json", report)):
        (folder / name).write_text(
            json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )
    shutil.rmtree(root / PREPARED, ignore_errors=True)
    folder.replace(root / PREPARED)
    return report


def existing(folder: Path) -> Path:
    """The raw folder, where it holds anything.

    Raises:
        DataError: It is missing or empty.
    """
    if not folder.is_dir():
        raise DataError(
            f"{folder.name}/ is missing; run `dvc pull`, or put your data there and `dvc add data`"
        )
    if not any(path.is_file() for path in folder.rglob("*")):
        raise DataError(f"{folder.name}/ is empty; put images by class there, or run `dvc pull`")
    return folder


def distinct_rows(
    found: Iterable[RawRow], params: PrepareParams
) -> tuple[list[Row], dict[str, Any]]:
    """Merges exact duplicates and gives every row its split.

    A row that lies both under `train/` and `test/` is a test row.

    Raises:
        DataError: No row was found, or one content carries two labels.
    """
    rows: dict[str, Row] = {}
    duplicates: list[str] = []
    conflicts: list[str] = []
    for raw in found:
        digest = hashlib.sha256(raw.content).hexdigest()
        row = Row(digest, raw.label, raw.split or split_of(digest, params), raw.source)
        if raw.split == "train" and params.validation_share:
            row = replace(row, split=_within_train(digest, params))
        first = rows.setdefault(digest, row)
        if first is row:
            continue
        duplicates.append(f"{raw.source} = {first.source}")
        if None not in {first.label, row.label} and first.label != row.label:
            conflicts.append(f"{first.source} ('{first.label}') and {row.source} ('{row.label}')")
        split = "test" if "test" in {first.split, row.split} else first.split
        rows[digest] = replace(first, label=first.label or row.label, split=split)
    if conflicts:
        raise DataError(
            f"the same content carries two labels: {_some(conflicts)}; remove one of each"
        )
    if not rows:
        raise DataError(
            "data/ holds no rows that this modality reads; see 'Your own data' in README.md"
        )
    ordered = sorted(rows.values(), key=lambda row: row.digest)
    return ordered, {"duplicates": duplicates}


def _within_train(digest: str, params: PrepareParams) -> str:
    return "validation" if fraction("split", digest) < params.validation_share else "train"


def show_labels(rows: list[Row], params: PrepareParams) -> list[Row]:
    """Chooses the labels that training and validation may see, within the budget.

    Raises:
        DataError: One class only, no test rows, or a class with fewer labels than asked for.
    """
    by_class: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.label is not None:
            by_class[row.label][row.split].append(row)
    if len(by_class) < FEWEST_CLASSES:
        names = ", ".join(f"'{name}'" for name in by_class) or "none"
        raise DataError(
            f"the labelled rows hold {len(by_class)} class ({names}), expected 2 or more"
        )
    if not any(splits["test"] for splits in by_class.values()):
        raise DataError(
            "no labelled row fell into the test split; label more rows, or raise prepare.test_share"
        )
    shown = {
        row.digest for name in sorted(by_class) for row in _shown(name, by_class[name], params)
    }
    return [replace(row, shown=row.digest in shown) for row in rows]


def _shown(name: str, splits: dict[str, list[Row]], params: PrepareParams) -> list[Row]:
    def drawn(split: str) -> list[Row]:
        return sorted(splits[split], key=lambda row: fraction("draw", str(params.draw), row.digest))

    train, budget = drawn("train"), params.labels_per_class
    validation = drawn("validation")[: params.validation_labels_per_class]
    if budget is None:
        chosen = train
    else:
        validation = validation[: budget - 1]
        chosen = train[: budget - len(validation)]
        if len(chosen) + len(validation) < budget:
            usable = len(train) + len(validation)
            raise DataError(
                f"class '{name}' has {usable} labels to show outside the test split, prepare."
                f"labels_per_class asks for {budget}; label more, or lower it (null takes all)"
            )
    if not chosen:
        raise DataError(
            f"class '{name}' has no labelled training row; label some, or remove the class"
        )
    return chosen + validation


def _contents(root: Path, params: PrepareParams, wanted: set[str]) -> Iterator[bytes]:
    return (raw.content for raw in params.modality.read(root / RAW) if raw.source in wanted)


def _encode(
    root: Path, params: PrepareParams, rows: list[Row], schema: dict[str, Any], folder: Path
) -> dict[str, str]:
    """Writes rows.npy in manifest order; returns the unreadable sources and why."""
    places = {row.source: at for at, row in enumerate(rows)}
    shape = (len(rows), *schema["shape"])
    encoded = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=np.uint8, shape=shape)
    unreadable: dict[str, str] = {}
    for raw in params.modality.read(root / RAW):
        if raw.source in places:
            try:
                encoded[places[raw.source]] = params.modality.encode(raw.content, schema)
            except ValueError as error:
                unreadable[raw.source] = str(error)
    encoded.flush()
    if unreadable and params.unreadable == "skip":
        kept = [at for source, at in places.items() if source not in unreadable]
        np.save(folder / "rows.npy", np.asarray(encoded)[kept])
    return unreadable


def _refuse_unreadable(unreadable: dict[str, str], params: PrepareParams) -> None:
    if unreadable and params.unreadable == "refuse":
        named = [f"data/{source}: {why}" for source, why in sorted(unreadable.items())]
        raise DataError(
            f"unreadable: {_some(named)}; repair or remove them, or set prepare.unreadable: skip"
        )


def _some(items: list[str]) -> str:
    more = f" and {len(items) - NAMED_AT_MOST} more" if len(items) > NAMED_AT_MOST else ""
    return "; ".join(items[:NAMED_AT_MOST]) + more


def _counts(rows: list[Row]) -> dict[str, int]:
    splits = Counter(row.split for row in rows)
    shown = Counter(row.split for row in rows if row.shown)
    return {
        "test": sum(row.split == "test" and row.label is not None for row in rows),
        "held_out_unlabelled": sum(row.split == "test" and row.label is None for row in rows),
        "validation": splits["validation"],
        "validation_shown": shown["validation"],
        "train": splits["train"],
        "train_shown": shown["train"],
    }


def _write_manifest(rows: list[Row], path: Path) -> None:
    columns = {
        "row": [row.digest for row in rows],
        "label": pyarrow.array([row.label for row in rows], pyarrow.string()),
        "split": [row.split for row in rows],
        "shown": [row.shown for row in rows],
        "source": [row.source for row in rows],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")


def main() -> int:
    """Runs the stage in the working directory; one clear line on standard error where it cannot."""
    root = Path.cwd()
    try:
        tree = read_tree(root / "params.yaml")
        if "prepare" not in tree:
            raise ParamsError("params.yaml: 'prepare' is missing")
        report = prepare(root, parse(PrepareParams, tree["prepare"], "prepare"))
    except StillmarkError as error:
        sys.stderr.write("".join(f"stillmark: {line}\n" for line in str(error).splitlines()))
        return os.EX_DATAERR
    sys.stdout.write(json.dumps(report["rows"]) + "\n")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
