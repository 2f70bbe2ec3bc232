-- One line for every change, in a database of its own.
CREATE TABLE audit (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT    NOT NULL,
    action     TEXT    NOT NULL,
    subject    TEXT    NOT NULL,
    at         BIGINT  NOT NULL -- milliseconds since 1970
);
