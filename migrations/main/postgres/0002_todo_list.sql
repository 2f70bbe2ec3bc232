-- The read model of the event-sourced todos: written in the transaction that stores their events.
CREATE TABLE todo_list (
    id        TEXT    NOT NULL PRIMARY KEY,
    user_id   TEXT    NOT NULL,
    task      TEXT    NOT NULL,
    completed BOOLEAN NOT NULL,
    version   BIGINT  NOT NULL
);
