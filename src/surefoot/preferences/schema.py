"""The tables of a preference store. Rows are only ever added; triggers refuse every change and every deletion."""

from __future__ import annotations

APPLICATION_ID = 0x53464F54  # "SFOT" in the file's header: how a store is told from another program's SQLite file
SCHEMA_VERSION = 1

TABLES = """
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

TRIGGERS = "".join(
    f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, 'a preference store only grows: {table} cannot be changed or deleted'); END;\n"
    for table in ("prompts", "answers", "pairs", "votes", "undos")
    for verb in ("UPDATE", "DELETE")
)

SCHEMA = f"{TABLES}{TRIGGERS}PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {SCHEMA_VERSION};\n"
