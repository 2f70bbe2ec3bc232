//! Statements from the files in `sql/`.

/// Returns the statement of a file without its leading comment. `pg_stat_activity` and logs cut off
/// long texts, so a leading comment would hide the statement.
pub(crate) fn statement(mut file: &'static str) -> &'static str {
    while file.starts_with("--") {
        file = file.split_once('\n').map_or("", |(_, rest)| rest);
    }
    file
}
