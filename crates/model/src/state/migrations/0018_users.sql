-- Who may come in. A password is there as its Argon2id hash, or not at all.
CREATE TABLE users (
    name          TEXT PRIMARY KEY,
    role          TEXT NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    grants        TEXT NOT NULL,
    password      TEXT,
    disabled      INTEGER NOT NULL CHECK (disabled IN (0, 1)),
    created_at_ms INTEGER NOT NULL,
    changed_at_ms INTEGER NOT NULL
) STRICT;

-- Who is signed in. Of the secret only its SHA-256 is here. No foreign key: the first user has sessions before its row.
CREATE TABLE sessions (
    id            TEXT PRIMARY KEY,
    secret        TEXT NOT NULL,
    user          TEXT NOT NULL,
    opened_at_ms  INTEGER NOT NULL,
    seen_at_ms    INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    idle_ms       INTEGER NOT NULL,
    came_from     TEXT,
    agent         TEXT NOT NULL
) STRICT;
CREATE INDEX sessions_by_user ON sessions (user);

-- What programs show instead of a password. Of the secret only its SHA-256 is here.
CREATE TABLE api_tokens (
    id            TEXT PRIMARY KEY,
    secret        TEXT NOT NULL,
    user          TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    label         TEXT NOT NULL,
    role          TEXT NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    grants        TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    used_at_ms    INTEGER
) STRICT;
CREATE INDEX api_tokens_by_user ON api_tokens (user);

-- Who did what, the newest entries.
CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms     INTEGER NOT NULL,
    author    TEXT NOT NULL,
    way       TEXT NOT NULL,
    came_from TEXT,
    action    TEXT NOT NULL,
    subject   TEXT NOT NULL,
    before    TEXT,
    after     TEXT
) STRICT;
