"""MLflow: where runs live, what each run records, and how what could not be sent gets there later."""

import os

# A server that is gone must be noticed soon: MLflow's own defaults keep trying for minutes. Delivery is retried by us.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
