-- Who may write an aggregate, until when. Times are milliseconds since 1970.
CREATE TABLE aggregate_locks (
    lock_key      TEXT    NOT NULL PRIMARY KEY,
    owner_id      TEXT    NOT NULL, -- a label; what proves a lease is its token
    token         TEXT    NOT NULL,
    fencing_token INTEGER NOT NULL,
    acquired_at   INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    wanted        BOOLEAN NOT NULL DEFAULT FALSE -- another process waits for it
) WITHOUT ROWID;

-- The last fencing token. It outlives the rows above.
CREATE TABLE aggregate_locks_fence (value INTEGER NOT NULL);
INSERT INTO aggregate_locks_fence (value) VALUES (0);
