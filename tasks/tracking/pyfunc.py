"""A model as MLflow's pyfunc: what it answers with, and the code that serves it."""

import shutil
import tempfile
from pathlib import Path

import mlflow.pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Schema

PAYLOAD = "model"
NO_TIME = "1970-01-01 00:00:00.000000"
SIGNATURE = ModelSignature(
    outputs=Schema(
        [
            ColSpec(DataType.string, "label"),
            ColSpec(DataType.double, "probability"),
            ColSpec(Array(DataType.double), "probabilities"),
        ]
    )
)


def wrap(
    payload: Path, runtime: Path, target: Path, content: str, requirements: tuple[str, ...]
) -> None:
    """Makes an MLflow pyfunc of an exported model, with the code that serves it beside it.

    Args:
        payload: Folder with the model's files.
        runtime: The module that serves them; copied, so that the model needs no Stillmark.
        target: Folder to write.
        content: sha256 of the model's files, from which the envelope's id follows.
        requirements: Packages that the runtime needs beside numpy, pandas and onnxruntime.
    """
    # MLflow would write a random id and the time of day; equal models are to be equal files.
    envelope = Model(signature=SIGNATURE, model_uuid=content[:32], utc_time_created=NO_TIME)
    with tempfile.TemporaryDirectory() as scratch:
        module = f"stillmark_{runtime.stem}"
        copy = Path(shutil.copy(runtime, Path(scratch) / f"{module}.py"))
        data = Path(shutil.copytree(payload, Path(scratch) / PAYLOAD))
        mlflow.pyfunc.save_model(
            str(target),
            loader_module=module,
            data_path=str(data),
            code_paths=[str(copy)],
            mlflow_model=envelope,
            pip_requirements=["mlflow", "numpy", "onnxruntime", "pandas", *requirements],
        )


def payload_of(folder: Path) -> Path:
    """Where the stage's own files lie in a stored model."""
    wrapped = folder / "data" / PAYLOAD
    return wrapped if wrapped.is_dir() else folder / PAYLOAD
