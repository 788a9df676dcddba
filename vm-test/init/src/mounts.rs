//! What a distribution mounts before anything runs.

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use std::fs;
use std::os::unix::fs::symlink;

/// Source, folder and type; what a kernel lacks of the last ones is told, and done without.
const NEEDED: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("tmpfs", "/dev/shm"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/var/tmp"),
];
const WANTED: &[(&str, &str)] = &[
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("tracefs", "/sys/kernel/tracing"),
    ("debugfs", "/sys/kernel/debug"),
    ("mqueue", "/dev/mqueue"),
];

pub fn all() -> Result<()> {
    for (kind, folder) in NEEDED {
        put(kind, folder)?;
    }
    for (kind, folder) in WANTED {
        if let Err(error) = put(kind, folder) {
            println!("{error:#}");
        }
    }
    for (target, link) in [("/proc/self/fd", "/dev/fd"), ("/proc/self/fd/1", "/dev/stdout")] {
        // devtmpfs may have it.
        let _ = symlink(target, link);
    }
    Ok(())
}

/// Disks that go from machine to machine, where there are any.
pub fn disks() -> Result<()> {
    for (disk, folder) in [("/dev/vda", "/mnt"), ("/dev/vdb", "/files")] {
        if std::path::Path::new(disk).exists() {
            mount(Some(disk), folder, Some("ext4"), MsFlags::empty(), None::<&str>)
                .with_context(|| format!("mounting {disk}"))?;
        }
    }
    Ok(())
}

fn put(kind: &str, folder: &str) -> Result<()> {
    // There already, or it cannot be made, which mounting tells.
    let _ = fs::create_dir_all(folder);
    let mode = match folder {
        "/tmp" | "/var/tmp" | "/dev/shm" => Some("mode=1777"),
        "/run" => Some("mode=755"),
        "/dev/pts" => Some("ptmxmode=666"),
        _ => None,
    };
    mount(Some(kind), folder, Some(kind), MsFlags::empty(), mode)
        .with_context(|| format!("mounting {folder}"))
}
