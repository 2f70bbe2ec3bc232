//! The settings of a session, and how a used session gets them back.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

/// The name of the prepared statement that checks a session. `DEALLOCATE ALL` removes it together
/// with the statements that sqlx believes to be prepared, so the check then fails.
const CHECK: &str = "rocket_tx_proof";

/// The setting that lets a session write only in transactions of this library. Our BEGIN resets it
/// for a moment to read the server's own value: an operator may have made the server read-only.
pub(super) const GUARD: &str = "default_transaction_read_only";

/// How the settings of a session are sent to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetBy {
    /// In the startup message. `RESET ALL` then returns to these values.
    Startup,
    /// By statements, after connecting and after every reset. For poolers that drop or refuse
    /// parameters of the startup message.
    Statements,
}

/// The settings of one kind of session, and whether sessions are reset between two uses.
#[derive(Debug, Clone)]
pub struct Settings {
    options: PgConnectOptions,
    values: Vec<(&'static str, String)>,
    set_by: SetBy,
    reset: bool,
    guards_writes: bool,
}

impl Settings {
    /// Creates the settings. `reset`: whether a session is reset between two users.
    pub(super) fn new(options: PgConnectOptions, set_by: SetBy, reset: bool) -> Self {
        // sqlx sets `extra_float_digits`, because servers before version 12 send two digits too few
        // by default. Poolers refuse that parameter, so it is left out here.
        let options = options.extra_float_digits(None);
        let values = match set_by {
            SetBy::Startup => Vec::new(),
            // The pooler had set these from the startup message. A reset undoes that, so statements
            // must set them again.
            SetBy::Statements => vec![
                ("DateStyle", "ISO, MDY".to_owned()),
                ("TimeZone", "UTC".to_owned()),
                ("client_encoding", "UTF8".to_owned()),
            ],
        };
        Self {
            options,
            values,
            set_by,
            reset,
            guards_writes: false,
        }
        .named()
    }

    /// Makes transactions read-only unless they begin with READ WRITE, as ours do. If a handler
    /// itself ends its transaction, its later statements cannot write.
    pub(super) fn guarding_writes(mut self) -> Self {
        self.guards_writes = true;
        self
    }

    /// Undoes [`guarding_writes`](Self::guarding_writes), for sessions that run no transactions of
    /// ours.
    pub(super) fn unguarded(mut self) -> Self {
        self.guards_writes = false;
        self
    }

    /// Adds a setting, or replaces its value.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.values.retain(|(known, _)| *known != name);
        self.values.push((name, value.into()));
        self
    }

    /// Adds a setting as [`with`](Self::with) does; its value is a time in milliseconds.
    pub fn with_limit(self, name: &'static str, limit: Duration) -> Self {
        self.with(name, format!("{}ms", limit.as_millis()))
    }

    /// Sets the name that the server's list of sessions shows.
    pub fn application_name(mut self, name: &str) -> Self {
        self.options = self.options.application_name(name);
        self.named()
    }

    fn named(self) -> Self {
        if self.set_by == SetBy::Statements
            && let Some(name) = self.options.get_application_name()
        {
            let name = name.to_owned();
            return self.with("application_name", name);
        }
        self
    }

    /// Returns how sqlx connects to check the server or to end sessions: as the login itself, if
    /// the startup message can carry settings. A login may be configured to act as another role,
    /// which can neither see nor end the sessions of the login.
    pub(crate) fn connect_options(&self) -> PgConnectOptions {
        let options = self.session_options();
        match self.set_by {
            SetBy::Startup => options.options([("role", "none")]),
            SetBy::Statements => options,
        }
    }

    /// Returns how sqlx connects for a session of the pool.
    pub fn session_options(&self) -> PgConnectOptions {
        match self.set_by {
            SetBy::Startup => self
                .options
                .clone()
                .options(self.values.iter().map(|(name, value)| (*name, value))),
            SetBy::Statements => self.options.clone(),
        }
    }

    /// Returns a new name for a session, which identifies one transaction in the server's list of
    /// sessions.
    pub(super) fn marked_name(&self) -> String {
        /// Servers cut names at 63 bytes.
        const MAX: usize = 63 - " 0123456789abcdef".len();

        let name = self.options.get_application_name().unwrap_or_default();
        let mut name = name.to_owned();
        while name.len() > MAX {
            name.pop();
        }
        format!("{name} {:016x}", fastrand::u64(..))
    }

    /// Returns the SET statements for the settings that are not in the startup message.
    fn sets(&self) -> impl Iterator<Item = String> + '_ {
        let by_statements = self.set_by == SetBy::Statements;
        let values = self.values.iter().filter(move |_| by_statements);
        values.map(|(name, value)| format!("SET {name} = {}", literal(value)))
    }

    /// Returns the statements to run once on a new session. `secret` identifies the session.
    ///
    /// The last statement returns one row: the process that serves the session, when the process
    /// started, whether the settings have their values, whether the login acts as another role, and
    /// whether transactions without an explicit isolation level are READ COMMITTED.
    pub(super) fn opening(&self, secret: &str) -> String {
        let mut statements: Vec<String> = self.sets().collect();
        let reseed = if self.reset { RESEED } else { "" };
        let guards = match self.guards_writes {
            true => format!("pg_catalog.set_config('{GUARD}', 'on', false),"),
            false => String::new(),
        };
        statements.push(format!(
            "PREPARE {CHECK}(pg_catalog.text) AS \
             SELECT pg_catalog.pg_advisory_unlock_all(), '{secret}', {reseed} {guards} $1"
        ));
        if self.guards_writes {
            statements.push(format!("SET {GUARD} = on"));
        }
        let holds = self.values.iter().map(|(name, value)| {
            // `set_config` returns the value in the server's own spelling.
            let value = literal(value);
            format!("current_setting('{name}') = set_config('{name}', {value}, true)")
        });
        let holds: Vec<String> = holds.collect();
        let holds = match holds.is_empty() {
            true => "TRUE".to_owned(),
            false => holds.join(" AND "),
        };
        // If the login acts as another role, that role may not be allowed to read the start time of
        // the process. So the login itself reads it. All statements of one message are one
        // transaction, so SET LOCAL ends with the message.
        statements
            .push("SELECT set_config('rocket_tx.role', current_setting('role'), true)".into());
        statements.push("SET LOCAL ROLE none".into());
        statements.push(format!(
            "SELECT pg_backend_pid()::text, \
                 (SELECT backend_start::text FROM pg_stat_get_activity(pg_backend_pid())), \
                 ({holds})::text, (current_setting('rocket_tx.role') <> 'none')::text, \
                 (current_setting('default_transaction_isolation') LIKE 'read %')::text"
        ));
        statements.join("; ")
    }

    /// Returns the clean-up of a session. `acts_as_role`: whether the login acts as another role.
    pub(super) fn clean_up(&self, acts_as_role: bool) -> CleanUp {
        let mut statements: Vec<String> = Vec::new();
        if self.reset {
            let [authorization, others @ ..] = RESET;
            statements.push(authorization.to_owned());
            // RESET SESSION AUTHORIZATION returns to the login itself. RESET ROLE returns to the
            // role that the login acts as.
            statements.extend(acts_as_role.then(|| "RESET ROLE".to_owned()));
            statements.extend(others.map(str::to_owned));
            statements.extend(self.sets());
        }
        CleanUp {
            count: statements.len() + 1,
            statements: statements.join("; ").into(),
        }
    }
}

/// Resets all that a session can keep beyond a transaction, except statements prepared by SQL:
/// `DISCARD ALL` would also remove those of sqlx.
/// <https://www.postgresql.org/docs/current/sql-discard.html>
///
/// Advisory locks are released by [`CHECK`].
const RESET: [&str; 6] = [
    // First, because the current user decides which settings may be reset. Also ends SET ROLE.
    "RESET SESSION AUTHORIZATION",
    "RESET ALL",
    "CLOSE ALL",
    "UNLISTEN *",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
];

/// Seeds the server's random numbers with a value that no user knows. A user may have set a seed,
/// and no statement undoes that. Part of [`CHECK`]; the nonce is the new seed.
const RESEED: &str = "pg_catalog.setseed(pg_catalog.hashtextextended($1, 0)::pg_catalog.float8 \
    OPERATOR(pg_catalog./) 9223372036854775807::pg_catalog.float8)::pg_catalog.text,";

/// The statements that return a session to its state after opening, and check that its replies
/// match its statements.
#[derive(Debug, Clone)]
pub(super) struct CleanUp {
    statements: Arc<str>,
    count: usize,
}

impl CleanUp {
    /// Returns `before` and the clean-up as one SQL text, and the number of its statements. The
    /// last one returns the row with `nonce`. The clean-up must run outside a transaction, so
    /// `before` must end an open one.
    pub(super) fn after(&self, before: &[&str], nonce: &str) -> (String, usize) {
        let mut sql = before.join("; ");
        for statement in [&*self.statements, &format!("EXECUTE {CHECK}('{nonce}')")] {
            if !sql.is_empty() && !statement.is_empty() {
                sql.push_str("; ");
            }
            sql.push_str(statement);
        }
        (sql, before.len() + self.count)
    }
}

/// Quotes a string for SQL. `standard_conforming_strings` is on by default since version 9.1.
pub(super) fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}
