"""Conversion: a registered model as a file for another runtime, checked on real rows.

The registry is only read. What is exported is a float network: the version's own, or, of an edge
model, the one that it was quantized from.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from tasks import networks
from tasks.errors import CompressionError, DataError, SetupError
from tasks.exporters import Exporter
from tasks.lineage.digests import canonical, digest_of_file
from tasks.lineage.record import Record
from tasks.networks import WEIGHTS_FILE, Classifier, Spec
from tasks.refs import VersionRef
from tasks.rows import Rows
from tasks.tracking import Tracking, payload_of

COMPARED_ROWS = 512
FEWEST_ROWS = 2
DENSE = "dense"
NOTE_SUFFIX = ".json"


class Origin(BaseModel):
    """A stored model.

    Attributes:
        role: What it is in the chain.
        record: sha256 of its lineage record.
        content: sha256 over its files.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    role: str
    record: str
    content: str


class Converted(BaseModel):
    """A file for another runtime, and where it comes from; kept beside it as JSON.

    Attributes:
        name: The registered model that was asked for.
        version: Its version.
        content: sha256 over that version's files.
        record: sha256 of its lineage record.
        network: The float network that was exported.
        exporter: The exporter with its fields.
        rows: Training rows that the file was checked, and int8 ranges were read, on.
        difference: Largest absolute difference of the logits on these, the file in its runtime
            against the eager float network.
        file: Name of the file.
        size_bytes: Its size.
        sha256: Its digest.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    format: Literal["stillmark-export/1"] = "stillmark-export/1"
    name: str
    version: int
    content: str
    record: str
    network: Origin
    exporter: dict[str, Any]
    rows: int
    difference: float
    file: str
    size_bytes: int
    sha256: str

    @property
    def sentence(self) -> str:
        """What was made of what, in one line."""
        fields = {name: value for name, value in self.exporter.items() if name != "name"}
        how = ", ".join(f"{name} {value}" for name, value in fields.items())
        return (
            f"{self.file}: {self.exporter['name']} ({how}) of {self.name} version {self.version}, "
            f"{self.size_bytes / 1024:.1f} KiB; its logits differ from those that the "
            f"{self.network.role} has in torch by at most {self.difference:.3g} on {self.rows} "
            "training rows"
        )


def convert(
    tracking: Tracking, version: VersionRef, exporter: Exporter, rows: Rows, out: Path
) -> Converted:
    """Writes a version's network for another runtime, and a note of its origin beside it.

    Both files appear whole or not at all. The note is named as the file, with `.json` added.

    Args:
        tracking: Where the version is stored.
        version: What to convert.
        exporter: Into what.
        rows: Where training rows for the check, and for int8 ranges, come from.
        out: File to write.

    Raises:
        ArtifactError: The version or its float network is missing or not as recorded.
        CompressionError: It has no float network, which cannot be exported, or the file differs.
        DataError: The prepared rows are not such as the network takes, or fewer than 2.
        SetupError: The file cannot be written, or the format needs what is not installed.
    """
    _refuse_place(tracking, out)
    source = _source(tracking, version)
    spec, network = source.load()
    example = _example(spec, version, rows)
    with _folder_beside(out) as scratch:
        written = scratch / out.name
        note = _note_of(written)
        difference = exporter.export(network, example, written)
        digest = digest_of_file(written)
        converted = Converted(
            name=version.name,
            version=version.version,
            content=version.model.content,
            record=version.model.record,
            network=source.origin,
            exporter=exporter.plain(),
            rows=len(example),
            difference=difference,
            file=out.name,
            size_bytes=digest.size_bytes,
            sha256=digest.sha256,
        )
        note.write_bytes(canonical(converted.model_dump(mode="json")))
        written.replace(out)
        note.replace(_note_of(out))
    return converted


@dataclass(frozen=True)
class _Source:
    """A stored float network."""

    record: Record
    folder: Path

    @property
    def origin(self) -> Origin:
        record = self.record
        return Origin(role=record.role, record=record.digest, content=record.content)

    def load(self) -> tuple[Spec, Classifier]:
        spec, network = networks.load(self.folder)
        if not spec.outputs:
            raise CompressionError(
                f"the {self.record.role} is a body that names no class; convert a classifier"
            )
        return spec, network


def _source(tracking: Tracking, version: VersionRef) -> _Source:
    """The nearest float network along the quantized ones."""
    model_id, digest = version.model.model_id, version.model.record
    while True:
        record = tracking.record_of(model_id, digest)
        folder = payload_of(tracking.stored_at(str(model_id)))
        if (folder / WEIGHTS_FILE).is_file():
            return _Source(record, folder)
        dense = next((parent for parent in record.parents if parent.role == DENSE), None)
        if dense is None:
            raise CompressionError(
                f"{version.name} version {version.version} holds no weights that torch can load, "
                "and was quantized from none; convert a network, for example the student"
            )
        model_id, digest = dense.model_id, dense.record


def _example(spec: Spec, version: VersionRef, rows: Rows) -> Tensor:
    """Training rows as the network takes them, the first by their digests."""
    train, today = rows.train, rows.encoding.input_shape
    if spec.shape != today:
        raise DataError(
            f"{version.name} version {version.version} takes rows of shape {spec.shape}, those "
            f"prepared today have {today}; restore its data version, or retrain"
        )
    if len(train) < FEWEST_ROWS:
        raise DataError(
            f"there are {len(train)} training rows, {FEWEST_ROWS} or more are needed to check the "
            "file on; add rows to data/"
        )
    chosen = train.take(np.argsort(train.names, kind="stable")[:COMPARED_ROWS])
    return rows.modality.to_network(torch.from_numpy(chosen.inputs)).contiguous()


def _note_of(out: Path) -> Path:
    return out.with_name(out.name + NOTE_SUFFIX)


def _refuse_place(tracking: Tracking, out: Path) -> None:
    for path in (out, _note_of(out)):
        if path.is_dir():
            raise SetupError(f"{path} is a folder; name another file to write")
    if out.resolve().is_relative_to(tracking.home.resolve()):
        raise SetupError(f"{tracking.home} holds what Stillmark keeps; write {out.name} elsewhere")


@contextmanager
def _folder_beside(out: Path) -> Iterator[Path]:
    """A folder on the same disk, so that what is made in it can be moved in one step."""
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
            yield Path(scratch)
    except OSError as error:
        raise SetupError(f"{out} cannot be written: {error.strerror or error}") from None
