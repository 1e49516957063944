"""The tables of a preference store. Evidence only grows: triggers refuse every change and every deletion of it.

Accounts, sessions and leases are the state of the moment and may change. A new store is a store of version 1 with every upgrade
applied, so that an old store that was upgraded has the same tables as a new one.
"""

from __future__ import annotations

APPLICATION_ID = 0x53464F54  # "SFOT" in the file's header: how a store is told from another program's SQLite file
SCHEMA_VERSION = 2

TABLES_1 = """
CREATE TABLE prompts (
    id INTEGER PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,           -- sha256 of the canonical content; its first 16 digits are the key that data rows carry
    content TEXT NOT NULL,               -- JSON: a string, or a list of messages
    created REAL NOT NULL                -- seconds since 1970
) STRICT;

CREATE TABLE answers (
    id INTEGER PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,           -- sha256 of prompt, content, model, sampling and token ids
    prompt INTEGER NOT NULL REFERENCES prompts(id),
    content TEXT NOT NULL,               -- JSON, as in prompts
    token_ids TEXT,                      -- JSON list: the ids as they were sampled
    model TEXT NOT NULL,                 -- name of the model that wrote it, "" where not known
    model_hash TEXT NOT NULL,
    sampling TEXT NOT NULL,              -- JSON object: temperature, seed, ...
    created REAL NOT NULL,
    UNIQUE (id, prompt)
) STRICT;

CREATE TABLE pairs (
    id INTEGER PRIMARY KEY,
    prompt INTEGER NOT NULL,
    answer_a INTEGER NOT NULL,
    answer_b INTEGER NOT NULL,
    reason TEXT NOT NULL,                -- how it was selected
    created REAL NOT NULL,
    CHECK (answer_a <> answer_b),
    UNIQUE (answer_a, answer_b),
    FOREIGN KEY (answer_a, prompt) REFERENCES answers(id, prompt),
    FOREIGN KEY (answer_b, prompt) REFERENCES answers(id, prompt)
) STRICT;

CREATE TABLE votes (
    id INTEGER PRIMARY KEY,
    pair INTEGER NOT NULL REFERENCES pairs(id),
    choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie', 'both_bad', 'skip')),
    source TEXT NOT NULL,
    left_side TEXT CHECK (left_side IN ('a', 'b')),     -- which answer stood on the left; NULL: shown to nobody
    strength INTEGER CHECK (strength BETWEEN 1 AND 4),
    margin REAL,                         -- an imported margin, in place of a strength
    share REAL CHECK (share BETWEEN 0 AND 1),           -- an imported share of votes for the chosen answer
    idempotency_key TEXT NOT NULL UNIQUE,
    created REAL NOT NULL
) STRICT;
CREATE INDEX votes_by_pair ON votes(pair, source);

CREATE TABLE undos (
    id INTEGER PRIMARY KEY,
    vote INTEGER NOT NULL UNIQUE REFERENCES votes(id),
    source TEXT NOT NULL,
    created REAL NOT NULL
) STRICT;

CREATE VIEW valid_votes AS SELECT * FROM votes WHERE NOT EXISTS (SELECT 1 FROM undos WHERE undos.vote = votes.id);
"""

UPGRADE_TO_2 = """
CREATE TABLE identity (
    store TEXT NOT NULL                  -- random: tells this store from every other, so that a browser never mixes two
) STRICT;
INSERT INTO identity VALUES (lower(hex(randomblob(16))));

CREATE TABLE views (
    id INTEGER PRIMARY KEY,
    pair INTEGER NOT NULL REFERENCES pairs(id),
    slot INTEGER,                        -- which of the pair's votes is asked for, from 0; NULL: a hidden repeat
    source TEXT NOT NULL,                -- to whom the pair was shown
    left_side TEXT NOT NULL CHECK (left_side IN ('a', 'b')),
    created REAL NOT NULL
) STRICT;

ALTER TABLE votes ADD COLUMN kind TEXT NOT NULL DEFAULT 'vote' CHECK (kind IN ('vote', 'repeat', 'adjudication'));
ALTER TABLE votes ADD COLUMN view INTEGER REFERENCES views(id);  -- what the voter looked at; NULL: shown to nobody
ALTER TABLE votes ADD COLUMN seconds REAL;                       -- from showing the pair to the click
ALTER TABLE votes ADD COLUMN tags TEXT NOT NULL DEFAULT '[]';    -- JSON list of reasons
ALTER TABLE votes ADD COLUMN note TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX votes_by_view ON votes(view) WHERE view IS NOT NULL;
CREATE INDEX votes_by_source ON votes(source, id);

CREATE TABLE withdrawals (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,                -- whose votes; the newest row of a source holds
    taken_out INTEGER NOT NULL CHECK (taken_out IN (0, 1)),
    by_source TEXT NOT NULL,
    created REAL NOT NULL
) STRICT;
CREATE INDEX withdrawals_by_source ON withdrawals(source, id);

DROP VIEW valid_votes;
CREATE VIEW valid_votes AS SELECT * FROM votes WHERE NOT EXISTS (SELECT 1 FROM undos WHERE undos.vote = votes.id)
    AND coalesce((SELECT taken_out FROM withdrawals w WHERE w.source = votes.source ORDER BY w.id DESC LIMIT 1), 0) = 0;

CREATE TABLE annotators (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,           -- votes are of the source human:NAME
    role TEXT NOT NULL CHECK (role IN ('annotator', 'admin')),
    is_open INTEGER NOT NULL DEFAULT 1 CHECK (is_open IN (0, 1)),
    created REAL NOT NULL
) STRICT;

CREATE TABLE invitations (
    token_hash TEXT PRIMARY KEY,         -- sha256: the link itself is nowhere kept
    name TEXT,                           -- NULL: who joins chooses one; the name of an account: signs in to it
    role TEXT NOT NULL CHECK (role IN ('annotator', 'admin')),
    expires REAL NOT NULL,
    created REAL NOT NULL
) STRICT;

CREATE TABLE sessions (
    secret_hash TEXT PRIMARY KEY,        -- sha256 of the cookie
    annotator INTEGER NOT NULL REFERENCES annotators(id),
    expires REAL NOT NULL,
    created REAL NOT NULL
) STRICT;

CREATE TABLE leases (
    view INTEGER PRIMARY KEY REFERENCES views(id),
    pair INTEGER NOT NULL REFERENCES pairs(id),
    slot INTEGER,
    source TEXT NOT NULL,
    session TEXT NOT NULL,               -- the browser that holds it
    expires REAL NOT NULL,
    UNIQUE (pair, slot)
) STRICT;
CREATE INDEX leases_by_session ON leases(session);
"""


def _only_grow(*tables: str) -> str:
    return "".join(
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'a preference store only grows: {table} cannot be changed or deleted'); END;\n"
        for table in tables
        for verb in ("UPDATE", "DELETE")
    )


# scripts by the version that they lead to; each is applied in one transaction with the new version number
UPGRADES = {
    1: f"{TABLES_1}{_only_grow('prompts', 'answers', 'pairs', 'votes', 'undos')}PRAGMA application_id = {APPLICATION_ID};\n",
    2: f"{UPGRADE_TO_2}{_only_grow('identity', 'views', 'withdrawals')}",
}
