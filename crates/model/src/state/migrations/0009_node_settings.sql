-- What users say of a node; a node that registers again changes none of it.
CREATE TABLE node_settings (
    node_id  TEXT PRIMARY KEY REFERENCES nodes (id),
    settings TEXT NOT NULL
) STRICT;
