-- What somebody shows beside a password. The secret is sealed under the cluster's key; of recovery codes only SHA-256 is here.
CREATE TABLE second_factors (
    user     TEXT PRIMARY KEY REFERENCES users (name) ON DELETE CASCADE,
    version  INTEGER NOT NULL,
    sealed   BLOB NOT NULL,
    step     INTEGER NOT NULL,
    recovery TEXT NOT NULL
) STRICT;

-- What the whole cluster says about who comes in: one row, or none.
CREATE TABLE access_settings (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    settings TEXT NOT NULL
) STRICT;
