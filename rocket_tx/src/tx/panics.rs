//! Detects panics that a catcher would hide.
//!
//! Rocket catches a handler's panic and calls the catcher for status 500. If the catcher returns a
//! success, nothing in the response shows that there was a panic.
//!
//! A guard detects a panic that drops it. It cannot detect a panic in a responder, or one after the
//! last guard was dropped. Therefore this module installs a panic hook. The hook marks the request
//! whose task panicked, and then calls the hook that the process had before. Settlement reads the
//! mark with `Outstanding::has_panicked`.

use std::any::Any;
use std::cell::Cell;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Once};

use parking_lot::Mutex;

use crate::db::CurrentTask;

thread_local! {
    /// The number of nested calls of `shielded` on this thread.
    static SHIELDED: Cell<usize> = const { Cell::new(0) };
}

/// The panic flags of all running requests, by the task in which each request runs.
static WATCHED: LazyLock<Mutex<HashMap<CurrentTask, Vec<Arc<AtomicBool>>>>> =
    LazyLock::new(Mutex::default);

/// Installs the hook, once per process. If other code later replaces it with a hook that does not
/// call it, only panics that drop a guard are still detected.
pub(in crate::tx) fn install() {
    static INSTALL: Once = Once::new();

    INSTALL.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if is_shielded() {
                // `shielded` catches this panic. It does not count as a panic of the request.
            } else if let Some(requests) = WATCHED.lock().get(&CurrentTask::here()) {
                for panicked in requests {
                    panicked.store(true, Ordering::SeqCst);
                }
            }
            next(panic);
        }));
    });
}

/// Records whether anything has panicked in the task of one request since this watch was created.
pub(in crate::tx) struct PanicWatch {
    place: CurrentTask,
    panicked: Arc<AtomicBool>,
}

impl PanicWatch {
    /// Starts watching the current task or thread.
    pub(in crate::tx) fn here() -> Self {
        let watch = Self {
            place: CurrentTask::here(),
            panicked: Arc::default(),
        };
        WATCHED
            .lock()
            .entry(watch.place)
            .or_default()
            .push(Arc::clone(&watch.panicked));
        watch
    }

    /// Records a panic. Called by a guard that a panic drops, possibly on another task than the
    /// request's.
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

/// Runs code of the service that is not part of the handling of a request: an observer, a veto, the
/// `Drop` of a body. Returns `None` if this code panics.
///
/// Such a panic is logged with the name `what`. It does not count as a panic of the request.
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

/// Returns the message of a panic.
pub(in crate::tx) fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

/// Counts one call of `shielded` on this thread until it is dropped.
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

/// Whether this thread is in a call of `shielded`. The panic hook may run on a thread that is
/// ending, where the thread-local value no longer exists.
fn is_shielded() -> bool {
    SHIELDED.try_with(Cell::get).is_ok_and(|depth| depth > 0)
}
