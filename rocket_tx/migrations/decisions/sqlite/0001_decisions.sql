-- Decisions on transactions that other databases have prepared. A row is deleted when no prepared
-- transaction needs it any more.
CREATE TABLE rocket_tx_decisions (
    id           TEXT    NOT NULL PRIMARY KEY,
    decision     TEXT    NOT NULL CHECK (decision IN ('commit', 'abort')),
    participants TEXT    NOT NULL, -- the ids of the databases that have prepared
    decided_at   INTEGER NOT NULL DEFAULT (unixepoch()) -- seconds since 1970
) WITHOUT ROWID;

-- The id of this database. It is part of the names of the transactions for which it decides.
CREATE TABLE rocket_tx_decider (id TEXT NOT NULL);
INSERT INTO rocket_tx_decider (id) VALUES (lower(hex(randomblob(16))));
