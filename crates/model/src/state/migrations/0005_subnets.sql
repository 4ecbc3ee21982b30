-- The network that each node gives its containers; no two overlap. A node claims one before it registers.
CREATE TABLE subnets (
    node_id TEXT PRIMARY KEY,
    subnet  TEXT NOT NULL UNIQUE
) STRICT;
