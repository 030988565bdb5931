"""The first task of the chain: the data version, prepared by DVC where anything changed."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.refs import DataRef
from tasks.settings import Settings
from tasks.transience import RETRIES
from tasks.versioning import Versions


@task(name="data", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def data() -> DataRef:
    """Brings the prepared rows up to date and names their version.

    Raises:
        DataError: The raw data is missing or was refused; one line says why.
    """
    settings = Settings()
    return Versions.of(settings).prepare()
