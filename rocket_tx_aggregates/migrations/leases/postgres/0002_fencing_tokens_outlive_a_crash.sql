-- How far fencing tokens may have grown: no greater one was given. It is flushed before the first of
-- them is drawn, so no crash takes it back.
CREATE TABLE aggregate_locks_fence_mark (value BIGINT NOT NULL);
INSERT INTO aggregate_locks_fence_mark (value) VALUES (0);

-- Says that the sequence still knows the last token. Postgres empties an unlogged table after a crash
-- and on a promoted standby, which is when the sequence may have forgotten some; and a copy of the row
-- in another database, or after another start of the server, does not count.
CREATE UNLOGGED TABLE aggregate_locks_fence_open (
    started TIMESTAMPTZ NOT NULL, -- the server
    place   TEXT        NOT NULL, -- the file of this table
    upto    BIGINT      NOT NULL  -- past this token the mark is moved first
);
