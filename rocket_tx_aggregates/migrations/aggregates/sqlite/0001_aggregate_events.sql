-- What has happened to each aggregate. The key refuses a second writer, whatever the locks say.
-- Times are milliseconds since 1970.
CREATE TABLE aggregate_events (
    stream      TEXT    NOT NULL, -- aggregate type, a colon, id
    sequence    INTEGER NOT NULL, -- from 1, without gaps
    name        TEXT    NOT NULL,
    version     INTEGER NOT NULL,
    payload     TEXT    NOT NULL, -- JSON
    metadata    TEXT    NOT NULL, -- JSON
    recorded_at INTEGER NOT NULL,
    PRIMARY KEY (stream, sequence)
) WITHOUT ROWID;

-- The state after some of them, so that loading stays flat. It can be deleted at any time.
CREATE TABLE aggregate_snapshots (
    stream      TEXT    NOT NULL PRIMARY KEY,
    sequence    INTEGER NOT NULL, -- of the last event that is in it
    version     INTEGER NOT NULL, -- of the aggregate's state
    state       TEXT    NOT NULL, -- JSON
    recorded_at INTEGER NOT NULL
) WITHOUT ROWID;
