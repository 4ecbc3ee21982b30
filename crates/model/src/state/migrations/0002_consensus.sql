-- How the state came to be: the cluster, the position in its log (`applied_index` is part of it) and the members, the
-- latter two as consensus writes them.
ALTER TABLE cluster ADD COLUMN cluster_id TEXT;
ALTER TABLE cluster ADD COLUMN applied_position TEXT;
ALTER TABLE cluster ADD COLUMN membership TEXT;

-- Requests that were applied, so that one that is repeated is not applied again; bounded, oldest first.
CREATE TABLE requests (
    seq   INTEGER PRIMARY KEY AUTOINCREMENT,
    id    TEXT NOT NULL UNIQUE,
    reply TEXT NOT NULL
) STRICT;
