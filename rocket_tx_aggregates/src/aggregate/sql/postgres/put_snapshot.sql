-- Stores a snapshot: $1 stream, $2 sequence of its last event, $3 its version, $4 state.
INSERT INTO aggregate_snapshots (stream, sequence, version, state, recorded_at)
VALUES ($1, $2, $3, $4, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)
ON CONFLICT (stream) DO UPDATE
SET sequence = excluded.sequence, version = excluded.version,
    state = excluded.state, recorded_at = excluded.recorded_at
