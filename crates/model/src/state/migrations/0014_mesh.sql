-- Where and with which key each node is found in the mesh. A witness has a row here and none in `nodes`.
CREATE TABLE mesh_nodes (
    node_id TEXT PRIMARY KEY,
    mesh    TEXT NOT NULL,
    at_ms   INTEGER NOT NULL
) STRICT;
