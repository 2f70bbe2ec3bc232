//! A stand-in for `tokio_util::task::TaskTracker` that uses primitives of shuttle.

pub mod task {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tokio::sync::Notify;

    /// Counts the tokens that exist.
    #[derive(Clone)]
    pub struct TaskTracker(Arc<Tracked>);

    struct Tracked {
        tokens: Mutex<usize>,
        none: Notify,
    }

    pub mod task_tracker {
        pub struct TaskTrackerToken(pub(super) super::TaskTracker);
    }

    impl TaskTracker {
        pub fn new() -> Self {
            Self(Arc::new(Tracked {
                tokens: Mutex::new(0),
                none: Notify::new(),
            }))
        }

        pub fn token(&self) -> task_tracker::TaskTrackerToken {
            *self.0.tokens.lock() += 1;
            task_tracker::TaskTrackerToken(self.clone())
        }

        pub fn len(&self) -> usize {
            *self.0.tokens.lock()
        }

        pub fn close(&self) {}

        pub async fn wait(&self) {
            loop {
                let none = self.0.none.notified();
                if self.len() == 0 {
                    return;
                }
                none.await;
            }
        }
    }

    impl Drop for task_tracker::TaskTrackerToken {
        fn drop(&mut self) {
            let tracked = &self.0.0;
            let mut tokens = tracked.tokens.lock();
            *tokens -= 1;
            if *tokens == 0 {
                tracked.none.notify_waiters();
            }
        }
    }
}
