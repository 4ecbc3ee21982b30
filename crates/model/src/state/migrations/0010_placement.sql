-- What the whole cluster says about where work goes; nothing means the defaults.
CREATE TABLE placement (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    settings TEXT NOT NULL
) STRICT;
