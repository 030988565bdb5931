"""The DVC stage: raw data → encoded rows, a schema and the row manifest.

Runs as `python -m tasks.prepare` from dvc.yaml. Imports no Prefect, MLflow, DVC or torch.
"""

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from pydantic import Field

from tasks.budget import LabelBudget, Row, fraction, show_labels
from tasks.errors import DataError, ParamsError, StillmarkError
from tasks.modalities import CONTENTS_FILE, MODALITIES, Modality, RawRow
from tasks.sections import parse, read_tree

RAW = Path("data")
PREPARED = Path("prepared")
NAMED_AT_MOST = 5


class PrepareParams(LabelBudget):
    """Section `prepare` of params.yaml, with the label budget.

    Attributes:
        modality: What the raw files hold.
        test_share: Share of rows that the digest puts into the test split, for ever.
        validation_share: Share of rows that the digest puts into the validation split.
        unreadable: `refuse` stops at rows that cannot be decoded, `skip` leaves them out; both name
            them.
        contradictory: `refuse` stops at one content that carries two labels, `skip` leaves such
            rows out (tables have some by nature); both name them.
    """

    modality: Annotated[Modality, MODALITIES]
    test_share: Annotated[float, Field(gt=0, lt=1)]
    validation_share: Annotated[float, Field(ge=0, lt=1)]
    unreadable: Literal["refuse", "skip"] = "refuse"
    contradictory: Literal["refuse", "skip"] = "refuse"


def split_of(digest: str, params: PrepareParams) -> str:
    """The split of a row, from its content digest alone, so that growing data moves no row."""
    at = fraction("split", digest)
    if at < params.test_share:
        return "test"
    return "validation" if at < params.test_share + params.validation_share else "train"


def prepare(root: Path, params: PrepareParams) -> dict[str, Any]:
    """Reads `root/data`, writes `root/prepared` and returns the report that is written with it.

    Files: `manifest.parquet` (row, label, split, shown, source), `rows.npy` (one entry per manifest
    row), `schema.json` (shape, classes, modality, budget), `report.json`; where the modality keeps
    them, `contents.parquet` (the rows' own bytes).

    Raises:
        DataError: The data is missing, empty, unreadable, contradicts itself or lacks labels.
    """
    rows, report = distinct_rows(params.modality.read(existing(root / RAW)), params)
    training = {row.source for row in rows if row.split == "train"}
    schema = params.modality.survey(content for _, content in _contents(root, params, training))
    folder = root / f"{PREPARED}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    unreadable = _encode(root, params, rows, schema, folder)
    _refuse_unreadable(unreadable, params)
    rows = show_labels([row for row in rows if row.source not in unreadable], params)
    schema["classes"] = sorted({row.label for row in rows if row.label is not None})
    schema["modality"] = params.modality.plain()
    schema["budget"] = budget_of(params).plain()
    report |= {"unreadable": sorted(unreadable), "rows": _counts(rows)}
    _write_manifest(rows, folder / "manifest.parquet")
    if params.modality.keeps_contents:
        _write_contents(root, params, rows, folder / CONTENTS_FILE)
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
        raise DataError(f"{folder.name}/ is empty; put your data there, or run `dvc pull`")
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
    conflicts: dict[str, str] = {}
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
            conflicts[digest] = f"{first.source} ('{first.label}') and {row.source} ('{row.label}')"
        split = "test" if "test" in {first.split, row.split} else first.split
        rows[digest] = replace(first, label=first.label or row.label, split=split)
    if conflicts and params.contradictory == "refuse":
        raise DataError(
            f"the same content carries two labels: {_some(list(conflicts.values()))}; remove one "
            "of each, or set prepare.contradictory: skip"
        )
    for digest in conflicts:
        del rows[digest]
    if not rows:
        raise DataError(
            "data/ holds no rows that this modality reads; see 'Your own data' in README.md"
        )
    ordered = sorted(rows.values(), key=lambda row: row.digest)
    return ordered, {"duplicates": duplicates, "contradictory": sorted(conflicts.values())}


def _within_train(digest: str, params: PrepareParams) -> str:
    return "validation" if fraction("split", digest) < params.validation_share else "train"


def budget_of(params: PrepareParams) -> LabelBudget:
    """The label budget alone, without what else the section says."""
    return LabelBudget(**{name: getattr(params, name) for name in LabelBudget.model_fields})


def _contents(
    root: Path, params: PrepareParams, wanted: Container[str]
) -> Iterator[tuple[str, bytes]]:
    found = params.modality.read(root / RAW)
    return ((raw.source, raw.content) for raw in found if raw.source in wanted)


def _encode(
    root: Path, params: PrepareParams, rows: list[Row], schema: dict[str, Any], folder: Path
) -> dict[str, str]:
    """Writes rows.npy in manifest order; returns the unreadable sources and why."""
    places = {row.source: at for at, row in enumerate(rows)}
    shape = (len(rows), *schema["shape"])
    dtype = np.dtype(schema.get("dtype", "uint8"))
    encoded = np.lib.format.open_memmap(folder / "rows.npy", mode="w+", dtype=dtype, shape=shape)
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


def _write_contents(root: Path, params: PrepareParams, rows: list[Row], path: Path) -> None:
    by_source = dict(_contents(root, params, {row.source for row in rows}))
    contents = pyarrow.array([by_source[row.source] for row in rows], pyarrow.binary())
    pyarrow.parquet.write_table(pyarrow.table({"content": contents}), path, compression="zstd")


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
