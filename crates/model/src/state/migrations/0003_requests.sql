-- A request's id takes 16 bytes instead of 36, and its row no second page: rows are only taken from the front, so that
-- SQLite never gives a number twice here without being told.
CREATE TABLE requests_by_bytes (
    seq   INTEGER PRIMARY KEY,
    id    BLOB NOT NULL UNIQUE,
    reply TEXT NOT NULL
) STRICT;
INSERT INTO requests_by_bytes (seq, id, reply) SELECT seq, unhex(replace(id, '-', '')), reply FROM requests;
DROP TABLE requests;
ALTER TABLE requests_by_bytes RENAME TO requests;
