-- Data that outlives containers. A volume without a node lies on a server, or was not used yet.
CREATE TABLE volumes (
    name          TEXT PRIMARY KEY,
    born          INTEGER NOT NULL,
    node_id       TEXT REFERENCES nodes (id),
    options       TEXT NOT NULL,
    labels        TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;

-- Volumes that a user removed and whose data the node has not deleted yet.
CREATE TABLE removed_volumes (
    name    TEXT NOT NULL,
    born    INTEGER NOT NULL,
    node_id TEXT NOT NULL REFERENCES nodes (id),
    PRIMARY KEY (name, born)
) STRICT;
