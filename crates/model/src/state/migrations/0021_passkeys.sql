-- What devices and password managers keep for people, shown instead of a password. Only public halves are here.
CREATE TABLE passkeys (
    id            TEXT PRIMARY KEY,
    user          TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    label         TEXT NOT NULL,
    domain        TEXT NOT NULL,
    credential    BLOB NOT NULL UNIQUE,
    handle        BLOB NOT NULL,
    key           BLOB NOT NULL,
    transports    INTEGER NOT NULL,
    counter       INTEGER NOT NULL,
    backup        TEXT NOT NULL CHECK (backup IN ('never', 'possible', 'done')),
    created_at_ms INTEGER NOT NULL,
    used_at_ms    INTEGER,
    UNIQUE (user, label)
) STRICT;

-- Which passkey opened a session; none where a password did.
ALTER TABLE sessions ADD COLUMN passkey TEXT;
