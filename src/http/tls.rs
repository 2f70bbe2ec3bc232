//! TLS for calls that the service makes.

/// Installs a TLS provider for the whole process. reqwest is built without one.
pub(crate) fn install_tls_provider() {
    // It fails if an earlier launch in this process has installed one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
