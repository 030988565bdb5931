"""A promoted version's documents, kept beside it."""

import os
import tempfile
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks import documents
from tasks.refs import VersionRef
from tasks.settings import Settings
from tasks.succession import Succession
from tasks.versioning import Versions

FOLDER = "documents"


@task(name="document", cache_policy=NO_CACHE, persist_result=False)
def document(version: VersionRef) -> None:
    """Writes every document of a version into the run that made it, and sends its lineage.

    OpenLineage events go to the address in OPENLINEAGE_URL, where there is one.

    Raises:
        ArtifactError: A model or record of the chain is missing or is not as recorded.
        SetupError: The address does not take the events.
    """
    settings = Settings()
    succession = Succession.of(settings)
    versions = Versions.of(settings)
    chain = documents.gather(succession.tracking, versions, version, succession.ledger)
    with tempfile.TemporaryDirectory() as scratch:
        for name in documents.formats():
            documents.write(name, chain, Path(scratch) / FOLDER)
        succession.tracking.store_report(version.model.run_id, Path(scratch))
    if os.environ.get("OPENLINEAGE_URL"):
        from tasks.documents import openlineage  # noqa: PLC0415 - half a second, for the few

        openlineage.send(chain)
