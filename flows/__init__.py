"""What is run: flows, and the `stillmark` command."""

import gc

from tasks.settings import isolate

# Eight hundred thousand objects are imported, and stay. To look for garbage after every 700 new
# ones, as Python does by default, takes a tenth of the time.
gc.set_threshold(50_000)

# Prefect and MLflow read their environment when they are imported, so this has to come first.
isolate()
