//! Tells the build scripts of dependent packages which backends this one is compiled with.
//!
//! Cargo passes it on because the manifest has the key `links`, in `DEP_ROCKET_TX_SQLITE` and
//! `DEP_ROCKET_TX_POSTGRES`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for backend in ["SQLITE", "POSTGRES"] {
        if std::env::var_os(format!("CARGO_FEATURE_{backend}")).is_some() {
            println!("cargo::metadata={backend}=1");
        }
    }
}
