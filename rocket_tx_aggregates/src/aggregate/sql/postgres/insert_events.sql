-- Inserts events. Returns the stream of each event that was inserted: an event whose key is taken is
-- left out.
-- $1 events, as a JSON array of arrays: stream, sequence, name, version, payload, metadata.
INSERT INTO aggregate_events (stream, sequence, name, version, payload, metadata, recorded_at)
SELECT event ->> 0, (event ->> 1)::bigint, event ->> 2, (event ->> 3)::integer, event ->> 4,
    event ->> 5, (extract(epoch FROM clock_timestamp()) * 1000)::bigint
FROM json_array_elements($1::text::json) AS new (event)
ON CONFLICT (stream, sequence) DO NOTHING
RETURNING stream
