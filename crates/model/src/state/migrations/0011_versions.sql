-- How far each specification has reached the instances, and the specifications before it.
ALTER TABLE workloads ADD COLUMN rollout TEXT NOT NULL DEFAULT '{"state":"done"}';

CREATE TABLE workload_versions (
    workload_id TEXT NOT NULL REFERENCES workloads (id),
    generation  INTEGER NOT NULL,
    spec        TEXT NOT NULL,
    cause       TEXT NOT NULL,
    rollout     TEXT NOT NULL,
    at_ms       INTEGER NOT NULL,
    PRIMARY KEY (workload_id, generation)
) STRICT;

INSERT INTO workload_versions (workload_id, generation, spec, cause, rollout, at_ms)
SELECT id, generation, spec, '{"cause":"user"}', '{"state":"done"}', updated_at_ms FROM workloads;
