"""A training run so small that it can be killed a hundred times, and a server that forks such runs after one import of torch.

Started by conftest.py. Reads a command a line on stdin, as JSON: {"start": job name, "arguments": {}, "environment": {},
"output": path} or {"wait": pid}; answers each with a line. A job's exit status is the one that the command line would give.
stage_runs.py serves the real stages in the same way.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from surefoot.config import Config
from surefoot.errors import SurefootError
from surefoot.faults import fault_point
from surefoot.runs import RunFolder, State, flatten_optimizer, restore_optimizer


def train(path: str, steps: int = 12, save_every: int = 2, pause: float = 0.0, seed: int = 0, nobody: bool = False) -> None:
    """A regression with Adam on data drawn from a checkpointed generator: every kind of state that a stage has."""
    if nobody and os.geteuid() == 0:
        os.setuid(65534)  # permissions mean nothing to root
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    names = [name for name, _ in net.named_parameters()]
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(seed)
    done, coefficient = 0, 0.1
    with RunFolder.open(Path(path), verb="sft", cfg=Config(seed=seed)) as folder:
        if folder.is_done:
            return
        if (state := folder.restore()) is not None:
            net.load_state_dict(state.tensors["policy"])
            restore_optimizer(optimizer, names, state.tensors["optimizer"])
            generator.set_state(state.tensors["rng"]["data"])
            done, coefficient = state.values["step"], state.values["coefficient"]
        for step in range(done + 1, steps + 1):
            fault_point("rollout", step)
            x = torch.randn(16, 4, generator=generator)
            loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            fault_point("backward", step)
            optimizer.step()
            fault_point("optimizer", step)
            coefficient *= 1.0 + 0.1 * loss.item()
            folder.record(step, {"loss": loss.item(), "coefficient": coefficient})
            folder.samples(step, [{"x": x[0].tolist()}])
            folder.timing(step, {"update": 0.0})
            time.sleep(pause)
            if step % save_every == 0 or step == steps or folder.stop_requested:
                tensors = {
                    "policy": net.state_dict(),
                    "optimizer": flatten_optimizer(optimizer, names),
                    "rng": {"data": generator.get_state()},
                }
                folder.save(step, State(tensors, {"step": step, "coefficient": coefficient}))
                folder.check_stop()
        with folder.final() as final:
            (final / "weights.json").write_text(json.dumps([p.detach().flatten().tolist() for p in net.parameters()]))
        folder.finish()


def limited(path: str, steps: int, limit: int) -> None:
    """As `train`, under a file-size limit in bytes (ulimit -f)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    train(path, steps)


def hold(path: str, orphan: bool = False) -> None:
    """Holds a run folder until killed. With `orphan`, a forked worker outlives it."""
    with RunFolder.open(Path(path), verb="ppo", cfg=Config()):
        if orphan and os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        Path(path, "held").touch()
        time.sleep(60)


def stuck(path: str) -> None:
    """Comes to no safe point for longer than any test waits."""
    with RunFolder.open(Path(path), verb="sft", cfg=Config()):
        Path(path, "held").touch()
        sys.stdout.write("not flushed")
        deadline = time.monotonic() + 60  # not for ever: a test that is itself killed leaves nothing running
        while time.monotonic() < deadline:
            time.sleep(0.01)


JOBS = {job.__name__: job for job in (train, limited, hold, stuck)}


def _start(command: Mapping[str, Any], jobs: Mapping[str, Callable[..., None]]) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(command["environment"])
        descriptor = os.open(command["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        jobs[command["start"]](**command["arguments"])
        status = 0
    except SurefootError as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        status = error.exit_status
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def serve(jobs: Mapping[str, Callable[..., None]], warm_up: Callable[[str], None]) -> None:
    """Answers commands until stdin ends. What `warm_up` imports in a temporary folder is imported once, not once a fork."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        warm_up(folder)
    print(json.dumps({"ready": True}), flush=True)
    while line := sys.stdin.readline():
        command = json.loads(line)
        if "start" in command:
            print(json.dumps(_start(command, jobs)), flush=True)
        else:
            print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(command["wait"], 0)[1])), flush=True)


if __name__ == "__main__":
    serve(JOBS, lambda folder: train(folder, steps=1))  # the first optimiser step imports the larger half of torch
