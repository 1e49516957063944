"""The load test and the soak of `surefoot label`, small: no vote lost or doubled, and a server that does not grow."""

from __future__ import annotations

import os
import sys

import pytest

from label_parts.load import Load, run
from label_parts.server import Resources
from label_parts.soak import growth, soak

FULL = os.environ.get("SUREFOOT_SOAK") == "1"


def test_no_vote_is_lost_or_doubled_when_the_server_is_killed_under_load(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for annotators, which are processes
    figures = run(Load(20, 10_000, 200, 0.25) if FULL else Load(annotators=4, votes=120, kills=4, think=0.05), tmp_path)
    assert figures["integrity_check"] == "ok"
    assert (figures["lost"], figures["doubled"], figures["refused"], figures["never_acknowledged"]) == (0, 0, 0, 0)
    assert figures["judged_twice_by_one_person"] == 0
    assert figures["acknowledged"] == figures["stored"] == (10_000 if FULL else 120)
    assert figures["kills"] == (200 if FULL else 4)


def test_every_kind_of_request_is_answered_as_it_should_be_and_the_server_does_not_grow(tmp_path):
    figures = soak(tmp_path, 50_000 if FULL else 400, visitors=4 if FULL else 2)
    assert figures["unexpected"] == []
    assert figures["requests"] == (50_000 if FULL else 400)
    assert set(figures["by_kind"]) == {"vote", "next", "undo", "replay", "page", "forged post", "stranger", "admin's page"}
    assert (figures["lost"], figures["doubled"], figures["integrity_check"]) == (0, 0, "ok")
    assert figures["votes"] == figures["by_kind"]["vote"] and figures["server_exit_status"] == 0
    assert len(figures["samples"]) == 50 and figures["rss_mib"][0] > 20 and figures["threads"][0] >= 1
    assert figures["is_flat"] or not FULL  # in so short a run it is still warming up


@pytest.mark.parametrize(
    ("grown", "votes", "flat"),
    [
        ((0, 0, 0), 0, True),
        ((4, 1, 1), 0, True),
        ((6, 0, 0), 0, False),
        ((6, 0, 0), 10_000, True),  # 6,000 votes between, 0.75 KiB each: 4.4 MiB
        ((10, 0, 0), 10_000, False),
        ((0, 5, 0), 10_000, False),
        ((0, 0, 5), 0, False),
    ],
)
def test_growth_after_the_warming_up_is_told(grown, votes, flat):
    seen = [Resources(60, 5, 1)] * 2 + [Resources(100, 20, 8)] * 6 + [Resources(100 + grown[0], 20 + grown[1], 8 + grown[2])] * 2
    assert growth(seen, votes)["is_flat"] == flat
