"""LiteRT (TensorFlow Lite), whose converter lives in an environment of its own.

Its packages drag pins in that do not go with Stillmark's. What crosses over are files: the network
as torch exported it (`.pt2`, which holds no code), the rows and the answers as arrays.
"""

import json
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from tasks.compute import laid_out
from tasks.errors import CompressionError, SetupError
from tasks.exporters import Int8Exporter, failed, logits_of

SETTING = "STILLMARK_LITERT_PYTHON"
PROGRAM_FILE, ROWS_FILE, JOB_FILE = "program.pt2", "rows.npy", "job.json"
WRITTEN_FILE, ANSWERS_FILE, REASON_FILE = "model.tflite", "answers.npy", "reason.json"

# Runs in the other environment, which knows nothing of Stillmark.
DRIVER = """
import json, os, sys
from pathlib import Path

folder = Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())


def convert():
    import numpy as np
    import torch
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    rows = np.load(folder / "rows.npy")
    written = str(folder / "model.tflite")
    network = torch.export.load(str(folder / "program.pt2")).module()
    litert_torch.convert(network, (torch.from_numpy(rows[:1]),)).export(written)
    # Numbers of tokens become int32.
    rows = rows.astype(Interpreter(written).get_input_details()[0]["dtype"])
    if job["precision"] == "int8":
        quantize(written, rows)
    model = Interpreter(written, num_threads=1)
    model.allocate_tensors()
    taken, given = model.get_input_details()[0]["index"], model.get_output_details()[0]["index"]
    answers = []
    for at in range(len(rows)):
        model.set_tensor(taken, rows[at : at + 1])
        model.invoke()
        answers.append(model.get_tensor(given)[0].copy())
    np.save(folder / "answers.npy", np.stack(answers))


def quantize(written, rows):
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer, recipe

    found = quantizer.Quantizer(written, recipe.static_wi8_ai8())
    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        found.update_quantization_recipe(".*", end, algorithm_key="no_quantize")
    (signature, ends), = Interpreter(written).get_signature_list().items()
    (name,) = ends["inputs"]
    ranges = {}
    # Row by row: over several it averages their ends, so that many rows saturate.
    for at in range(len(rows)):
        seen = found.calibrate({signature: [{name: rows[at : at + 1]}]}, num_threads=1)
        for tensor, new in seen.items():
            old = ranges.get(tensor, new)
            low, high = np.minimum(old["min"], new["min"]), np.maximum(old["max"], new["max"])
            ranges[tensor] = {"min": low, "max": high}
    found.quantize(ranges).export_model(written, overwrite=True)


try:
    convert()
except Exception as error:
    missing = isinstance(error, ImportError)
    reason = {"missing": missing, "type": type(error).__name__, "said": str(error)}
    (folder / "reason.json").write_text(json.dumps(reason))
    sys.exit(1)
"""


class LiteRt(Int8Exporter):
    """A `.tflite` for LiteRT, which phones and microcontrollers know; one row a call.

    int8 is static post-training quantization by LiteRT's own quantizer: weights with a scale per
    output channel, activations with one per tensor, from the smallest and largest value seen.

    Needs an environment that holds `litert-torch`, see docs/export.md.

    Attributes:
        python: Its interpreter; `stillmark convert` takes it from STILLMARK_LITERT_PYTHON.
    """

    suffix: ClassVar[str] = ".tflite"

    name: Literal["litert"] = "litert"
    # Where it lies on this machine says nothing about the file, so no record holds it.
    python: Path | None = Field(default=None, exclude=True)

    def export(self, network: nn.Module, example: Tensor, path: Path) -> float:
        """See `Exporter.export`."""
        network = laid_out(network, torch.contiguous_format)
        example = example.contiguous()
        python = self._python()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _hand_over(network, example, folder)
            (folder / JOB_FILE).write_text(json.dumps({"precision": self.precision}))
            _convert(python, folder, network)
            answers: NDArray[np.float32] = np.load(folder / ANSWERS_FILE, allow_pickle=False)
            shutil.copyfile(folder / WRITTEN_FILE, path)
        return self.checked(logits_of(network, example), answers, path)

    def _python(self) -> Path:
        if self.python is None:
            raise SetupError(
                "LiteRT's converter needs an environment of its own: make one with "
                f"`make litert-env`, then set {SETTING} to its python"
            )
        if not self.python.is_file():
            raise SetupError(
                f"{self.python} is no file; set {SETTING} to the python of an environment that "
                "holds litert-torch (`make litert-env`)"
            )
        return self.python.absolute()


def _hand_over(network: nn.Module, example: Tensor, folder: Path) -> None:
    """Writes network and rows for the other environment."""
    try:
        with warnings.catch_warnings(action="ignore"):
            # A copy: a row alone would be stored with all the others that share its memory.
            program = torch.export.export(network, (example[:1].clone(),))
            torch.export.save(program, str(folder / PROGRAM_FILE))
    except Exception as error:
        raise failed(network, "LiteRT", error) from error
    np.save(folder / ROWS_FILE, example.numpy(), allow_pickle=False)


def _convert(python: Path, folder: Path, network: nn.Module) -> None:
    """Runs the converter; what it prints is its own affair."""
    try:
        done = subprocess.run(  # noqa: S603 - our own words only
            # Isolated: packages of this environment must not reach that one.
            [str(python), "-I", "-c", DRIVER, str(folder)],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise SetupError(f"{python} cannot be run: {error.strerror}") from None
    if not done.returncode:
        return
    if not (folder / REASON_FILE).is_file():
        lines = done.stderr.strip().splitlines() or ["no word"]
        raise CompressionError(
            f"LiteRT's converter ended with {done.returncode}: {lines[-1].strip()}"
        )
    reason = json.loads((folder / REASON_FILE).read_text())
    if reason["missing"]:
        raise SetupError(
            f"{python} lacks LiteRT's converter ({reason['said']}); install it there: "
            f"{python} -m pip install litert-torch"
        )
    raise failed(network, "LiteRT", RuntimeError(reason["said"] or reason["type"]))
