"""The load test of `surefoot label`, small: several annotators at once, a server that dies, no vote lost or doubled."""

from __future__ import annotations

import os
import sys

from label_parts.load import Load, run

FULL = os.environ.get("SUREFOOT_SOAK") == "1"


def test_no_vote_is_lost_or_doubled_when_the_server_is_killed_under_load(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for annotators, which are processes
    figures = run(Load(20, 10_000, 200, 0.25) if FULL else Load(annotators=4, votes=120, kills=4, think=0.05), tmp_path)
    assert figures["integrity_check"] == "ok"
    assert (figures["lost"], figures["doubled"], figures["refused"], figures["never_acknowledged"]) == (0, 0, 0, 0)
    assert figures["judged_twice_by_one_person"] == 0
    assert figures["acknowledged"] == figures["stored"] == (10_000 if FULL else 120)
    assert figures["kills"] == (200 if FULL else 4)
