//! Statements from the files in `sql/`.

/// The statement of a file, without the comment above it. So `pg_stat_activity` and logs show the
/// statement, which they cut after some length.
pub(crate) fn statement(mut file: &'static str) -> &'static str {
    while file.starts_with("--") {
        file = file.split_once('\n').map_or("", |(_, rest)| rest);
    }
    file
}
