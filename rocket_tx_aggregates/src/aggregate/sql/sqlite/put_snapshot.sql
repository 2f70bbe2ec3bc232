-- Stores or replaces the snapshot of a stream.
-- $1 stream, $2 sequence of the last event in the state, $3 version of the snapshot, $4 state.
INSERT INTO aggregate_snapshots (stream, sequence, version, state, recorded_at)
VALUES ($1, $2, $3, $4, CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER))
ON CONFLICT (stream) DO UPDATE
SET sequence = excluded.sequence, version = excluded.version,
    state = excluded.state, recorded_at = excluded.recorded_at
