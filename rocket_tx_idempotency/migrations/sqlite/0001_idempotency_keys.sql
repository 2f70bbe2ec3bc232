-- The keys that requests were sent with, and their responses. A row is written by the transaction
-- of its request. Times are milliseconds since 1970.
CREATE TABLE idempotency_keys (
    scope       BLOB    NOT NULL PRIMARY KEY, -- SHA-256 of caller, method, path and key
    fingerprint BLOB    NOT NULL,             -- SHA-256 of the request's content
    status      INTEGER,
    headers     TEXT,                         -- JSON: [[name, value], …]
    body        BLOB,                         -- NULL: the response was too large, or a stream
    expires_at  INTEGER NOT NULL
);

CREATE INDEX idempotency_keys_expires_at ON idempotency_keys (expires_at);
