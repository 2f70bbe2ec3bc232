//! TLS for the service's own calls.

/// Gives reqwest its TLS provider, which it does not bring. There is one for the whole process.
pub(crate) fn install_tls_provider() {
    // It fails where an earlier launch in this process has installed it.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
