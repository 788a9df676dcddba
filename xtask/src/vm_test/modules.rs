//! Which of a kernel's modules a virtual machine loads, and in which order.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What tests use and distributions build as modules.
const WANTED: &[&str] = &[
    "fuse",
    "virtiofs",
    "loop",
    "ext4",
    "overlay",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "unix_diag",
    "tcp_diag",
    "udp_diag",
];

/// A module, decompressed.
pub struct Module {
    pub name: String,
    pub content: Vec<u8>,
}

/// The wanted modules below `folder`, each after those that it needs. One that is not there is part of the kernel, or the
/// kernel does without it.
pub fn ordered(folder: &Path) -> Result<Vec<Module>> {
    let mut files = HashMap::new();
    find(folder, &mut files)?;
    let mut order = Vec::new();
    for name in WANTED {
        add(name, &files, &mut order)?;
    }
    Ok(order)
}

fn add(name: &str, files: &HashMap<String, PathBuf>, order: &mut Vec<Module>) -> Result<()> {
    let name = name.replace('-', "_");
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let Some(path) = files.get(&name) else { return Ok(()) };
    let content = read(path).with_context(|| path.display().to_string())?;
    for needed in depends(&content) {
        add(&needed, files, order)?;
    }
    order.push(Module { name, content });
    Ok(())
}

fn find(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find(&path, files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let packed = fs::read(path)?;
    let mut content = Vec::new();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => liblzma::read::XzDecoder::new(&packed[..]).read_to_end(&mut content)?,
        Some("zst") => ruzstd::decoding::StreamingDecoder::new(&packed[..])?.read_to_end(&mut content)?,
        _ => return Ok(packed),
    };
    Ok(content)
}

/// What the module says of itself in its section `.modinfo`: strings that end in zeros, `depends=a,b` one of them.
fn depends(module: &[u8]) -> Vec<String> {
    let words = module.split(|byte| *byte == 0);
    let list = words.filter_map(|word| std::str::from_utf8(word).ok()?.strip_prefix("depends=")).next();
    list.unwrap_or_default().split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_needs() {
        assert_eq!(depends(b"\x7fELF\0name=ext4\0depends=jbd2,mbcache\0"), ["jbd2", "mbcache"]);
        assert!(depends(b"\x7fELF\0depends=\0").is_empty());
    }

    #[test]
    fn each_comes_after_those_that_it_needs() {
        let folder = std::env::temp_dir().join(format!("ckptbpf-modules-{}", std::process::id()));
        fs::create_dir_all(folder.join("fs")).unwrap();
        fs::write(folder.join("fs/ext4.ko"), b"\0depends=crc-16,jbd2\0").unwrap();
        fs::write(folder.join("fs/jbd2.ko"), b"\0depends=crc-16\0").unwrap();
        fs::write(folder.join("crc-16.ko"), b"\0depends=\0").unwrap();
        let names: Vec<String> = ordered(&folder).unwrap().into_iter().map(|module| module.name).collect();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(names, ["crc_16", "jbd2", "ext4"]);
    }
}
