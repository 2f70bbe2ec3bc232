-- Reads the snapshot of a stream, if it has the given version, and the events after it.
-- The row of the snapshot has the empty name ''. One statement reads both, so that they match.
-- $1 stream, $2 version of the snapshot.
SELECT sequence, '' AS name, version, state AS payload, '' AS metadata, recorded_at
FROM aggregate_snapshots WHERE stream = $1 AND version = $2
UNION ALL
SELECT sequence, name, version, payload, metadata, recorded_at
FROM aggregate_events
WHERE stream = $1 AND sequence > coalesce(
    (SELECT sequence FROM aggregate_snapshots WHERE stream = $1 AND version = $2), 0)
ORDER BY sequence
