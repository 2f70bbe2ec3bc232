-- Reads several streams: for each its snapshot, if it has the given version, and the events after it.
-- The row of a snapshot has the empty name ''. One statement reads all, so that they match.
-- $1 streams, as a JSON array; $2 version of the snapshots.
SELECT stream, sequence, '' AS name, version, state AS payload, '' AS metadata, recorded_at
FROM json_each($1) AS wanted
JOIN aggregate_snapshots ON stream = wanted.value AND version = $2
UNION ALL
SELECT stream, sequence, name, version, payload, metadata, recorded_at
FROM json_each($1) AS wanted
JOIN aggregate_events ON stream = wanted.value AND sequence > coalesce(
    (SELECT sequence FROM aggregate_snapshots WHERE stream = wanted.value AND version = $2), 0)
ORDER BY stream, sequence
