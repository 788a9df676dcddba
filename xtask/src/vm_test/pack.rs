//! The initial file system of a virtual machine: what its tests need, under the same paths as here.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};

use super::fetch::Fetched;
use super::modules;
use super::plan::{Plan, Programs, Test};
use crate::cmd;

/// Programs of this machine that tests call by name.
const TOOLS: &[&str] = &[
    "basename", "bash", "sh", "cat", "chmod", "chroot", "cmp", "cp", "cut", "date", "dd", "dirname", "echo",
    "env", "false", "grep", "head", "hostname", "ip", "kill", "ls", "ln", "mkdir", "mkfifo", "mount", "mv",
    "nproc", "rm", "sed", "seq", "setpriv", "setsid", "sleep", "sort", "stat", "sync", "tail", "tar", "tee",
    "timeout", "touch", "tr", "true", "umount", "uname", "unshare", "wc",
];
/// Runs its arguments with the programs and libraries of the machine below.
const ON_HOST: &str = "vm-test/guest/host.sh";
/// Limits of tests, for a processor that is emulated: a page fault takes it thirteen times as long; less of what is only more of the same:
/// one eager and one lazy restart of a program, and half the memory; and that nobody else is there, for those that set what is the whole
/// machine's.
const ENVIRONMENT: &str = "CKPTBPF_TEST_TIMEOUT_SCALE=6\nCKPTBPF_ROUNDS=2\nCKPTBPF_LAZY_MIB=128\n\
     CKPTBPF_OWN_MACHINE=1\nHOME=/root\nLC_ALL=C\nRUST_BACKTRACE=1\nPATH=/usr/bin:/bin:/usr/sbin:/sbin\n";
const FOLDERS: &[&str] =
    &["/proc", "/sys", "/dev", "/tmp", "/run", "/var/tmp", "/root", "/mnt", "/files", "/etc/sudoers.d"];

pub fn initramfs(path: &Path, programs: &Programs, plan: &Plan, kernel: &Fetched) -> Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut archive = Archive { out: BufWriter::new(file), seen: BTreeSet::new() };
    for folder in FOLDERS {
        archive.folder(Path::new(folder))?;
    }
    archive.copy(&programs.init, Path::new("/init"))?;
    let repository = std::env::current_dir()?;
    let mut binaries: Vec<PathBuf> = tools()?;
    binaries.extend([programs.release.join("box-init"), programs.ckptbpf.clone()]);
    binaries.extend(plan.tests.iter().map(|test| test.program.clone()));
    let victims = programs.release.parent().context("target")?.join("victims");
    binaries.extend(files(&victims)?);
    binaries.sort();
    binaries.dedup();
    for library in libraries(&binaries)? {
        archive.copy(&library, &library)?;
    }
    let ckptbpf = programs.release.join("ckptbpf");
    archive.copy(&programs.ckptbpf, &ckptbpf)?;
    archive.copy(&programs.busybox, Path::new("/bin/busybox"))?;
    for binary in &binaries {
        archive.copy(binary, binary)?;
    }
    // By whose times a victim is known to be compiled, and scripts.
    for source in files(&repository.join("tests/victims"))? {
        archive.copy(&source, &source)?;
    }
    let table = repository.join("tests/src/victim.rs");
    archive.copy(&table, &table)?;
    archive.text("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\n")?;
    archive.text("/etc/group", "root:x:0:\n")?;
    archive.text("/etc/shadow", "root:*:19000:0:99999:7:::\n")?;
    let mut list = String::new();
    for module in modules::ordered(&kernel.modules)? {
        let name = format!("/vm-test/{}.ko", module.name);
        archive.put(Path::new(&name), 0o100_644, 0, &module.content)?;
        list += &(name + "\n");
    }
    archive.text("/vm-test/modules", &list)?;
    for script in files(&repository.join("vm-test/guest"))? {
        archive.copy(&script, &script)?;
    }
    let [ckptbpf, victims] = [ckptbpf, victims].map(|path| path.display().to_string());
    let plant = programs.plant.iter().map(|bug| format!("CKPTBPF_PLANT={bug}\n")).collect::<String>();
    let environment = format!("{ENVIRONMENT}CKPTBPF={ckptbpf}\nVICTIMS={victims}\n{plant}");
    archive.text("/vm-test/environment", &environment)?;
    archive.text("/vm-test/plan", &lines(plan, &repository))?;
    let mut out = cpio::newc::trailer(archive.out)?;
    Ok(out.flush()?)
}

fn lines(plan: &Plan, repository: &Path) -> String {
    if plan.shell {
        return "shell\t/usr/bin/setsid\t--ctty\t--wait\t/bin/bash\t-i\n".into();
    }
    let line = |test: &Test| {
        let program = test.program.display().to_string();
        let wrapper = repository.join(ON_HOST).display().to_string();
        let wrapped = test.on_host.then_some(["/bin/bash", &wrapper]).into_iter().flatten();
        let words = [test.name.as_str()].into_iter().chain(wrapped).chain([program.as_str()]);
        words.chain(test.arguments.iter().map(String::as_str)).collect::<Vec<_>>().join("\t") + "\n"
    };
    plan.tests.iter().map(line).collect()
}

/// Where this machine has them; one that it has not fails the tests that call it.
fn tools() -> Result<Vec<PathBuf>> {
    let folders = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
    let find =
        |name: &&str| folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file());
    let mut found: Vec<PathBuf> = TOOLS.iter().filter_map(find).collect();
    // By which scripts and tests call them.
    found.extend(["/bin/sh", "/bin/bash", "/bin/true"].map(PathBuf::from));
    Ok(found)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if !is_hidden {
            found.push(path);
        }
    }
    Ok(found)
}

/// The shared libraries of all of them, and the loader; ldd(1).
fn libraries(binaries: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for binary in binaries {
        // It fails for what is linked statically.
        let printed = cmd::output(Command::new("ldd").arg(binary)).unwrap_or_default();
        let path = |line: &str| {
            let word = line.split("=>").last()?.split_whitespace().next()?;
            word.starts_with('/').then(|| PathBuf::from(word))
        };
        found.extend(printed.lines().filter_map(path));
    }
    Ok(found)
}

struct Archive {
    out: BufWriter<File>,
    seen: BTreeSet<PathBuf>,
}

impl Archive {
    fn folder(&mut self, path: &Path) -> Result<()> {
        for folder in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
            if folder != Path::new("/") && self.seen.insert(folder.into()) {
                self.entry(folder, 0o40_755, 0, &[])?;
            }
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, mode: u32, changed: u32, content: &[u8]) -> Result<()> {
        self.folder(path.parent().unwrap_or(Path::new("/")))?;
        if self.seen.insert(path.into()) { self.entry(path, mode, changed, content) } else { Ok(()) }
    }

    fn text(&mut self, path: &str, content: &str) -> Result<()> {
        self.put(Path::new(path), 0o100_644, 0, content.as_bytes())
    }

    /// Links are followed: what is there stands under the name that was asked for.
    fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let content = fs::read(from).with_context(|| from.display().to_string())?;
        let meta = fs::metadata(from)?;
        let changed = meta.modified()?.duration_since(UNIX_EPOCH)?.as_secs();
        self.put(to, 0o100_000 | (meta.permissions().mode() & 0o7777), u32::try_from(changed)?, &content)
    }

    fn entry(&mut self, path: &Path, mode: u32, changed: u32, content: &[u8]) -> Result<()> {
        let name = path.strip_prefix("/")?.to_str().context("paths are UTF-8")?;
        let entry =
            cpio::newc::Builder::new(name).mode(mode).mtime(changed).nlink(1).ino(self.seen.len() as u32);
        let mut writer = entry.write(&mut self.out, u32::try_from(content.len())?);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}
