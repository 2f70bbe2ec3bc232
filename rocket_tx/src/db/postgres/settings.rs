//! What a session is set to, and how it gets back there after somebody has used it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

/// The name under which every session has the statement that proves it. `DEALLOCATE ALL` takes it
/// away, together with the statements that sqlx believes to be there.
const PROOF: &str = "rocket_tx_proof";

/// The setting by which a session writes in transactions of ours alone. BEGIN takes it back for a
/// moment, to learn what the server itself is set to: who runs it may have it take no writes.
pub(super) const GUARD: &str = "default_transaction_read_only";

/// How the server is told what a session is set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetBy {
    /// By the startup message. `RESET ALL` then returns to these values by itself.
    Startup,
    /// By statements, after connecting and after every reset: poolers drop what the startup message
    /// says, or refuse it.
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
    /// `reset`: whether a session forgets what its user has set.
    pub(super) fn new(options: PgConnectOptions, set_by: SetBy, reset: bool) -> Self {
        // sqlx asks for two digits more than servers before version 12 gave by themselves; poolers
        // refuse that parameter.
        let options = options.extra_float_digits(None);
        let values = match set_by {
            SetBy::Startup => Vec::new(),
            // A reset takes back what the pooler had set from the startup message.
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

    /// Transactions are read-only unless they say otherwise, as those of ours do: if a handler ends
    /// its transaction by itself, what it sends afterwards writes nothing.
    pub(super) fn guarding_writes(mut self) -> Self {
        self.guards_writes = true;
        self
    }

    /// The opposite, for sessions that are not lent to transactions.
    pub(super) fn unguarded(mut self) -> Self {
        self.guards_writes = false;
        self
    }

    /// One setting more, or another value for it.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.values.retain(|(known, _)| *known != name);
        self.values.push((name, value.into()));
        self
    }

    /// As [`with`](Self::with), in milliseconds.
    pub fn with_limit(self, name: &'static str, limit: Duration) -> Self {
        self.with(name, format!("{}ms", limit.as_millis()))
    }

    /// Another name in the server's list of sessions.
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

    /// How sqlx connects for what looks after the sessions: as the login itself. A login may be set to
    /// act as another role, and that one may not see nor end the sessions of the login.
    pub(crate) fn connect_options(&self) -> PgConnectOptions {
        let options = self.session_options();
        match self.set_by {
            SetBy::Startup => options.options([("role", "none")]),
            SetBy::Statements => options,
        }
    }

    /// How sqlx connects for a session.
    pub fn session_options(&self) -> PgConnectOptions {
        match self.set_by {
            SetBy::Startup => self
                .options
                .clone()
                .options(self.values.iter().map(|(name, value)| (*name, value))),
            SetBy::Statements => self.options.clone(),
        }
    }

    /// A new name for the session, by which one transaction is known in the server's list of sessions.
    pub(super) fn marked_name(&self) -> String {
        /// Servers cut names at 63 bytes.
        const ROOM: usize = 63 - " 0123456789abcdef".len();

        let name = self.options.get_application_name().unwrap_or_default();
        let mut name = name.to_owned();
        while name.len() > ROOM {
            name.pop();
        }
        format!("{name} {:016x}", fastrand::u64(..))
    }

    /// The statements that set what the startup message has not.
    fn sets(&self) -> impl Iterator<Item = String> + '_ {
        let by_statements = self.set_by == SetBy::Statements;
        let values = self.values.iter().filter(move |_| by_statements);
        values.map(|(name, value)| format!("SET {name} = {}", literal(value)))
    }

    /// Run once on a new session, which can be told from every other one by its `secret`. The last
    /// statement answers with one row: the process that serves the session, when it started, whether
    /// the settings are what they should be, whether the login acts as another role, and whether
    /// transactions that name no isolation are READ COMMITTED.
    pub(super) fn opening(&self, secret: &str) -> String {
        let mut statements: Vec<String> = self.sets().collect();
        let unseeds = if self.reset { UNSEEDS } else { "" };
        let guards = match self.guards_writes {
            true => format!("pg_catalog.set_config('{GUARD}', 'on', false),"),
            false => String::new(),
        };
        statements.push(format!(
            "PREPARE {PROOF}(pg_catalog.text) AS \
             SELECT pg_catalog.pg_advisory_unlock_all(), '{secret}', {unseeds} {guards} $1"
        ));
        if self.guards_writes {
            statements.push(format!("SET {GUARD} = on"));
        }
        let holds = self.values.iter().map(|(name, value)| {
            // `set_config` answers with the value in the server's own spelling.
            let value = literal(value);
            format!("current_setting('{name}') = set_config('{name}', {value}, true)")
        });
        let holds: Vec<String> = holds.collect();
        let holds = match holds.is_empty() {
            true => "TRUE".to_owned(),
            false => holds.join(" AND "),
        };
        // Another role is not told when the process of its login started. What stands in one message is
        // one transaction: LOCAL ends with it.
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

    /// `acts`: whether the login acts as another role.
    pub(super) fn clean_up(&self, acts: bool) -> CleanUp {
        let mut statements: Vec<String> = Vec::new();
        if self.reset {
            let [authorization, others @ ..] = RESET;
            statements.push(authorization.to_owned());
            // It leaves the login without its role.
            statements.extend(acts.then(|| "RESET ROLE".to_owned()));
            statements.extend(others.map(str::to_owned));
            statements.extend(self.sets());
        }
        CleanUp {
            count: statements.len() + 1,
            statements: statements.join("; ").into(),
        }
    }
}

/// All that a session can keep beyond a transaction, but for statements that were prepared by SQL:
/// `DISCARD ALL` would take sqlx's own with them.
/// <https://www.postgresql.org/docs/current/sql-discard.html>
///
/// Advisory locks go with [`PROOF`].
const RESET: [&str; 6] = [
    // The first, because it decides what the user may reset; it ends SET ROLE too.
    "RESET SESSION AUTHORIZATION",
    "RESET ALL",
    "CLOSE ALL",
    "UNLISTEN *",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
];

/// Has random numbers go on from a seed that nobody knows: there is no statement that takes back a
/// seed. Part of [`PROOF`], whose nonce is the seed.
const UNSEEDS: &str = "pg_catalog.setseed(pg_catalog.hashtextextended($1, 0)::pg_catalog.float8 \
    OPERATOR(pg_catalog./) 9223372036854775807::pg_catalog.float8)::pg_catalog.text,";

/// What returns a session to what it was when it was opened, and proves that it answers to what it
/// is asked.
#[derive(Debug, Clone)]
pub(super) struct CleanUp {
    statements: Arc<str>,
    count: usize,
}

impl CleanUp {
    /// The statements that end in the row with `nonce`, and how many they are. They must not stand
    /// in a transaction.
    pub(super) fn after(&self, before: &[&str], nonce: &str) -> (String, usize) {
        let mut sql = before.join("; ");
        for statement in [&*self.statements, &format!("EXECUTE {PROOF}('{nonce}')")] {
            if !sql.is_empty() && !statement.is_empty() {
                sql.push_str("; ");
            }
            sql.push_str(statement);
        }
        (sql, before.len() + self.count)
    }
}

/// A string as SQL writes it; `standard_conforming_strings` is on since version 9.1.
pub(super) fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}
