"""The injector fires exactly where it is told to, and refuses what it would never fire on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import surefoot.faults
from surefoot.faults import InjectedFault, fault_point


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUREFOOT_FAULT", raising=False)
    assert fault_point("backward", 3) is None


def test_it_fires_at_its_site_and_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_FAULT", "backward:3:nan, optimizer:*:inf")
    assert [fault_point("backward", step) for step in (2, 3, 30)] == [None, "nan", None]
    assert fault_point("rollout", 3) is None
    assert fault_point("optimizer", 99) == "inf"


def test_raise_is_no_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_FAULT", "rollout:1:raise")
    with pytest.raises(InjectedFault, match="injected at rollout, step 1"):
        fault_point("rollout", 1)


@pytest.mark.parametrize(
    "spec", ["backward", "backward:3", "backward:three:nan", "backward::nan", ":3:nan", "a:1:nan,", "a:1:nan:x"]
)
def test_a_malformed_fault_is_refused_at_any_site(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_FAULT", spec)
    with pytest.raises(ValueError, match="is not site:step:kind"):
        fault_point("nowhere", 0)


def test_term_sends_the_signal_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        monkeypatch.setenv("SUREFOOT_FAULT", "backward:3:term")
        assert fault_point("backward", 3) is None
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_kill_leaves_no_time_for_anything_and_the_injector_imports_no_torch() -> None:
    code = """
import sys
from surefoot.faults import fault_point
print("torch" in sys.modules, flush=True)
fault_point("a", 1)
print("alive")
"""
    source = str(Path(surefoot.__file__).parents[1])
    environment = {**os.environ, "SUREFOOT_FAULT": "a:1:kill", "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "False\n")
