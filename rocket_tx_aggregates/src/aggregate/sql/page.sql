-- Reads the events of a stream after a sequence, in order.
-- $1 stream, $2 sequence after which to start, $3 largest number of events.
SELECT sequence, name, version, payload, metadata, recorded_at
FROM aggregate_events WHERE stream = $1 AND sequence > $2
ORDER BY sequence LIMIT $3
