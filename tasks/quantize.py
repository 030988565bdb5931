"""Quantization: the student, pruned or not, as an int8 file for the edge."""

import shutil
from typing import Annotated

import numpy as np
import torch

from tasks.exporters import MODEL_FILE
from tasks.exporters.onnx import run
from tasks.keep import keep_schema
from tasks.networks import SPEC_FILE
from tasks.quantizers import QUANTIZERS, Quantizer
from tasks.refs import ModelRef
from tasks.sections import Section
from tasks.stage import Work, stage

COMPARED_ROWS = 1024


class QuantizeParams(Section):
    """Section `quantize` of params.yaml.

    Attributes:
        method: How weights and activations become int8.
    """

    method: Annotated[Quantizer, QUANTIZERS]


@stage("edge")
def quantize(work: Work, params: QuantizeParams, *, dense: ModelRef) -> dict[str, float]:
    """Quantizes the last float model's ONNX file, calibrated on training rows."""
    source, target = work.files(dense) / MODEL_FILE, work.folder / MODEL_FILE
    rows = work.rows.train
    order = work.compute.generator("calibration")
    chosen = np.sort(torch.randperm(len(rows), generator=order)[:COMPARED_ROWS].numpy())
    inputs = (
        work.rows.modality.to_network(torch.from_numpy(rows.inputs[chosen])).contiguous().numpy()
    )
    params.method.quantize(source, target, inputs)
    keep_schema(work.folder, work.rows)
    shutil.copy(work.files(dense) / SPEC_FILE, work.folder)
    same = run(source, inputs).argmax(1) == run(target, inputs).argmax(1)
    return {
        "agreement_with_float": float(same.mean()),
        "size_ratio": target.stat().st_size / source.stat().st_size,
    }
