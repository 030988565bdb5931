"""Models and metrics, in MLflow: the only package that imports it."""

from tasks.tracking.disposal import Disposal, local_folder
from tasks.tracking.failures import clear_errors
from tasks.tracking.pyfunc import PAYLOAD, payload_of, wrap
from tasks.tracking.registry import Registry
from tasks.tracking.runs import Runs
from tasks.tracking.tags import (
    BACKFILL_TAG,
    COLLECTED_TAG,
    CONTENT_TAG,
    DATA_TAG,
    EVALUATION_TAG,
    KEY_TAG,
    OUTCOME_TAG,
    PARENT_TAG,
    PROCESS_TAG,
    REASON_TAG,
    RECORD_TAG,
    REF_TAG,
    STAGE_TAG,
)
from tasks.tracking.validation import validate
from tasks.tracking.values import Figures, Made, Stored

__all__ = [
    "BACKFILL_TAG",
    "COLLECTED_TAG",
    "CONTENT_TAG",
    "DATA_TAG",
    "EVALUATION_TAG",
    "KEY_TAG",
    "OUTCOME_TAG",
    "PARENT_TAG",
    "PAYLOAD",
    "PROCESS_TAG",
    "REASON_TAG",
    "RECORD_TAG",
    "REF_TAG",
    "STAGE_TAG",
    "Figures",
    "Made",
    "Stored",
    "Tracking",
    "clear_errors",
    "local_folder",
    "payload_of",
    "validate",
    "wrap",
]


class Tracking(Runs, Registry, Disposal):
    """One MLflow store, opened once: its runs, its registry and what it can be told to forget.

    Each of the three works on a store by itself and knows nothing of the others.

    Args:
        uri: Tracking and registry address.
        home: Where a local store keeps its artifacts.

    Raises:
        SetupError: The store does not answer, or its database is locked.
    """
