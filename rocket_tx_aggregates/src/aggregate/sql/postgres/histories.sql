-- Reads several streams: for each its snapshot, if it has the given version, and the events after it.
-- The row of a snapshot has the empty name ''. One statement reads all, so that they match.
-- LATERAL: each stream is read by its key, whatever the statistics of the table say.
-- $1 streams, as a JSON array; $2 version of the snapshots.
SELECT wanted.stream, history.*
FROM json_array_elements_text($1::text::json) AS wanted (stream)
CROSS JOIN LATERAL (
    SELECT sequence, '' AS name, version, state AS payload, '' AS metadata, recorded_at
    FROM aggregate_snapshots WHERE stream = wanted.stream AND version = $2
    UNION ALL
    SELECT sequence, name, version, payload, metadata, recorded_at
    FROM aggregate_events
    WHERE stream = wanted.stream AND sequence > coalesce(
        (SELECT sequence FROM aggregate_snapshots
         WHERE stream = wanted.stream AND version = $2), 0)
) AS history
ORDER BY wanted.stream, history.sequence
