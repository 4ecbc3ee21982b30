-- Values that only containers see, sealed with the cluster's key, which is not in here.
CREATE TABLE secrets (
    name          TEXT PRIMARY KEY,
    version       INTEGER NOT NULL,
    size_bytes    INTEGER NOT NULL,
    sealed        BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
) STRICT;
