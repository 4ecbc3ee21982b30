-- What signs short-lived tokens for services. The private half is sealed under the cluster's key.
CREATE TABLE signing_keys (
    id            TEXT PRIMARY KEY,
    public        BLOB NOT NULL,
    sealed        BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;

-- Who came from a provider: what it calls them for ever, and who they are here.
CREATE TABLE external_users (
    issuer  TEXT NOT NULL,
    subject TEXT NOT NULL,
    user    TEXT NOT NULL UNIQUE REFERENCES users (name) ON DELETE CASCADE,
    PRIMARY KEY (issuer, subject)
) STRICT;
