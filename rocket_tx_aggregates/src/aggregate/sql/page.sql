-- Events of a stream: $1 stream, $2 the sequence before the first, $3 how many.
SELECT sequence, name, version, payload, metadata, recorded_at
FROM aggregate_events WHERE stream = $1 AND sequence > $2
ORDER BY sequence LIMIT $3
