-- Stores or replaces the snapshots of streams.
-- $1 snapshots, as a JSON array of arrays: stream, sequence of the last event in the state, version of
-- the snapshot, state.
INSERT INTO aggregate_snapshots (stream, sequence, version, state, recorded_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3,
    CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)
FROM json_each($1) WHERE TRUE
ON CONFLICT (stream) DO UPDATE
SET sequence = excluded.sequence, version = excluded.version,
    state = excluded.state, recorded_at = excluded.recorded_at
