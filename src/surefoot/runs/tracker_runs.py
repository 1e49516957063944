"""One run in TensorBoard, W&B, Trackio or MLflow, through its own library: begun or gone on with, told steps, closed.

Where a run goes to is said the library's own way, by its environment variables. Libraries are imported when they are asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["done", "interrupted", "failed"]
PROJECT = "surefoot"
TIMEOUT = 30  # seconds that a server has before its tracker is given up
UPLOAD_TIMEOUT = 300  # seconds that W&B has at the end of a run for what it has not sent; its files stay for `wandb sync`


@dataclass(frozen=True, slots=True)
class Identity:
    """What a tracker calls the run. `run_id` is that of an earlier process, or None; `settings` are those of config.yaml."""

    folder: Path
    run_id: str | None
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The last two parts of the folder, such as runs/ppo."""
        return "/".join(self.folder.parts[-2:])

    @property
    def rendered(self) -> str:
        """config.yaml, as text."""
        return (self.folder / "config.yaml").read_text("utf-8")


class TrackerRun(Protocol):
    """An open run of one tracker. Every method may raise whatever the library raises."""

    run_id: str

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def finish(self, status: Status) -> None: ...


class TensorBoardRun:
    """Event files in RUN/tensorboard, one record a step, so that a step is there whole or not at all."""

    def __init__(self, identity: Identity) -> None:
        from torch.utils.tensorboard import FileWriter
        from torch.utils.tensorboard.summary import text

        folder = identity.folder / "tensorboard"
        self.run_id = folder.name
        self._writer = FileWriter(str(folder))
        if identity.run_id is None:
            self._writer.add_summary(text("config", f"```\n{identity.rendered}```"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        self._writer.add_summary(Summary(value=values), step)
        self._writer.flush()

    def finish(self, status: Status) -> None:
        self._writer.close()


class WandbRun:
    """WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE and the rest of W&B's variables hold. Offline files lie in RUN/wandb."""

    def __init__(self, identity: Identity) -> None:
        import wandb

        self.run_id = identity.run_id or secrets.token_hex(4)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.run_id,
            name=identity.name,
            dir=str(identity.folder),
            config=dict(identity.settings),
            resume="allow",
            settings=wandb.Settings(
                console="off",
                init_timeout=TIMEOUT,
                login_timeout=TIMEOUT,
                finish_timeout=UPLOAD_TIMEOUT,
                finish_timeout_raises=True,
                reinit="create_new",  # several runs may be open at once
                x_disable_stats=True,
            ),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step, commit=False)  # a second line of one step joins the first

    def finish(self, status: Status) -> None:
        self._run.finish(exit_code=0 if status == "done" else 1)


class TrackioRun:
    """A local data base (TRACKIO_DIR), a Space (TRACKIO_SPACE_ID) or a server (TRACKIO_SERVER_URL)."""

    def __init__(self, identity: Identity) -> None:
        import trackio

        self.run_id = identity.run_id or f"{identity.name}-{secrets.token_hex(4)}"  # Trackio knows a run by its name
        with _talking_to_stderr():
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT),
                name=self.run_id,
                config=dict(identity.settings),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self, status: Status) -> None:
        with _talking_to_stderr():
            self._run.finish()


class MlflowRun:
    """MLFLOW_TRACKING_URI says where; the experiment is MLFLOW_EXPERIMENT_NAME, else surefoot."""

    def __init__(self, identity: Identity) -> None:
        for name, value in (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", 1), ("MLFLOW_HTTP_REQUEST_TIMEOUT", TIMEOUT)):
            os.environ.setdefault(name, str(value))  # by default a server that is gone holds a run up for minutes
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        self._names: dict[str, str] = {}
        if identity.run_id is not None:
            self.run_id = identity.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(experiment)
        number = self._client.create_experiment(experiment) if found is None else found.experiment_id
        self.run_id = self._client.create_run(number, run_name=identity.name).info.run_id
        settings = [Param(key, str(value)) for key, value in _flat(identity.settings)]
        for start in range(0, len(settings), 100):  # as many as one request may hold
            self._client.log_batch(self.run_id, params=settings[start : start + 100])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(self._name(key), value, now, step) for key, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=batch)

    def _name(self, key: str) -> str:
        """The key in the letters that MLflow allows; others, as in rewards/regex:^a+$/mean, become underscores."""
        if key not in self._names:
            self._names[key] = re.sub(r"[^\w\-. :/]", "_", key)
        return self._names[key]

    def finish(self, status: Status) -> None:
        self._client.set_terminated(self.run_id, {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}[status])


@contextlib.contextmanager
def _talking_to_stderr() -> Iterator[None]:
    """Stdout is for what a verb was asked for."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
