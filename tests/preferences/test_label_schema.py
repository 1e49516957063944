"""Every route of `surefoot label` under bodies and parameters made from its own OpenAPI description: none is answered by 500."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from label_parts.client import Client
from label_parts.server import LabelServer
from surefoot.preferences import PreferenceStore
from surefoot.preferences.accounts import Accounts
from surefoot.preferences.app import Desk, Exchange, make_app
from surefoot.preferences.queue import Queue
from surefoot.preferences.security import Addresses

ENDS_THE_SESSION = ("/api/leave",)  # tried last
STARTS_A_TRAINING = ("/api/admin/reward",)
EXAMPLES = 25


def try_operation(operation: Any, client: Client, statuses: set[int]) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def answered(case: Any) -> None:
        own = {"Origin": client.address, "X-CSRF-Token": client.csrf}
        answer = case.call(
            base_url=client.address,
            headers={**own, **(case.headers or {})},
            cookies={**client.cookies, **(case.cookies or {})},
            allow_redirects=False,
        )
        statuses.add(answer.status_code)
        assert answer.status_code < 500, (operation.path, case.body, answer.text)

    answered()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_route_answers_500(tmp_path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="the extra dev brings it")
    path = tmp_path / "p.db"
    with PreferenceStore.open(path) as store:
        for i in range(200):
            prompt = store.add_prompt(f"Number {i}?")
            store.add_pair(prompt, *(store.add_answer(prompt, f"{word} {i}") for word in ("yes", "no")))
        exchange = Exchange({"trl": "jsonl"}, lambda *given: "", lambda *given: "")
        desk = Desk(store, Queue(store), Accounts(store), Addresses("127.0.0.1", 1), exchange=exchange)
        schema = schemathesis.openapi.from_dict(make_app(desk).app.openapi())
    operations = [found.ok() for found in schema.get_all_operations()]
    operations.sort(key=lambda operation: operation.path in ENDS_THE_SESSION)
    with LabelServer(path) as server:
        client = Client(server.address).enter(server.entrance)
        statuses: dict[str, set[int]] = {}
        for operation in operations:
            if operation.path not in STARTS_A_TRAINING:
                try_operation(operation, client, statuses.setdefault(operation.path, set()))
        assert server.stop() == 0
    assert {"/api/votes", "/api/undo", "/api/next", "/", "/admin", "/api/admin/settle"} <= statuses.keys()
    assert 200 in statuses["/api/next"] and 409 in statuses["/api/votes"]
