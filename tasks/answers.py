"""Any stored model, network or estimator, as a function from rows to probabilities."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

from tasks import estimators
from tasks.modalities import Modality
from tasks.rows import Part

Ask = Callable[[Part], NDArray[np.float32]]


def asking(modality: Modality, folder: Path) -> Ask:
    """A stored model that gives class probabilities (N, classes) of rows.

    Args:
        modality: Of the rows; networks run as they do on the edge.
        folder: Holds the model's files.
    """
    if estimators.is_stored(folder):
        method, model = estimators.load(folder)
        return lambda part: scipy.special.softmax(method.logits(model, part), axis=1)
    classifier = modality.classifier(folder)
    return lambda part: classifier.probabilities(np.asarray(part.inputs))
