-- Whether the others hear of a node. A node that has no row is ready.
CREATE TABLE node_health (
    node_id  TEXT PRIMARY KEY REFERENCES nodes (id) ON DELETE CASCADE,
    health   TEXT NOT NULL CHECK (health IN ('ready', 'away', 'unreachable', 'down', 'fenced')),
    since_ms INTEGER NOT NULL
) STRICT;

-- Whether an instance's node is lost.
ALTER TABLE instances ADD COLUMN lost INTEGER NOT NULL DEFAULT 0 CHECK (lost IN (0, 1));
