"""Names of the tags that Stillmark writes on runs, models and versions."""

KEY_TAG, REF_TAG = "stillmark.key", "stillmark.ref"
CONTENT_TAG, RECORD_TAG = "stillmark.content", "stillmark.record"
EVALUATION_TAG, DATA_TAG = "stillmark.evaluation", "stillmark.data"
STAGE_TAG, REASON_TAG = "stillmark.stage", "stillmark.reason"
OUTCOME_TAG, PROCESS_TAG = "stillmark.outcome", "stillmark.process"
COLLECTED_TAG, BACKFILL_TAG = "stillmark.collected", "stillmark.backfill"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's page shows such runs below their parent
