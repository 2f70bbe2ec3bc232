-- Decisions on transactions that other databases have prepared. A row is deleted when no prepared
-- transaction needs it any more.
CREATE TABLE rocket_tx_decisions (
    id           TEXT        NOT NULL PRIMARY KEY,
    decision     TEXT        NOT NULL CHECK (decision IN ('commit', 'abort')),
    participants TEXT        NOT NULL, -- the ids of the databases that have prepared
    -- The transaction that wrote the row.
    transaction  XID8        NOT NULL DEFAULT pg_current_xact_id(),
    decided_at   TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);

-- The id of this database. It is part of the names of the transactions for which it decides.
CREATE TABLE rocket_tx_decider (id TEXT NOT NULL);
INSERT INTO rocket_tx_decider (id) VALUES (replace(gen_random_uuid()::text, '-', ''));
