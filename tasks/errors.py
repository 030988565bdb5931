"""Everything that Stillmark raises on purpose.

    StillmarkError
    ├── ParamsError      params.yaml: a name, a type or a value is wrong
    ├── DataError        the raw data or the prepared rows cannot be used
    ├── SetupError       this machine or its services are not as the run needs them
    │   └── BusyError        another run of the project is going on
    ├── TrainingError    a training loop cannot go on
    │   └── TimeLimitError   a stage took longer than it may
    ├── CompressionError a network cannot be pruned, quantized or exported as asked
    ├── ArtifactError    stored bytes are missing or are not those recorded
    ├── RegistryError    a model, version or alias is not there, or cannot be written
    └── LedgerError      the ledger cannot be read or written, or is not what it was
        └── ConflictError    somebody else came first

Each message is one line: what was found, what was expected, what to do.
"""


class StillmarkError(Exception):
    """Root of the tree: catch this to catch whatever Stillmark reports."""


class ParamsError(StillmarkError):
    """A parameter is unknown, missing, of the wrong type or out of range."""


class DataError(StillmarkError):
    """The raw data or the prepared rows cannot be used as they are."""


class SetupError(StillmarkError):
    """The machine, a folder's permissions, a port or a database stands in the way."""


class BusyError(SetupError):
    """Another run of the same project is going on; this one gave way."""


class TrainingError(StillmarkError):
    """A training loop cannot go on (for example the loss is no longer finite)."""


class TimeLimitError(TrainingError):
    """A stage took longer than `compute.time_limit_minutes`."""


class CompressionError(StillmarkError):
    """A network cannot be pruned, quantized or exported as asked."""


class ArtifactError(StillmarkError):
    """Stored bytes are missing or differ from their recorded digest."""


class RegistryError(StillmarkError):
    """A registered model, version or alias is missing or cannot be written."""


class LedgerError(StillmarkError):
    """The ledger cannot be read or written, or is not what it was."""


class ConflictError(LedgerError):
    """Somebody else's append, or their verdict on a request, came first."""
