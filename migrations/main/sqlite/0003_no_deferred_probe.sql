-- Failure injection makes its own table now, in the transaction that it breaks.
DROP TABLE deferred_probe;
