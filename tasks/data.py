"""The first task of the chain: the data version, prepared by DVC where anything changed."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.compute import ComputeParams
from tasks.refs import DataRef
from tasks.settings import Settings
from tasks.time_limit import limited
from tasks.transience import RETRIES
from tasks.versioning import Versions


@task(name="data", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def data(compute: ComputeParams) -> DataRef:
    """Brings the prepared rows up to date and names their version.

    Args:
        compute: Holds the time limit.

    Raises:
        DataError: The raw data is missing or was refused; one line says why.
        TimeLimitError: It took too long; nothing that it started goes on.
    """
    with limited(compute.time_limit_minutes, "stage data"):
        return Versions.of(Settings()).prepare()
