//! The hashes by which a request is recognized.

use std::fmt;

use rocket::Request;
use sha2::{Digest, Sha256};

use crate::key::Key;

type Bytes = [u8; 32];

/// The hash of caller, method, path and key: what makes two requests the same one.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope(Bytes);

/// The hash of the content of a request: method, path, query, content type and body.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(Bytes);

/// The hash of a request's content without its body.
#[derive(Clone)]
pub(crate) struct Head(Sha256);

impl Scope {
    pub(crate) fn new(request: &Request<'_>, caller: &str, key: &Key) -> Self {
        let mut hash = start("scope");
        for part in [
            caller,
            request.method().as_str(),
            request.uri().path().as_str(),
            key.as_str(),
        ] {
            add(&mut hash, part.as_bytes());
        }
        Self(hash.finalize().into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The number of the advisory lock. Two scopes with the same number only wait for each other.
    #[cfg(postgres)]
    pub(crate) fn lock(&self) -> i64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        i64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// Returns a key for a request to another service, which belongs to this request and to
    /// `purpose`.
    pub(crate) fn derive(&self, purpose: &str) -> String {
        let mut hash = start("derived key");
        add(&mut hash, &self.0);
        add(&mut hash, purpose.as_bytes());
        let bytes: Bytes = hash.finalize().into();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Head {
    pub(crate) fn of(request: &Request<'_>) -> Self {
        let content_type = request.headers().get_one("Content-Type");
        let mut hash = start("fingerprint");
        for part in [
            request.method().as_str(),
            request.uri().path().as_str(),
            request.uri().query().map_or("", |query| query.as_str()),
            content_type.unwrap_or_default(),
        ] {
            add(&mut hash, part.as_bytes());
        }
        Self(hash)
    }

    /// Returns the fingerprint of a request whose whole body is known.
    pub(crate) fn with_body(&self, body: &[u8]) -> Fingerprint {
        self.with("body", body)
    }

    /// Returns the fingerprint of a request of whose body only the beginning is known.
    pub(crate) fn with_beginning(&self, beginning: &[u8]) -> Fingerprint {
        self.with("beginning of the body", beginning)
    }

    fn with(&self, what: &str, bytes: &[u8]) -> Fingerprint {
        let mut hash = self.0.clone();
        add(&mut hash, what.as_bytes());
        add(&mut hash, bytes);
        Fingerprint(hash.finalize().into())
    }
}

impl Fingerprint {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Starts a hash for one purpose, so that no hash can be mistaken for one of another purpose.
fn start(purpose: &str) -> Sha256 {
    let mut hash = Sha256::new();
    add(&mut hash, b"rocket_tx_idempotency 1");
    add(&mut hash, purpose.as_bytes());
    hash
}

/// Adds a part with its length, so that different parts never make the same input.
fn add(hash: &mut Sha256, part: &[u8]) {
    hash.update((part.len() as u64).to_be_bytes());
    hash.update(part);
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scope(..)")
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprint(..)")
    }
}
