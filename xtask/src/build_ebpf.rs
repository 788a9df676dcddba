//! `cargo xtask build-ebpf`: builds the eBPF object that is committed beside its source.
//!
//! `cargo build` needs no eBPF toolchain: it takes `ckpt-ebpf/ckptbpf.bpf.o`. This command makes that file, with a record
//! of what it was made from: a hash of the sources and the versions of the tools. The same sources and tools give the
//! same bytes, wherever the checkout lies.
//!
//! The toolchain is rustup's nightly with `rust-src` where there is one, else Debian's `rustc-web` with `rust-web-src`
//! (a stable compiler that `RUSTC_BOOTSTRAP` lets build `core`). The linker, bpf-linker, must be of the compiler's LLVM.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

const LINKER_VERSION: &str = "0.13.0";
const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "ckpt-ebpf/ckptbpf.bpf.o";
const RECORD: &str = "ckpt-ebpf/ckptbpf.bpf.json";
/// What the object depends on: everything in these, by name.
const SOURCES: &[&str] = &[
    "ckpt-ebpf/src",
    "ckpt-ebpf/Cargo.toml",
    "ckpt-ebpf/Cargo.lock",
    "ckpt-common/src",
    "ckpt-common/Cargo.toml",
];
const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "rust-web-src", "cargo-web", "llvm"];

/// Options of `cargo xtask build-ebpf`.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Args {
    /// Set up the toolchain first: apt-get (needs root) and `cargo install`, into the user's cache directory
    #[arg(long)]
    pub install: bool,
    /// Change nothing: the committed object must be what its sources give
    #[arg(long)]
    pub check: bool,
}

/// What the object was made from; committed beside it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// XXH3 of the sources' names and contents.
    sources: String,
    /// XXH3 of the object.
    object: String,
    tools: Versions,
}

/// What each tool says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Versions {
    rustc: String,
    llvm: String,
    linker: String,
    objcopy: String,
}

/// A compiler that can build `core` for eBPF, and what belongs to it.
struct Toolchain {
    /// Words before `rustc` or `cargo`: `rustup run nightly`, or a directory.
    nightly: bool,
    sysroot: PathBuf,
    linker: PathBuf,
    objcopy: PathBuf,
    versions: Versions,
}

/// Builds, or checks.
///
/// # Errors
/// No toolchain (the message says how to get one), a failed build, or, with `--check`, an object that is not up to date.
pub fn run(args: Args) -> Result<()> {
    let root = root()?;
    if args.install {
        install()?;
    }
    let sources = hash_sources(&root)?;
    if args.check { check(&root, &sources) } else { rebuild(&root, sources) }
}

fn rebuild(root: &Path, sources: String) -> Result<()> {
    let toolchain = Toolchain::find()?;
    let object = toolchain.build(root)?;
    let record = Record { sources, object: hash(&object), tools: toolchain.versions };
    fs::write(root.join(OBJECT), &object)?;
    fs::write(root.join(RECORD), serde_json::to_string_pretty(&record)? + "\n")?;
    println!("{OBJECT}: {} bytes, with {}", object.len(), record.tools.rustc);
    Ok(())
}

fn check(root: &Path, sources: &str) -> Result<()> {
    let text = fs::read_to_string(root.join(RECORD))
        .with_context(|| format!("{RECORD}: run `cargo xtask build-ebpf`"))?;
    let record: Record = serde_json::from_str(&text).with_context(|| RECORD.to_owned())?;
    ensure!(
        record.sources == sources,
        "the eBPF sources have changed since {OBJECT} was built: run `cargo xtask build-ebpf`"
    );
    let committed = fs::read(root.join(OBJECT))?;
    ensure!(
        record.object == hash(&committed),
        "{OBJECT} is not the one that {RECORD} is about: run `cargo xtask build-ebpf`"
    );
    let toolchain = Toolchain::find()?;
    let built = toolchain.build(root)?;
    if toolchain.versions == record.tools {
        ensure!(
            built == committed,
            "{OBJECT} differs from what its sources and tools give: run `cargo xtask build-ebpf`"
        );
        println!("{OBJECT}: equals its sources, byte for byte");
        return Ok(());
    }
    println!(
        "notice: {OBJECT} was built with other tools ({:?}) than those here ({:?})",
        record.tools, toolchain.versions
    );
    println!("notice: so the bytes cannot be compared; the object built here must load instead");
    must_load(root, &built)
}

/// Runs the tests of loading on an object that is not the committed one.
fn must_load(root: &Path, object: &[u8]) -> Result<()> {
    let path = root.join("target/ebpf/rebuilt.bpf.o");
    fs::write(&path, object)?;
    let status = command("cargo")
        .args(["test", "--release", "-p", "ckpt-user", "--test", "bpf", "load::"])
        .env("CKPTBPF_TEST_OBJECT", &path)
        .current_dir(root)
        .status()?;
    ensure!(status.success(), "the eBPF object built here does not load on this kernel");
    Ok(())
}

impl Toolchain {
    fn find() -> Result<Self> {
        let how = "run `cargo xtask build-ebpf --install` (as root), or `rustup toolchain install nightly -c rust-src`";
        let (nightly, sysroot) = match (source_of(true), source_of(false)) {
            (Some(sysroot), _) => (true, sysroot),
            (None, Some(sysroot)) => (false, sysroot),
            (None, None) => bail!("no Rust toolchain with its sources: {how}"),
        };
        let about = output(compiler(nightly).arg("-vV"))?;
        let llvm = about
            .lines()
            .find_map(|l| l.strip_prefix("LLVM version: "))
            .context("rustc -vV names no LLVM")?;
        let linker = find_linker().with_context(|| format!("no bpf-linker: {how}"))?;
        let objcopy = find_objcopy().with_context(|| format!("no llvm-objcopy: {how}"))?;
        let versions = Versions {
            rustc: about.lines().next().unwrap_or_default().to_owned(),
            llvm: llvm.to_owned(),
            linker: output(Command::new(&linker).arg("--version"))?.trim().to_owned(),
            objcopy: output(Command::new(&objcopy).arg("--version"))?
                .lines()
                .find(|line| line.contains("version"))
                .unwrap_or_default()
                .trim()
                .to_owned(),
        };
        Ok(Self { nightly, sysroot, linker, objcopy, versions })
    }

    /// The object: code, maps and BTF, without DWARF.
    fn build(&self, root: &Path) -> Result<Vec<u8>> {
        let target = root.join("target/ebpf");
        let home = cargo_home()?;
        // BTF's line information holds paths: the object must not depend on where things lie.
        let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
        let flags = [
            "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("-Clinker={}", self.linker.display()),
            remap(&home, "/cargo"),
            remap(&self.sysroot.join("lib/rustlib/src/rust"), "/rust"),
            remap(root, "/ckptbpf"),
        ];
        let mut cargo = if self.nightly {
            tool("rustup", &["run", "nightly", "cargo"])
        } else {
            command("/usr/bin/cargo")
        };
        if !self.nightly {
            cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        }
        cargo
            .args(["build", "--quiet", "--release", "--locked", "-Zbuild-std=core", "--target", TARGET])
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env("CARGO_TARGET_DIR", &target)
            .current_dir(root.join("ckpt-ebpf"));
        ensure!(cargo.status()?.success(), "building the eBPF programs failed");
        let linked = target.join(TARGET).join("release/ckptbpf");
        let stripped = target.join("ckptbpf.bpf.o");
        let status = Command::new(&self.objcopy).arg("--strip-debug").arg(&linked).arg(&stripped).status()?;
        ensure!(status.success(), "{} failed", self.objcopy.display());
        fs::read(&stripped).with_context(|| stripped.display().to_string())
    }
}

/// The compiler's sysroot, if the sources of `core` are in it.
fn source_of(nightly: bool) -> Option<PathBuf> {
    let sysroot = PathBuf::from(output(compiler(nightly).args(["--print", "sysroot"])).ok()?.trim());
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists().then_some(sysroot)
}

fn compiler(nightly: bool) -> Command {
    if nightly { tool("rustup", &["run", "nightly", "rustc"]) } else { command("/usr/bin/rustc") }
}

fn find_linker() -> Option<PathBuf> {
    let cached = cache().ok()?.join("bin/bpf-linker");
    cached.exists().then_some(cached).or_else(|| in_path("bpf-linker"))
}

/// Any version strips debug sections; a plain name comes before a numbered one.
fn find_objcopy() -> Option<PathBuf> {
    in_path("llvm-objcopy").or_else(|| {
        let mut found: Vec<_> =
            fs::read_dir("/usr/lib").ok()?.flatten().map(|e| e.path().join("bin/llvm-objcopy")).collect();
        found.retain(|path| path.exists());
        found.sort();
        found.pop()
    })
}

fn in_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|directory| directory.join(name)).find(|path| path.exists())
}

/// Sets up the Debian toolchain, unless nightly serves, and the linker for it; nothing missing, nothing done.
///
/// # Errors
/// A package or the linker cannot be installed.
pub fn install() -> Result<()> {
    let nightly = source_of(true).is_some();
    if !nightly && (source_of(false).is_none() || find_objcopy().is_none()) {
        done(command("apt-get").arg("update"))?;
        done(command("apt-get").args(["install", "-y", "--no-install-recommends"]).args(DEBIAN_PACKAGES))?;
    }
    if find_linker().is_some() {
        return Ok(());
    }
    let about = output(compiler(nightly).arg("-vV"))?;
    let llvm =
        about.lines().find_map(|l| l.strip_prefix("LLVM version: ")).context("rustc -vV names no LLVM")?;
    let major = llvm.split('.').next().unwrap_or_default();
    let prefix = cache()?;
    fs::create_dir_all(prefix.join("lib"))?;
    let mut cargo = command("cargo");
    cargo.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--root"]).arg(&prefix);
    if !nightly {
        let link = prefix.join("lib/libLLVM.so");
        if !link.exists() {
            std::os::unix::fs::symlink(shared_llvm(major)?, &link)?;
        }
        cargo
            .args(["--no-default-features", "--features", &format!("llvm-{major}")])
            .env("LLVM_PREFIX", &prefix);
    }
    done(cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "0").env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"))
}

/// Debian's LLVM as a shared library, of the compiler's major version.
fn shared_llvm(major: &str) -> Result<PathBuf> {
    let directory = format!("/usr/lib/{}-linux-gnu", env::consts::ARCH);
    let wanted = format!("libLLVM.so.{major}");
    fs::read_dir(&directory)?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&wanted))
        .map(|entry| entry.path())
        .with_context(|| format!("{directory} has no {wanted}: is libllvm{major} installed?"))
}

/// A hash over the names and contents of all sources, in order of their names.
fn hash_sources(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hasher = Xxh3::new();
    for file in files {
        let content = fs::read(&file).with_context(|| file.display().to_string())?;
        let name = file.strip_prefix(root)?.to_string_lossy().into_owned();
        hasher.update(name.as_bytes());
        hasher.update(&[0]);
        hasher.update(&content.len().to_le_bytes());
        hasher.update(&content);
    }
    Ok(format!("{:032x}", hasher.digest128()))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

fn hash(bytes: &[u8]) -> String {
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(bytes))
}

fn root() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask is in no directory")?.to_owned())
}

/// Where the linker is kept.
fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(base) if Path::new(&base).is_absolute() => PathBuf::from(base),
        _ => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("ckptbpf/bpf"))
}

fn cargo_home() -> Result<PathBuf> {
    match env::var_os("CARGO_HOME") {
        Some(home) => Ok(home.into()),
        None => Ok(PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cargo")),
    }
}

/// A tool, without what the `cargo` that runs us has put into the environment.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in
        ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER"]
    {
        command.env_remove(name);
    }
    command
}

fn tool(program: &str, arguments: &[&str]) -> Command {
    let mut command = command(program);
    command.args(arguments);
    command
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?)
}

fn done(command: &mut Command) -> Result<()> {
    println!("{command:?}");
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}
