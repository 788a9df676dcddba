//! A folder of this machine that a virtual one can mount: virtiofsd(1), which speaks to QEMU through a socket.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::machine::{Watched, wait_for_socket};

/// Where distributions have it; a part of QEMU's packages before Debian 13.
const DAEMONS: &[&str] = &["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];

pub fn is_possible() -> bool {
    daemon().is_some()
}

fn daemon() -> Option<&'static str> {
    DAEMONS.iter().copied().find(|path| Path::new(path).exists())
}

/// One that runs, for one machine.
pub struct Share {
    pub socket: PathBuf,
    /// The name by which it is mounted.
    pub tag: &'static str,
    _daemon: Watched,
}

impl Share {
    /// Shows `folder` under the name `tag`.
    pub fn begin(folder: &str, tag: &'static str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let socket = std::env::temp_dir().join(format!("ckptbpf-{}-share-{number}", std::process::id()));
        let mut command = Command::new(daemon().context("there is no virtiofsd here")?);
        command
            .arg(format!("--socket-path={}", socket.display()))
            .arg("-o")
            .arg(format!("source={folder},sandbox=chroot"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let daemon = Watched(child.context("starting virtiofsd")?);
        wait_for_socket(&socket)?;
        Ok(Self { socket, tag, _daemon: daemon })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // It may have removed it itself; the file of its process id is its own in either form.
        let _ = std::fs::remove_file(&self.socket);
        let socket = self.socket.display().to_string();
        let _ = std::fs::remove_file(format!("{socket}.pid"));
        let dotted = socket.trim_start_matches('/').replace('/', ".");
        let _ = std::fs::remove_file(format!("/run/virtiofsd/{dotted}.pid"));
    }
}
