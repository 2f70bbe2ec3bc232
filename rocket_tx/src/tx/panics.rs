//! Noticing a panic that a catcher would paper over.
//!
//! Rocket catches a handler's panic and asks the catcher for 500, which may answer with a success.
//! Nothing in the response tells that from a success. A guard notices the panic by which it is
//! dropped, but no guard is there for a panic in a responder, or after the last one was dropped. So a
//! panic hook marks the request whose task it is in. It is chained before the hook that the process
//! has. Settlement reads the mark: `Outstanding::has_panicked`.

use std::any::Any;
use std::cell::Cell;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Once};
use std::thread::ThreadId;

use parking_lot::Mutex;

/// Where a request runs: its task, or for Rocket's local client the thread that blocks on it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    Task(tokio::task::Id),
    Thread(ThreadId),
}

impl Place {
    fn here() -> Self {
        match tokio::task::try_id() {
            Some(id) => Self::Task(id),
            None => Self::Thread(std::thread::current().id()),
        }
    }
}

thread_local! {
    /// How many calls of `shielded` this thread is in.
    static SHIELDED: Cell<usize> = const { Cell::new(0) };
}

static WATCHED: LazyLock<Mutex<HashMap<Place, Vec<Arc<AtomicBool>>>>> =
    LazyLock::new(Mutex::default);

/// Installs the hook, once in a process. A hook that is set later and does not call the one that
/// it replaces turns the watch off; guards then still notice panics that they are dropped by.
pub(in crate::tx) fn install() {
    static INSTALL: Once = Once::new();

    INSTALL.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if is_shielded() {
                // It is caught, and is none of the request's.
            } else if let Some(requests) = WATCHED.lock().get(&Place::here()) {
                for panicked in requests {
                    panicked.store(true, Ordering::SeqCst);
                }
            }
            next(panic);
        }));
    });
}

/// Whether anything has panicked in the task of one request since it was made.
pub(in crate::tx) struct PanicWatch {
    place: Place,
    panicked: Arc<AtomicBool>,
}

impl PanicWatch {
    pub(in crate::tx) fn here() -> Self {
        let watch = Self {
            place: Place::here(),
            panicked: Arc::default(),
        };
        WATCHED
            .lock()
            .entry(watch.place)
            .or_default()
            .push(Arc::clone(&watch.panicked));
        watch
    }

    /// For a guard that finds itself dropped by a panic, wherever it was moved to.
    pub(in crate::tx) fn mark(&self) {
        self.panicked.store(true, Ordering::SeqCst);
    }

    pub(in crate::tx) fn has_panicked(&self) -> bool {
        self.panicked.load(Ordering::SeqCst)
    }
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        let mut watched = WATCHED.lock();
        if let Some(requests) = watched.get_mut(&self.place) {
            requests.retain(|panicked| !Arc::ptr_eq(panicked, &self.panicked));
            if requests.is_empty() {
                watched.remove(&self.place);
            }
        }
    }
}

/// Runs code of the service's own beside a request: an observer, a veto, the `Drop` of a body. A
/// panic in it is logged, and is not the request's.
pub(in crate::tx) fn shielded<T>(what: &str, run: impl FnOnce() -> T) -> Option<T> {
    let _entered = Shield::enter();
    match std::panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(value) => Some(value),
        Err(panic) => {
            tracing::error!(panic = message(&*panic), "{what} panicked");
            None
        }
    }
}

/// What a panic said.
pub(in crate::tx) fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

/// This thread is in a call of `shielded`, until it is dropped.
struct Shield;

impl Shield {
    fn enter() -> Self {
        SHIELDED.set(SHIELDED.get() + 1);
        Self
    }
}

impl Drop for Shield {
    fn drop(&mut self) {
        SHIELDED.set(SHIELDED.get() - 1);
    }
}

/// Asked by the panic hook, maybe of a thread that is ending.
fn is_shielded() -> bool {
    SHIELDED.try_with(Cell::get).is_ok_and(|depth| depth > 0)
}
