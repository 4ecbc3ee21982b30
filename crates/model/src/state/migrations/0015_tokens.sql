-- What lets machines join. Of the secret only its SHA-256 is here.
CREATE TABLE tokens (
    id            TEXT PRIMARY KEY,
    secret        TEXT NOT NULL,
    role          TEXT NOT NULL CHECK (role IN ('server', 'witness')),
    name          TEXT,
    labels        TEXT NOT NULL,
    uses          INTEGER NOT NULL,
    uses_left     INTEGER NOT NULL CHECK (uses_left >= 0),
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL,
    revoked_at_ms INTEGER
) STRICT;

-- Who was let in, by which token, as which member. A key is the SHA-256 of a public key.
CREATE TABLE admissions (
    node_id   TEXT PRIMARY KEY,
    token_id  TEXT NOT NULL,
    key       TEXT NOT NULL UNIQUE,
    member_id INTEGER NOT NULL UNIQUE,
    name      TEXT NOT NULL,
    role      TEXT NOT NULL CHECK (role IN ('server', 'witness')),
    labels    TEXT NOT NULL,
    at_ms     INTEGER NOT NULL
) STRICT;

-- The number of the member that was let in last; none is given twice.
CREATE TABLE member_numbers (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    last INTEGER NOT NULL
) STRICT;
INSERT INTO member_numbers (id, last) VALUES (1, 0);

-- Nodes that were removed, the newest only: what they still say changes nothing.
CREATE TABLE removed_nodes (
    node_id TEXT PRIMARY KEY,
    name    TEXT NOT NULL,
    at_ms   INTEGER NOT NULL
) STRICT;
