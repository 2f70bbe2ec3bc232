//! The table `aggregate_locks`: all of its SQL. Both backends take the same text but for the
//! clock, and for where the fencing token comes from.

/// Instantiates the statements for one backend.
///
/// `now` is the database's clock in milliseconds, read anew wherever it stands: a statement that
/// waited for a row must not go by the time at which it came.
macro_rules! statements {
    ($database:ty, $connection:ty, now = $now:literal) => {
        use crate::lock::store::{LeaseRow, Released, Token};

        pub(in crate::lock) fn millis(duration: std::time::Duration) -> i64 {
            i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
        }

        /// `$1` key, `$2` token, `$3` milliseconds.
        pub(in crate::lock) const RENEW: &str = concat!(
            "UPDATE aggregate_locks SET expires_at = ",
            $now,
            " + $3 WHERE lock_key = $1 AND token = $2 RETURNING TRUE"
        );

        /// `$1` key, `$2` token. By token, not by expiry: an expired lease that nobody has taken
        /// over is still ours.
        pub(in crate::lock) const RELEASE: &str =
            "DELETE FROM aggregate_locks WHERE lock_key = $1 AND token = $2 RETURNING wanted";

        /// `$1` token.
        pub(in crate::lock) const FREE: &str =
            "DELETE FROM aggregate_locks WHERE token = $1 RETURNING lock_key";

        /// `$1` key.
        pub(in crate::lock) const WANT: &str = "UPDATE aggregate_locks SET wanted = TRUE \
             WHERE lock_key = $1 AND NOT wanted RETURNING TRUE";

        pub(in crate::lock) async fn release(
            db: &mut $connection,
            key: &str,
            token: &Token,
        ) -> sqlx::Result<Released> {
            let wanted = sqlx::query_scalar::<$database, bool>(RELEASE)
                .bind(key)
                .bind(token.as_str())
                .fetch_optional(db)
                .await?;
            Ok(Released::found(wanted))
        }

        pub(in crate::lock) async fn list(db: &mut $connection) -> sqlx::Result<Vec<LeaseRow>> {
            sqlx::query_as::<$database, LeaseRow>(concat!(
                "SELECT lock_key AS key, owner_id AS owner, token, fencing_token, \
                        ",
                $now,
                " - acquired_at AS age_ms, \
                        expires_at - ",
                $now,
                " AS expires_in_ms, \
                        wanted \
                 FROM aggregate_locks ORDER BY lock_key"
            ))
            .fetch_all(db)
            .await
        }
    };
}

#[cfg(feature = "sqlite")]
pub(super) mod sqlite {
    statements!(
        sqlx::Sqlite,
        sqlx::SqliteConnection,
        now = "CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER)"
    );

    use crate::lock::store::Found;

    /// What there is of a key that is not `ours`.
    pub(in crate::lock) async fn look(
        db: &mut sqlx::SqliteConnection,
        key: &str,
        ours: Option<&Token>,
    ) -> sqlx::Result<Found> {
        let row: Option<(bool, bool)> = sqlx::query_as::<sqlx::Sqlite, _>(
            "SELECT expires_at > CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER), wanted \
             FROM aggregate_locks WHERE lock_key = $1 AND token <> $2",
        )
        .bind(key)
        .bind(ours.map_or("", Token::as_str))
        .fetch_optional(db)
        .await?;
        Ok(match row {
            None => Found::Free,
            Some((false, _)) => Found::Expired,
            Some((true, wanted)) => Found::Held { wanted },
        })
    }

    /// `$1` key, `$2` owner, `$3` token, `$4` milliseconds. For a transaction of its own: nobody
    /// comes between.
    ///
    /// The counter outlives rows, so that fencing tokens grow across release and sweep. It follows
    /// the clock, so that they grow across a restored backup too.
    pub(in crate::lock) const TAKE: &str = "\
        UPDATE aggregate_locks_fence \
        SET value = max(value + 1, CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)); \
        INSERT INTO aggregate_locks AS held \
            (lock_key, owner_id, token, fencing_token, acquired_at, expires_at, wanted) \
        SELECT $1, $2, $3, value, \
               CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER), \
               CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) + $4, FALSE \
        FROM aggregate_locks_fence WHERE TRUE \
        ON CONFLICT (lock_key) DO UPDATE \
        SET owner_id = excluded.owner_id, token = excluded.token, \
            fencing_token = excluded.fencing_token, \
            acquired_at = excluded.acquired_at, expires_at = excluded.expires_at \
        WHERE held.expires_at <= CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) \
            OR held.token = excluded.token \
        RETURNING fencing_token";

    /// `$1` milliseconds.
    pub(in crate::lock) const SWEEP: &str = "\
        DELETE FROM aggregate_locks \
        WHERE expires_at < CAST(unixepoch('now', 'subsec') * 1000 AS INTEGER) - $1 \
        RETURNING lock_key";
}

#[cfg(feature = "postgres")]
pub(super) mod postgres {
    statements!(
        sqlx::Postgres,
        sqlx::PgConnection,
        now = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    );

    use crate::lock::fencing::{OPEN, is_open, turn};
    use crate::lock::store::Claim;

    pub(in crate::lock) async fn renew(
        db: &mut sqlx::PgConnection,
        claim: &Claim,
    ) -> sqlx::Result<bool> {
        let renewed = sqlx::query(RENEW)
            .bind(&*claim.key)
            .bind(claim.token.as_str())
            .bind(millis(claim.ttl));
        Ok(renewed.fetch_optional(db).await?.is_some())
    }

    pub(in crate::lock) async fn want(
        db: &mut sqlx::PgConnection,
        key: &str,
    ) -> sqlx::Result<bool> {
        let marked = sqlx::query(WANT).bind(key).fetch_optional(db).await?;
        Ok(marked.is_some())
    }

    /// What became of an attempt to take a lease.
    #[derive(sqlx::FromRow)]
    pub(in crate::lock) struct Tried {
        /// The lease is ours.
        pub(in crate::lock) fencing_token: Option<i64>,
        /// There is, or was, a lease of somebody else, which lives or has expired.
        pub(in crate::lock) lives: Option<bool>,
        pub(in crate::lock) wanted: Option<bool>,
        /// If not, nothing was tried.
        pub(in crate::lock) fence_is_open: bool,
    }

    /// `$1` key, `$2` owner, `$3` token, `$4` milliseconds, `$5` and `$6` the key's advisory lock.
    ///
    /// Reads what is there, and writes only where nothing or something expired is; then one atomic
    /// insert, or takeover, or once more what is ours since an attempt whose answer was lost.
    ///
    /// An insert may have to wait for a row that is being deleted, and then uses the number that it
    /// had drawn before. Meanwhile nobody else must draw one for this key and come first; so who
    /// draws has the key's advisory lock, until the statement has committed.
    const TAKE: &str = concat!(
        "WITH held AS ( \
             SELECT expires_at > (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS lives, \
                    wanted \
             FROM aggregate_locks WHERE lock_key = $1 AND token <> $3 \
         ), open AS (SELECT EXISTS (",
        is_open!(),
        ") AS is_open), turn AS MATERIALIZED ( \
             SELECT pg_advisory_xact_lock($5, $6) FROM open \
             WHERE is_open AND NOT EXISTS (SELECT FROM held WHERE lives) \
         ), taken AS ( \
             INSERT INTO aggregate_locks AS before \
                 (lock_key, owner_id, token, fencing_token, acquired_at, expires_at, wanted) \
             SELECT $1, $2, $3, nextval('aggregate_locks_fence'), \
                    (extract(epoch FROM clock_timestamp()) * 1000)::bigint, \
                    (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $4, FALSE \
             FROM turn \
             ON CONFLICT (lock_key) DO UPDATE \
             SET owner_id = excluded.owner_id, token = excluded.token, \
                 fencing_token = excluded.fencing_token, \
                 acquired_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint, \
                 expires_at = (extract(epoch FROM clock_timestamp()) * 1000)::bigint + $4 \
             WHERE before.expires_at <= (extract(epoch FROM clock_timestamp()) * 1000)::bigint \
                 OR before.token = excluded.token \
             RETURNING fencing_token \
         ) \
         SELECT fencing_token, lives, wanted, is_open AS fence_is_open \
         FROM open LEFT JOIN held ON TRUE LEFT JOIN taken ON TRUE"
    );

    pub(in crate::lock) async fn take(
        db: &mut sqlx::PgConnection,
        claim: &Claim,
    ) -> sqlx::Result<Tried> {
        let (class, number) = turn(&claim.key);
        sqlx::query_as(TAKE)
            .bind(&*claim.key)
            .bind(&*claim.owner)
            .bind(claim.token.as_str())
            .bind(millis(claim.ttl))
            .bind(class)
            .bind(number)
            .fetch_one(db)
            .await
    }

    pub(in crate::lock) async fn open_fence(db: &mut sqlx::PgConnection) -> sqlx::Result<()> {
        sqlx::raw_sql(OPEN).execute(db).await?;
        Ok(())
    }

    /// The key that was freed, if there was such a lease.
    pub(in crate::lock) async fn free(
        db: &mut sqlx::PgConnection,
        token: &Token,
    ) -> sqlx::Result<Option<String>> {
        sqlx::query_scalar(FREE)
            .bind(token.as_str())
            .fetch_optional(db)
            .await
    }

    /// Rows that somebody is at are left to the next sweep.
    pub(in crate::lock) async fn sweep(
        db: &mut sqlx::PgConnection,
        grace: std::time::Duration,
    ) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar(
            "DELETE FROM aggregate_locks WHERE lock_key IN ( \
                 SELECT lock_key FROM aggregate_locks \
                 WHERE expires_at < (extract(epoch FROM clock_timestamp()) * 1000)::bigint - $1 \
                 FOR UPDATE SKIP LOCKED) \
             RETURNING lock_key",
        )
        .bind(millis(grace))
        .fetch_all(db)
        .await
    }

    /// At which transactions begin that do not say.
    pub(in crate::lock) async fn default_isolation(
        db: &mut sqlx::PgConnection,
    ) -> sqlx::Result<String> {
        sqlx::query_scalar("SELECT current_setting('default_transaction_isolation')")
            .fetch_one(db)
            .await
    }

    /// A hash of fixed size on one channel: a payload of more than 8,000 bytes would fail the
    /// commit that it rides on.
    pub(in crate::lock) async fn notify(
        db: &mut sqlx::PgConnection,
        keys: &[impl AsRef<str>],
    ) -> sqlx::Result<()> {
        let bells = keys
            .iter()
            .map(|key| crate::lock::listener::bell(key.as_ref()));
        sqlx::query("SELECT pg_notify('aggregate_locks', bell) FROM unnest($1::text[]) AS bell")
            .bind(bells.collect::<Vec<_>>())
            .execute(db)
            .await?;
        Ok(())
    }
}
