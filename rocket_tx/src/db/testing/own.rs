//! The databases of one test.

use std::any::TypeId;
use std::sync::Arc;

use parking_lot::Mutex;
use rocket::figment::Figment;
use rocket::figment::providers::Serialized;
use rocket::futures::future::{BoxFuture, join_all};
use rocket::{Ignite, Rocket};
use rocket_db_pools::Database;

#[cfg(feature = "sqlite")]
use super::files::{Folder, OwnFile};
#[cfg(feature = "postgres")]
use super::server::{self, Server};
use super::template::Template;
use super::{TestDatabaseError, url};
use crate::db::Backend;
use crate::db::{IN_TESTS, Migrations, TransactionPool, TransactionalDatabase};

/// The databases of one test. Managed by the `Rocket` of the test, where [`init`](crate::db::init)
/// finds it. A clone is another handle.
#[derive(Clone, Default)]
pub(crate) struct OwnDatabases(Arc<Inner>);

#[derive(Default)]
struct Inner {
    databases: Mutex<Vec<OwnDatabase>>,
    refusals: Mutex<Vec<String>>,
}

struct OwnDatabase {
    database: TypeId,
    name: &'static str,
    /// The URL in the configuration of the service.
    configured: String,
    url: String,
    template: Template,
    close: Close,
    _place: Place,
}

/// Closes the connections that a service has to a database.
type Close = for<'r> fn(&'r Rocket<Ignite>) -> BoxFuture<'r, ()>;

/// The database itself. Dropping it drops the database.
#[allow(dead_code)] // It is kept only to be dropped.
enum Place {
    #[cfg(feature = "sqlite")]
    File(OwnFile),
    #[cfg(feature = "postgres")]
    Server(server::OwnDatabase),
}

impl OwnDatabases {
    /// Creates the database `D` of this test. Returns the configuration with its URL.
    pub(crate) async fn create<D: TransactionalDatabase>(
        &self,
        configuration: Figment,
        migrations: &Migrations,
    ) -> Result<Figment, TestDatabaseError> {
        // If the URL names no database of a backend, opening the pool reports it.
        let Ok(configured) = configuration.extract_inner::<String>("url") else {
            return Ok(configuration);
        };
        let Some(backend) = D::Pool::backend_of(&configured) else {
            return Ok(configuration);
        };
        if let Some(other) = self.configured_at(&configured) {
            return Err(TestDatabaseError::SameUrl(other));
        }
        let database = (std::any::type_name::<D>(), D::NAME);
        let (url, template, place) = match backend {
            #[cfg(feature = "sqlite")]
            Backend::Sqlite => {
                let migrator = migrations.sqlite.as_ref();
                let folder = Folder::of_this_process().await?;
                let template = folder.template(&database, migrator);
                if let Some(migrator) = migrator {
                    template.migrate(migrator).await?;
                }
                let own = template.create_own(D::NAME)?;
                let Some(url) = url::with_file(&configured, &own.path) else {
                    return Ok(configuration);
                };
                (url, Template::File(template), Place::File(own))
            }
            #[cfg(feature = "postgres")]
            Backend::Postgres => {
                let migrator = migrations.postgres.as_ref();
                let server = Server::of(&configured).await?;
                let template = server.template(&database, migrator);
                let own = template.create_own(migrator).await?;
                let url = url::with_database(&configured, &own.name);
                (url, Template::Database(template), Place::Server(own))
            }
        };
        let configuration = configuration
            .merge(("url", &url))
            .merge((IN_TESTS, false))
            .join(Serialized::default("synchronous", "off"));
        self.0.databases.lock().push(OwnDatabase {
            database: TypeId::of::<D>(),
            name: D::NAME,
            configured,
            url,
            template,
            close: |rocket| Box::pin(close::<D>(rocket)),
            _place: place,
        });
        Ok(configuration)
    }

    /// Returns the template of the database `D`, if `D` belongs to the test.
    pub(crate) fn template_of<D: Database>(&self) -> Option<Template> {
        self.find::<D, _>(|own| own.template.clone())
    }

    /// Returns the URL of the database `D`, if `D` belongs to the test.
    pub(crate) fn url_of<D: Database>(&self) -> Option<String> {
        self.find::<D, _>(|own| own.url.clone())
    }

    /// Returns the backend of the database `D`, if `D` belongs to the test.
    pub(crate) fn backend_of<D: Database>(&self) -> Option<Backend> {
        self.find::<D, _>(|own| own.template.backend())
    }

    fn find<D: Database, T>(&self, read: impl FnOnce(&OwnDatabase) -> T) -> Option<T> {
        let databases = self.0.databases.lock();
        let own = databases
            .iter()
            .find(|own| own.database == TypeId::of::<D>());
        own.map(read)
    }

    fn configured_at(&self, url: &str) -> Option<&'static str> {
        let databases = self.0.databases.lock();
        let own = databases.iter().find(|own| own.configured == url);
        own.map(|own| own.name)
    }

    /// Records why the launch fails.
    pub(crate) fn refuse(&self, reason: &str) {
        self.0.refusals.lock().push(reason.to_owned());
    }

    /// Returns why the launch failed, as far as it is known.
    pub(crate) fn refusals(&self) -> String {
        self.0.refusals.lock().join("; ")
    }

    /// Closes the connections of a service that was not launched.
    pub(crate) async fn close_connections(&self, rocket: &Rocket<Ignite>) {
        let all: Vec<Close> = {
            let databases = self.0.databases.lock();
            databases.iter().map(|own| own.close).collect()
        };
        join_all(all.into_iter().map(|close| close(rocket))).await;
    }

    /// Drops the databases. Blocks the thread meanwhile.
    pub(crate) fn drop_all(&self) {
        let databases = std::mem::take(&mut *self.0.databases.lock());
        drop(databases);
    }
}

async fn close<D: TransactionalDatabase>(rocket: &Rocket<Ignite>) {
    if let Some(database) = rocket.state::<D>() {
        database.close_connections().await;
    }
}
