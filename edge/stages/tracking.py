"""Track: log checked artifacts to MLflow, and read them back. MLflow is imported in a child process only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import MissingPackageError, ToolError

if TYPE_CHECKING:
    from edge.isolate import Progress

_MOST_RUNS = 1000
_TAG = "edgekit"


def _client(uri: str) -> Any:
    # MLflow asks for this where runs are kept in a folder, which needs no server and no database.
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError:
        raise MissingPackageError(
            "MLflow is not installed, which history is kept with.", hint="pip install 'edgekit[history]'"
        ) from None
    return MlflowClient(tracking_uri=uri)


def log(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Log runs and return their ids; `request`: uri, experiment, runs (each name, params, metrics, tags, files)."""
    progress(f"logging to MLflow at {request['uri']}", None)
    try:
        client = _client(request["uri"])
        known = client.get_experiment_by_name(request["experiment"])
        experiment = known.experiment_id if known else client.create_experiment(request["experiment"])
        return {"runs": [_log(client, experiment, run) for run in request["runs"]]}
    except MissingPackageError:
        raise
    except Exception as error:
        raise _failed(request["uri"], error) from error


def _log(client: Any, experiment: str, run: dict[str, Any]) -> str:
    made = client.create_run(experiment, run_name=run["name"], tags={_TAG: "check", **run["tags"]})
    identifier = str(made.info.run_id)
    for key, value in run["params"].items():
        client.log_param(identifier, key, value)
    for key, value in run["metrics"].items():
        client.log_metric(identifier, key, value)
    for path in run["files"]:
        client.log_artifact(identifier, path)
    client.set_terminated(identifier)
    return identifier


def read(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Return the runs of an experiment, the newest first; `request` has uri and experiment."""
    uri = request["uri"]
    progress(f"reading from MLflow at {uri}", None)
    folder = Path(uri.removeprefix("file://"))
    if uri.startswith("file:") and not folder.is_dir():
        return {"runs": []}
    try:
        client = _client(uri)
        known = client.get_experiment_by_name(request["experiment"])
        if known is None:
            return {"runs": []}
        runs = client.search_runs([known.experiment_id], max_results=_MOST_RUNS)
    except MissingPackageError:
        raise
    except Exception as error:
        raise _failed(uri, error) from error
    return {
        "runs": [
            {
                "id": r.info.run_id,
                "started_ms": r.info.start_time,
                "params": dict(r.data.params),
                "metrics": dict(r.data.metrics),
                "tags": {k: v for k, v in r.data.tags.items() if not k.startswith("mlflow.")},
            }
            for r in runs
            if r.data.tags.get(_TAG)
        ]
    }


def _failed(uri: str, error: Exception) -> ToolError:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ToolError(
        f"MLflow at {uri} does not take or give runs: {first.strip()[:300]}",
        hint="Check the address, and that the server is up; a folder needs no server.",
    )
