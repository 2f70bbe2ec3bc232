//! Sets `cfg(sqlite)` and `cfg(postgres)` for the backends that `rocket_tx` is compiled with.
//!
//! The features of this package would be too few: another package may enable more backends of
//! `rocket_tx`, and then `UrlPool` has them too.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for backend in ["sqlite", "postgres"] {
        println!("cargo::rustc-check-cfg=cfg({backend})");
        let enabled = format!("DEP_ROCKET_TX_{}", backend.to_uppercase());
        if std::env::var_os(enabled).is_some() {
            println!("cargo::rustc-cfg={backend}");
        }
    }
}
