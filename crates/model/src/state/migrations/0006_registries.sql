-- Logins at registries of images. Passwords are sealed with the cluster's key, which is not in here.
CREATE TABLE registries (
    registry      TEXT PRIMARY KEY,
    username      TEXT NOT NULL,
    version       INTEGER NOT NULL,
    sealed        BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
) STRICT;
