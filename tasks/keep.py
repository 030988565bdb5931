"""What every classifier is stored as: weights to go on from, and a file that runs without torch."""

import json
from pathlib import Path

import torch

from tasks import networks
from tasks.exporters import MODEL_FILE
from tasks.exporters.onnx import Onnx
from tasks.networks import Classifier, Spec
from tasks.rows import Rows

SCHEMA_FILE = "schema.json"
EXAMPLE_ROWS = 16


def keep_classifier(folder: Path, spec: Spec, network: Classifier, rows: Rows) -> float:
    """Writes spec, weights, schema and an ONNX file that was checked against the network.

    Returns:
        Largest absolute difference between ONNX Runtime's logits and the eager ones.

    Raises:
        CompressionError: The network cannot be exported, or the two differ.
    """
    networks.save(folder, spec, network)
    keep_schema(folder, rows)
    _, plain = networks.load(folder)
    return Onnx().export(plain, example(rows), folder / MODEL_FILE)


def keep_schema(folder: Path, rows: Rows) -> None:
    """Writes what the runtime needs to know of the rows: classes and shape."""
    (folder / SCHEMA_FILE).write_text(
        json.dumps(rows.schema, indent=2, sort_keys=True), encoding="utf-8"
    )


def example(rows: Rows) -> torch.Tensor:
    """A few training rows as a network on the CPU takes them."""
    stored = torch.from_numpy(rows.train.inputs[:EXAMPLE_ROWS].copy())
    return rows.modality.to_network(stored).contiguous()
