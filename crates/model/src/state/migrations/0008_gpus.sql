-- What users say of cards: how each is given away. A card that has no row has the usual settings. Rows outlive the
-- absence of their cards.
CREATE TABLE gpus (
    node_id  TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    gpu      TEXT NOT NULL,
    policy   TEXT NOT NULL CHECK (policy IN ('shared', 'exclusive', 'mig')),
    cordoned INTEGER NOT NULL CHECK (cordoned IN (0, 1)),
    PRIMARY KEY (node_id, gpu)
) STRICT;
