-- Stores or replaces the snapshots of streams.
-- $1 snapshots, as a JSON array of arrays: stream, sequence of the last event in the state, version of
-- the snapshot, state.
INSERT INTO aggregate_snapshots (stream, sequence, version, state, recorded_at)
SELECT snapshot ->> 0, (snapshot ->> 1)::bigint, (snapshot ->> 2)::integer, snapshot ->> 3,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint
FROM json_array_elements($1::text::json) AS new (snapshot)
ON CONFLICT (stream) DO UPDATE
SET sequence = excluded.sequence, version = excluded.version,
    state = excluded.state, recorded_at = excluded.recorded_at
