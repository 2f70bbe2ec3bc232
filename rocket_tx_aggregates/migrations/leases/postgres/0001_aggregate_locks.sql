-- Who may write an aggregate, until when. Times are milliseconds since 1970.
CREATE TABLE aggregate_locks (
    lock_key      TEXT    NOT NULL PRIMARY KEY,
    owner_id      TEXT    NOT NULL, -- a label; what proves a lease is its token
    token         TEXT    NOT NULL,
    fencing_token BIGINT  NOT NULL,
    acquired_at   BIGINT  NOT NULL,
    expires_at    BIGINT  NOT NULL,
    wanted        BOOLEAN NOT NULL DEFAULT FALSE -- another process waits for it
);

-- The last fencing token. It outlives the rows above, and no rollback takes it back.
CREATE SEQUENCE aggregate_locks_fence;
