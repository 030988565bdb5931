"""Quantization: the student, pruned or not, as an int8 file for the edge."""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator

from tasks import networks
from tasks.distillation import DistillationParams, distill_into
from tasks.errors import CompressionError
from tasks.exporters import MODEL_FILE, difference, logits_of
from tasks.exporters.onnx import run
from tasks.fake_quantization import fake_quantized
from tasks.keep import keep_classifier, keep_schema
from tasks.networks import SPEC_FILE, WEIGHTS_FILE, Classifier, Spec
from tasks.onnx_layers import plain_session
from tasks.quantizers import QUANTIZERS, Quantizer
from tasks.refs import ModelRef
from tasks.sections import Section
from tasks.stage import Work, stage

COMPARED_ROWS = 1024
STARTING_ROWS = 256
LARGEST_DIFFERENCE = 1e-3  # of an exported logit, relative to the largest


class QuantizeParams(Section):
    """Section `quantize` of params.yaml.

    Attributes:
        method: How weights and activations become int8.
        finetune: Distillation before that, in which the network computes as its int8 form will;
            null quantizes it as it is.
    """

    method: Annotated[Quantizer, QUANTIZERS]
    finetune: DistillationParams | None = None

    @model_validator(mode="after")
    def _can_be_imitated(self) -> "QuantizeParams":
        if self.finetune is not None and not self.method.weight_limit:
            raise ValueError(
                "finetune imitates static_int8 with per_channel: true, and no other method; take "
                "that, or set finetune to null"
            )
        return self


@stage("edge")
def quantize(
    work: Work, params: QuantizeParams, *, dense: ModelRef, **teachers: ModelRef
) -> dict[str, float]:
    """Quantizes the last float model's ONNX file, calibrated on training rows.

    Raises:
        CompressionError: There are no rows, no weights or no teachers to work with, or an operator
            cannot be quantized; names it.
    """
    source, target = work.files(dense) / MODEL_FILE, work.folder / MODEL_FILE
    inputs = _compared(work)
    metrics: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        tuned = source
        if params.finetune is not None:
            tuned = Path(scratch) / MODEL_FILE
            limit, network = params.method.weight_limit, work.network(dense)
            metrics = _finetune(work, params.finetune, limit, network, teachers, inputs, tuned)
            metrics["agreement_before_finetune"] = _agreement_untuned(params, source, inputs)
        params.method.quantize(tuned, target, inputs)
        metrics["export_difference"] = _export_difference(tuned, inputs)
    keep_schema(work.folder, work.rows)
    shutil.copy(source.with_name(SPEC_FILE), work.folder)
    return {
        **metrics,
        "agreement_with_float": agreement(source, target, inputs),
        "size_ratio": target.stat().st_size / source.stat().st_size,
        **fusion(target, inputs),
    }


def _export_difference(path: Path, inputs: NDArray[Any]) -> float:
    """Largest difference of a logit between a float file and the network stored beside it."""
    _, network = networks.load(path.parent)
    eager = logits_of(network, torch.from_numpy(inputs))
    return difference(eager, run(path, inputs), path, LARGEST_DIFFERENCE)


def agreement(one: Path, other: Path, inputs: NDArray[Any]) -> float:
    """Share of rows on which two ONNX files name the same class.

    Args:
        one: A file.
        other: Another.
        inputs: Rows as both take them, (N, …), at least one.
    """
    return float((run(one, inputs).argmax(1) == run(other, inputs).argmax(1)).mean())


def fusion(path: Path, inputs: NDArray[Any]) -> dict[str, float]:
    """What this host's fused integer kernels make of a file, against the file as it stands.

    Without optimisation ONNX Runtime turns int8 back into float and computes there. Kernels whose
    sums overflow (x86 without VNNI, 8-bit weights) show here.

    Args:
        path: A quantized ONNX file.
        inputs: Rows as it takes them, (N, …), at least one.

    Returns:
        `fused_difference`: the largest absolute difference of the logits, as a share of the largest
        absolute logit; `fused_agreement`: the share of rows with the same label.
    """
    fused = run(path, inputs)
    session = plain_session(str(path))
    plain = np.asarray(session.run(None, {session.get_inputs()[0].name: inputs})[0])
    largest = max(float(np.abs(plain).max()), float(np.finfo(np.float32).tiny))
    return {
        "fused_difference": float(np.abs(fused - plain).max()) / largest,
        "fused_agreement": float((fused.argmax(1) == plain.argmax(1)).mean()),
    }


def _compared(work: Work) -> NDArray[Any]:
    """Random training rows, as the network takes them."""
    rows = work.rows.train
    if not len(rows):
        raise CompressionError(
            "there are no training rows to calibrate and compare on; add rows to data/"
        )
    order = work.compute.generator("calibration")
    chosen = np.sort(torch.randperm(len(rows), generator=order)[:COMPARED_ROWS].numpy())
    stored = torch.from_numpy(rows.inputs[chosen])
    return work.rows.modality.to_network(stored).contiguous().numpy()


def _finetune(
    work: Work,
    params: DistillationParams,
    limit: int,
    dense: tuple[Spec, Classifier],
    teachers: dict[str, ModelRef],
    inputs: NDArray[Any],
    tuned: Path,
) -> dict[str, float]:
    """Trains a network on with rounded weights and activations; keeps the plain one."""
    if not teachers:
        raise CompressionError(
            "quantize.finetune has no teacher to learn from; hand it the chain's teachers, or set "
            "it to null"
        )
    spec, network = dense
    answering = [work.answering(ref) for ref in teachers.values()]
    start = torch.from_numpy(inputs[:STARTING_ROWS]).to(work.compute.device)
    with fake_quantized(network, limit, start):
        metrics = distill_into(network, answering, work.rows, params, work.compute, work.watch)
    keep_classifier(tuned.parent, spec, network, work.rows)
    shutil.copy(tuned.with_name(WEIGHTS_FILE), work.folder)
    return metrics


def _agreement_untuned(params: QuantizeParams, source: Path, inputs: NDArray[Any]) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        untuned = Path(scratch) / MODEL_FILE
        params.method.quantize(source, untuned, inputs)
        return agreement(source, untuned, inputs)
