-- Inserts events. Returns the stream of each event that was inserted, and NULL: an event whose key is
-- taken is left out.
-- $1 a JSON object. Its `events` are an array of arrays: stream, sequence, name, version, payload,
-- metadata. lock/sql/sqlite/release_all.sql may follow in the same message, with the same $1.
INSERT INTO aggregate_events (stream, sequence, name, version, payload, metadata, recorded_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)
FROM json_each($1, '$.events') WHERE TRUE
ON CONFLICT (stream, sequence) DO NOTHING
RETURNING stream, NULL
