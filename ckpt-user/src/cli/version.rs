//! What `--version` says.

use std::sync::OnceLock;

use serde_json::Value;

const OBJECT_RECORD: &str = include_str!("../../../ckpt-ebpf/ckptbpf.bpf.json");

/// Version, image format version, and what the eBPF object was built from.
pub fn version_string() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let version = env!("CARGO_PKG_VERSION");
        let format = crate::image::FORMAT_VERSION;
        format!("{version} (image format {format}; {})", object(OBJECT_RECORD))
    })
}

/// What the committed eBPF object was built from, as `cargo xtask build-ebpf` noted it.
fn object(record: &str) -> String {
    let record: Value = serde_json::from_str(record).unwrap_or_default();
    let field = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let tools = &record["tools"];
    // "rustc 1.90.0 (hash date)": the first two words say which.
    let compiler = field(&tools["rustc"]).split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    format!(
        "eBPF object {} from sources {} by {compiler}, LLVM {}, {}",
        field(&record["object"]),
        field(&record["sources"]),
        field(&tools["llvm"]),
        field(&tools["linker"])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_and_sources_are_named_and_a_record_without_them_is_no_panic() {
        let text = version_string();
        assert!(text.contains("image format 1; eBPF object ") && !text.contains("unknown"), "{text}");
        assert!(object("garbage").contains("unknown"));
    }
}
