//! The core says what it was built from, so that a stale one is never used.

fn main() {
    println!("cargo::rerun-if-env-changed=CALLFUNNEL_SOURCES");
    let sources = std::env::var("CALLFUNNEL_SOURCES").unwrap_or_default();
    println!("cargo::rustc-env=CALLFUNNEL_SOURCES={sources}");
    // macOS has Python's symbols only when the module is loaded.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "macos") {
        println!("cargo::rustc-cdylib-link-arg=-undefined");
        println!("cargo::rustc-cdylib-link-arg=dynamic_lookup");
    }
}
