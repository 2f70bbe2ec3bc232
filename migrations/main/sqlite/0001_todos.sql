CREATE TABLE todos (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    title     TEXT    NOT NULL,
    completed BOOLEAN NOT NULL DEFAULT FALSE,
    "order"   BIGINT,
    shared    BOOLEAN NOT NULL DEFAULT FALSE
);

-- For failure injection: its foreign key is checked by COMMIT, not by the statement.
CREATE TABLE deferred_probe (
    id      INTEGER PRIMARY KEY,
    todo_id BIGINT NOT NULL,
    CONSTRAINT deferred_probe_names_a_todo
        FOREIGN KEY (todo_id) REFERENCES todos (id) DEFERRABLE INITIALLY DEFERRED
);
