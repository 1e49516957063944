"""Accounts: a link works once, a name is one person's, a closed account is out at once, a copied store opens no door."""

from __future__ import annotations

import pytest

from surefoot.errors import DataError
from surefoot.preferences.accounts import Accounts, Annotator

DAY = 86_400


@pytest.fixture
def accounts(store):
    return Accounts(store)


def test_an_invitation_works_once(accounts):
    token = accounts.invite("annotator")
    secret = accounts.join(token, "mei")
    assert accounts.session(secret) == Annotator("mei", "annotator")
    with pytest.raises(DataError, match="used up or too old"):
        accounts.join(token, "mei2")


def test_an_invitation_ends_after_seven_days_and_a_session_after_thirty(store):
    now = [0.0]
    accounts = Accounts(store, clock=lambda: now[0])
    token, late = accounts.invite("annotator"), accounts.invite("annotator")
    secret = accounts.join(token, "mei")
    now[0] = 7 * DAY + 1
    with pytest.raises(DataError, match="used up or too old"):
        accounts.join(late, "bob")
    now[0] = 30 * DAY - 10
    assert accounts.session(secret) is not None
    now[0] = 30 * DAY + 10
    assert accounts.session(secret) is None


def test_a_name_that_has_votes_or_an_account_is_taken(store, pair, accounts):
    store.vote(pair, "a", source="human:old")
    accounts.join(accounts.invite("annotator"), "mei")
    for name in ("mei", "old"):
        with pytest.raises(DataError, match=f"the name {name} is taken"):
            accounts.join(accounts.invite("annotator"), name)


def test_a_link_with_a_name_signs_in_to_that_account_alone(accounts):
    accounts.join(accounts.invite("annotator", "mei"), "mei")
    with pytest.raises(DataError, match="is for mei"):
        accounts.join(accounts.invite("annotator", "mei"), "bob")
    again = accounts.join(accounts.invite("annotator", "mei"), "mei")
    assert accounts.session(again) == Annotator("mei", "annotator")


def test_a_closed_account_is_out_at_once_and_the_last_admin_stays(accounts):
    admin = accounts.sign_in("boss", "admin")
    secret = accounts.sign_in("mei", "annotator")
    assert accounts.session(secret) is not None
    accounts.set_open("mei", False)
    assert accounts.session(secret) is None and accounts.remembered(secret) == (None,)
    with pytest.raises(DataError, match="account mei is closed"):
        accounts.join(accounts.invite("annotator", "mei"), "mei")
    accounts.set_open("mei", True)
    assert accounts.session(secret) is None  # what was shut stays shut: a new link opens another
    accounts.set_open("mei", False)
    with pytest.raises(DataError, match="boss is the last admin"):
        accounts.set_open("boss", False)
    assert accounts.session(admin) is not None
    with pytest.raises(DataError, match="no account 'nobody'"):
        accounts.set_open("nobody", True)


@pytest.mark.parametrize("name", ["", "Ann", "a b", "../x", "x" * 65, "a\n", "<b>", "é"])
def test_a_name_that_could_be_more_than_a_name_is_refused(accounts, name):
    with pytest.raises(DataError, match="is not allowed"):
        accounts.join(accounts.invite("annotator"), name)


def test_no_secret_is_in_the_store(store, accounts):
    secrets = [accounts.invite("annotator"), accounts.sign_in("mei", "annotator")]
    store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw = store.path.read_bytes()
    assert b"mei" in raw
    assert not any(secret.encode() in raw for secret in secrets)


def test_signing_out_ends_one_session_alone(accounts):
    one, other = accounts.sign_in("mei", "annotator"), accounts.sign_in("mei", "annotator")
    accounts.sign_out(one)
    assert accounts.session(one) is None and accounts.session(other) is not None
