"""The doctor says what is wrong and what to do, and fails exactly when something is."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from surefoot import doctor
from surefoot.cli import run
from surefoot.doctor import Finding, examine
from surefoot.doctor_rungs import Rung

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def healthy(monkeypatch, tmp_path):
    """A machine with room, an empty cache, and no load."""
    monkeypatch.setenv("SUREFOOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**40))
    monkeypatch.setattr(doctor, "NEEDED_MEMORY", 1)
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    return tmp_path


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.status for finding in findings}


def test_a_healthy_machine_passes_with_status_0(healthy, capsys):
    assert run(["doctor", "--up-to", "arithmetic"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all is well"
    assert {line.split()[0] for line in lines[:-1]} <= {"PASS", "NOTE"}
    assert any(line.startswith("PASS  rung 1, arithmetic: ") for line in lines)


def test_one_fault_fails_with_status_1_and_says_what_to_do(healthy, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**30))
    monkeypatch.setattr(doctor, "CHECKS", (doctor.check_python, doctor.check_disk))
    assert run(["doctor", "--up-to", "arithmetic"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 things need attention"
    assert lines[1].startswith("FAIL  disk, here: 1.0 GiB free at ")
    assert lines[1].endswith("The demo needs 5 GiB; free some, or set SUREFOOT_CACHE")


def test_one_thing_is_spoken_of_in_the_singular(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(doctor, "CHECKS", (lambda: [Finding("FAIL", "x", "bad", "Mend it")],))
    monkeypatch.setattr(doctor, "RUNGS", (Rung("arithmetic", lambda: (True, "right"), "", ""),))
    assert examine(said.append, "arithmetic") == 1
    assert [said[0], said[-1]] == ["FAIL  x: bad. Mend it", "1 thing needs attention"]
    assert said[1].startswith("PASS  rung 1, arithmetic: right (")


@pytest.mark.parametrize("asked, status", [("1", "NOTE"), ("999", "FAIL"), ("0", "FAIL"), ("two", "FAIL")])
def test_a_number_of_threads_that_does_not_fit_fails(healthy, monkeypatch, asked, status):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert statuses(doctor.check_threads())["OMP_NUM_THREADS"] == status


def test_spinning_threads_are_noted_on_a_busy_machine_only(healthy, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert statuses(doctor.check_threads())["OMP_WAIT_POLICY"] == "PASS"
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (999.0, 0.0, 0.0))
    assert statuses(doctor.check_threads())["OMP_WAIT_POLICY"] == "NOTE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert statuses(doctor.check_threads())["OMP_WAIT_POLICY"] == "PASS"


def test_too_little_memory_fails(healthy, monkeypatch):
    assert statuses(doctor.check_memory()) == {"memory": "PASS"}
    monkeypatch.setattr(doctor, "NEEDED_MEMORY", 2**60)
    assert statuses(doctor.check_memory()) == {"memory": "FAIL"}


def test_the_cache_is_empty_complete_or_damaged(healthy):
    from surefoot.embedded.fetch import build_once

    assert statuses(doctor.check_embedded_model()) == {"cache": "NOTE"}
    folder = build_once("model-v1.0", lambda partial: (partial / "weights").write_bytes(b"12345678") and None)
    assert statuses(doctor.check_embedded_model()) == {"cache, model-v1.0": "PASS"}
    (folder / "weights").write_bytes(b"12345679")  # the same size
    (finding,) = doctor.check_embedded_model()
    assert (finding.status, finding.found) == ("FAIL", "damaged (weights)")
    assert finding.advice == f"Remove {folder}; it is fetched again"
    (folder / "weights").unlink()
    assert doctor.check_embedded_model()[0].found == "damaged (incomplete)"


def test_a_folder_that_the_cache_did_not_make_is_not_judged(healthy):
    Path(healthy / "cache" / "mine").mkdir(parents=True)
    assert statuses(doctor.check_embedded_model()) == {"cache": "NOTE"}


def test_missing_extras_are_noted_with_the_command_that_adds_them(healthy, monkeypatch):
    monkeypatch.setattr(doctor, "EXTRAS", {"demo": ("yaml",), "label": ("yaml", "no_such_module")})
    assert [str(finding) for finding in doctor.check_extras()] == [
        "PASS  extra demo: installed",
        "NOTE  extra label: without no_such_module. `pip install 'surefoot[label]'` adds it",
    ]
