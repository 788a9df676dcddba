//! What `--version` says.

use std::sync::OnceLock;

/// Version, image format version, and what the eBPF object was built from.
pub fn version_string() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let version = env!("CARGO_PKG_VERSION");
        let format = crate::image::FORMAT_VERSION;
        format!("{version} (image format {format})")
    })
}
