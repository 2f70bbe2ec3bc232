-- The snapshot of a stream, named '', and the events after it: $1 stream, $2 version of the snapshot.
-- One statement, so that they belong together.
SELECT sequence, '' AS name, version, state AS payload, '' AS metadata, recorded_at
FROM aggregate_snapshots WHERE stream = $1 AND version = $2
UNION ALL
SELECT sequence, name, version, payload, metadata, recorded_at
FROM aggregate_events
WHERE stream = $1 AND sequence > coalesce(
    (SELECT sequence FROM aggregate_snapshots WHERE stream = $1 AND version = $2), 0)
ORDER BY sequence
