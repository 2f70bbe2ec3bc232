//! TLS for what the service itself calls.

/// Gives reqwest, which brings none, its TLS provider. The process has one: a second launch in it,
/// or another client, finds it there.
pub(super) fn provide() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
