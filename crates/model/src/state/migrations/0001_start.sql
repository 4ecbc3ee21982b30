-- What the cluster is, and how far its history was applied.
CREATE TABLE cluster (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    applied_index INTEGER NOT NULL
) STRICT;
INSERT INTO cluster (id, applied_index) VALUES (1, 0);

-- One machine running toft.
CREATE TABLE nodes (
    id                     TEXT PRIMARY KEY,
    name                   TEXT NOT NULL UNIQUE,
    labels                 TEXT NOT NULL,
    inventory              TEXT NOT NULL,
    registered_at_ms       INTEGER NOT NULL,
    assignments_generation INTEGER NOT NULL
) STRICT;

-- What users ask to run.
CREATE TABLE workloads (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL UNIQUE,
    generation     INTEGER NOT NULL,
    spec           TEXT NOT NULL,
    desired        TEXT NOT NULL CHECK (desired IN ('running', 'stopped', 'removed')),
    epoch          INTEGER NOT NULL,
    pending        TEXT,
    created_at_ms  INTEGER NOT NULL,
    updated_at_ms  INTEGER NOT NULL
) STRICT;

-- One running copy of a workload. `container` is the scheduler's, `report` the node's.
CREATE TABLE instances (
    id            TEXT PRIMARY KEY,
    workload_id   TEXT NOT NULL REFERENCES workloads (id),
    ordinal       INTEGER NOT NULL,
    node_id       TEXT NOT NULL REFERENCES nodes (id),
    desired       TEXT NOT NULL CHECK (desired IN ('running', 'stopped', 'removed')),
    epoch         INTEGER NOT NULL,
    container     TEXT NOT NULL,
    report        TEXT,
    created_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX instances_by_workload ON instances (workload_id, ordinal);
CREATE INDEX instances_by_node ON instances (node_id);

-- What happened, newest last; bounded.
CREATE TABLE events (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms   INTEGER NOT NULL,
    level   TEXT NOT NULL CHECK (level IN ('info', 'warning')),
    subject TEXT NOT NULL,
    message TEXT NOT NULL
) STRICT;
