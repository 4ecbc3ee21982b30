-- What signs short-lived tokens for services. The private half is sealed under the cluster's key.
CREATE TABLE signing_keys (
    id            TEXT PRIMARY KEY,
    public        BLOB NOT NULL,
    sealed        BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;
