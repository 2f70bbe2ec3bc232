//! A map from keys to shared objects. An object stays in the map while a reference to it exists.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::LockError;

/// A map of weak references. An object must call [`forget`](Self::forget) when it is dropped, or
/// its entry leaks.
pub(crate) struct Keyed<T>(Arc<Mutex<HashMap<Arc<str>, Weak<T>>>>);

impl<T> Clone for Keyed<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Keyed<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Keyed<T> {
    /// Returns the object of `key`; calls `make` if there is none.
    ///
    /// # Errors
    ///
    /// [`LockError::Key`] unless the key has 1 to 300 bytes and no control characters.
    pub(crate) fn get(
        &self,
        key: &str,
        make: impl FnOnce(Arc<str>) -> T,
    ) -> Result<Arc<T>, LockError> {
        if key.is_empty() || key.len() > 300 || key.chars().any(char::is_control) {
            return Err(LockError::Key);
        }
        let mut objects = self.0.lock();
        if let Some(object) = objects.get(key).and_then(Weak::upgrade) {
            return Ok(object);
        }
        let key: Arc<str> = key.into();
        let object = Arc::new(make(Arc::clone(&key)));
        objects.insert(key, Arc::downgrade(&object));
        Ok(object)
    }

    /// Removes the entry of a dropped object. The object must call this in its `Drop`.
    pub(crate) fn forget(&self, key: &str) {
        let mut objects = self.0.lock();
        // Another task may have put a new object in its place.
        if objects
            .get(key)
            .is_some_and(|object| object.strong_count() == 0)
        {
            objects.remove(key);
        }
    }

    /// Makes a new object for `key`. It replaces an older object in the map, even one that is still
    /// referenced.
    pub(crate) fn put(&self, key: &str, make: impl FnOnce(Arc<str>) -> T) -> Arc<T> {
        let key: Arc<str> = key.into();
        let object = Arc::new(make(Arc::clone(&key)));
        self.0.lock().insert(key, Arc::downgrade(&object));
        object
    }

    /// Returns the object of `key`, if there is one.
    pub(crate) fn find(&self, key: &str) -> Option<Arc<T>> {
        self.0.lock().get(key).and_then(Weak::upgrade)
    }

    /// Calls `act` with every object.
    #[cfg(postgres)]
    pub(crate) fn for_each(&self, act: impl FnMut(Arc<T>)) {
        // The references are dropped outside the mutex: dropping the last reference to an object
        // calls `forget`, which locks the mutex.
        let objects: Vec<_> = self.0.lock().values().filter_map(Weak::upgrade).collect();
        objects.into_iter().for_each(act);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }
}
