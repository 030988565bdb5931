"""What is run: flows, and the `stillmark` command."""

from tasks.settings import isolate

# Prefect and MLflow read their environment when they are imported, so this has to come first.
isolate()
