//! Kernels as Debian packages them, fetched by the machine's own package manager into a cache: nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use super::kernels::{Kernel, NEWEST};
use super::vmlinux;
use crate::cmd;

/// Releases of Debian and what their kernels are called there: 5.10, 6.1, 6.12, and all newer ones.
const SUITES: &[&str] =
    &["bullseye-security", "bookworm", "bookworm-security", "trixie", "trixie-security", "trixie-backports"];
/// The archive of all of them.
const DEBIAN: &str = "http://deb.debian.org";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The kernels without drivers of real hardware: a third of the size.
const FLAVOUR: &str = "-cloud-amd64";
/// One package before 6.19, since then up to three.
const PARTS: &[&str] = &["linux-image-", "linux-binary-", "linux-modules-"];
/// How old a list of packages may be.
const FRESH: Duration = Duration::from_secs(24 * 3600);

pub struct Fetched {
    pub version: String,
    pub vmlinux: PathBuf,
    /// Where its modules lie.
    pub modules: PathBuf,
    /// What was wanted and cannot be had, where this is in its place.
    pub wanting: Option<String>,
}

/// Finds and fetches every kernel, and busybox, or takes them from the cache.
pub fn all(kernels: &[Kernel], cache: &Path) -> Result<(Vec<Fetched>, PathBuf)> {
    let apt = Apt::prepare(cache)?;
    let known = apt.versions()?;
    let mut all: Vec<Fetched> = Vec::new();
    for kernel in kernels {
        let mut fetched = one(&apt, &known, kernel).with_context(|| format!("Linux {}", kernel.name))?;
        let same = kernels.iter().zip(&all).find(|(_, other)| other.version == fetched.version);
        fetched.wanting = wanting(kernel, &fetched.version, same.map(|(other, _)| other.name.as_str()));
        all.push(fetched);
    }
    Ok((all, apt.busybox()?))
}

/// The first choice that can really be had: lists name packages that are gone from the archive.
fn one(apt: &Apt, known: &[String], kernel: &Kernel) -> Result<Fetched> {
    let mut refused = None;
    for version in choices(known, kernel).into_iter().take(4) {
        match apt.kernel(version) {
            Ok(fetched) => return Ok(fetched),
            Err(error) => {
                println!("Linux {version} cannot be had: {error:#}");
                refused = Some(error);
            }
        }
    }
    Err(refused.unwrap_or_else(|| anyhow::anyhow!("no package of it in {}", SUITES.join(", "))))
}

/// The versions that may be taken for a kernel of kernels.toml, the first choice first. `known`: the oldest first.
fn choices<'a>(known: &'a [String], kernel: &Kernel) -> Vec<&'a str> {
    let mut versions: Vec<&str> = known.iter().rev().map(String::as_str).collect();
    let Some(from) = &kernel.from else {
        versions.retain(|version| is_called(version, &kernel.name));
        return versions;
    };
    if kernel.name != NEWEST {
        let newest = versions.first().map(|version| series(version));
        // The oldest series that will do; that of the newest, which has a name of its own, if there is no other one. Within a
        // series, and where none will do, they stay as they are.
        versions.sort_by_key(|version| match series(version) {
            old if old < series(from) => (2, (0, 0)),
            last if Some(last) == newest => (1, last),
            other => (0, other),
        });
    }
    versions
}

/// What of `kernel` cannot be had, if `version` is all that there is for it; `same`: who has that already.
fn wanting(kernel: &Kernel, version: &str, same: Option<&str>) -> Option<String> {
    let from = kernel.from.as_deref()?;
    if series(version) < series(from) {
        return Some(format!("Linux {from} or newer: the archive has none"));
    }
    same.map(|same| format!("another kernel than that of {same}: the archive has none"))
}

/// The first two numbers of a version.
fn series(version: &str) -> (u64, u64) {
    let mut numbers = numbers(version).into_iter();
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether `version` begins with all numbers of `name`.
fn is_called(version: &str, name: &str) -> bool {
    version.strip_prefix(name).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Numbers in a version, by which versions are ordered: 6.12.9 before 6.12.10.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The package manager with lists of its own.
struct Apt {
    cache: PathBuf,
    config: PathBuf,
    /// All packages of kernels and parts of them.
    names: Vec<String>,
}

impl Apt {
    fn prepare(cache: &Path) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).is_file(),
            "{KEYRING} is missing: kernels are fetched from Debian's archive (apt-get install debian-archive-keyring)"
        );
        for folder in ["lists/partial", "apt/archives/partial", "packages", "kernels"] {
            fs::create_dir_all(cache.join(folder)).with_context(|| cache.display().to_string())?;
        }
        let mut apt = Self { cache: cache.into(), config: cache.join("apt.conf"), names: Vec::new() };
        let sources = Archives::of_this_machine().sources();
        let list = cache.join("sources.list");
        let is_known = fs::read_to_string(&list).is_ok_and(|text| text == sources);
        fs::write(&list, sources).with_context(|| list.display().to_string())?;
        fs::write(&apt.config, config(cache)).with_context(|| apt.config.display().to_string())?;
        let stamp = cache.join("updated");
        let is_fresh = fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age < FRESH));
        if !is_known || !is_fresh {
            match cmd::run(&mut apt.command("apt-get", &["-q", "update"])) {
                Ok(()) => fs::write(&stamp, "").with_context(|| stamp.display().to_string())?,
                Err(error) if is_known => println!("the lists of packages are old, and stay so: {error:#}"),
                Err(error) => return Err(error),
            }
        }
        let names = cmd::output(&mut apt.command("apt-cache", &["pkgnames", "linux-"]))?;
        let is_part = |name: &&str| {
            let rest = PARTS.iter().find_map(|part| name.strip_prefix(part));
            rest.is_some_and(|rest| rest.ends_with(FLAVOUR) && rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        apt.names = names.lines().filter(is_part).map(str::to_owned).collect();
        Ok(apt)
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).env("APT_CONFIG", &self.config).env("LC_ALL", "C.UTF-8");
        command
    }

    /// Versions of kernels, oldest first. A name without a third number stands for whatever is newest of a kind.
    fn versions(&self) -> Result<Vec<String>> {
        let images = self.names.iter().filter_map(|name| name.strip_prefix(PARTS[0])?.strip_suffix(FLAVOUR));
        let mut versions: Vec<String> = images.filter(|v| numbers(v).len() > 2).map(str::to_owned).collect();
        versions.sort_by_cached_key(|version| numbers(version));
        ensure!(!versions.is_empty(), "the archive has no packages of kernels");
        Ok(versions)
    }

    /// Fetches and unpacks all parts of a kernel, once.
    fn kernel(&self, version: &str) -> Result<Fetched> {
        let folder = self.cache.join("kernels").join(version);
        let (vmlinux, root) = (folder.join("vmlinux"), folder.join("root"));
        if !vmlinux.is_file() {
            let parts = PARTS.iter().map(|part| format!("{part}{version}{FLAVOUR}"));
            let parts: Vec<String> = parts.filter(|name| self.names.contains(name)).collect();
            println!("fetching {}", parts.join(", "));
            for part in &parts {
                self.unpack(part, &root)?;
            }
            // Those in parts have it beside their modules.
            let beside = root.join("usr/lib/modules").join(format!("{version}{FLAVOUR}"));
            let image = find(&root.join("boot"), "vmlinuz-").or_else(|_| find(&beside, "vmlinuz"))?;
            let kernel = vmlinux::extract(&fs::read(&image)?).with_context(|| image.display().to_string())?;
            // Under its name once it is whole.
            let unfinished = folder.join("vmlinux.new");
            fs::write(&unfinished, kernel)?;
            fs::rename(&unfinished, &vmlinux)?;
        }
        let folders = ["usr/lib/modules", "lib/modules"].map(|folder| root.join(folder));
        let modules =
            folders.into_iter().find(|folder| folder.is_dir()).context("a kernel without modules")?;
        Ok(Fetched { version: version.into(), vmlinux, modules, wanting: None })
    }

    /// One that is linked statically.
    fn busybox(&self) -> Result<PathBuf> {
        let root = self.cache.join("busybox");
        let find = || {
            ["bin", "usr/bin"]
                .map(|folder| root.join(folder).join("busybox"))
                .into_iter()
                .find(|path| path.is_file())
        };
        if find().is_none() {
            self.unpack("busybox-static", &root)?;
        }
        find().context("the package busybox-static has no busybox")
    }

    fn unpack(&self, package: &str, root: &Path) -> Result<()> {
        let packages = self.cache.join("packages");
        let prefix = format!("{package}_");
        if find(&packages, &prefix).is_err() {
            cmd::run(self.command("apt-get", &["-q", "download", package]).current_dir(&packages))?;
        }
        let file = find(&packages, &prefix)?;
        fs::create_dir_all(root)?;
        cmd::run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(root))?;
        // What was in it is unpacked.
        fs::remove_file(&file).with_context(|| file.display().to_string())
    }
}

/// The first file in `folder` whose name begins with `prefix`.
fn find(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?.flatten();
    let is_it =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    let found = entries.map(|entry| entry.path()).find(is_it);
    found.with_context(|| format!("no {prefix}… in {}", folder.display()))
}

/// Where packages come from.
#[derive(Debug, PartialEq, Eq)]
struct Archives {
    /// Of releases.
    main: String,
    /// Of what has come since for the sake of security.
    security: String,
}

impl Archives {
    /// Those that this machine's package manager uses already; Debian's own where it uses none of Debian, as Ubuntu's.
    fn of_this_machine() -> Self {
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        files.extend(
            fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path()),
        );
        let is_read =
            |path: &&PathBuf| path.extension().is_some_and(|kind| kind == "list" || kind == "sources");
        let texts = files.iter().filter(is_read).filter_map(|path| fs::read_to_string(path).ok());
        Self::named_in(&texts.collect::<Vec<_>>())
    }

    fn named_in(texts: &[String]) -> Self {
        let find = |folder: &str| {
            texts
                .iter()
                .flat_map(|text| text.lines())
                .find_map(|line| address(line, folder))
                .map(str::to_owned)
        };
        let main = find("/debian").unwrap_or_else(|| format!("{DEBIAN}/debian"));
        // Mirrors have both, one beside the other.
        let security = find("/debian-security").unwrap_or_else(|| format!("{main}-security"));
        Self { main, security }
    }

    fn sources(&self) -> String {
        let line = |suite: &&str| {
            let archive = if suite.ends_with("-security") { &self.security } else { &self.main };
            format!("deb [signed-by={KEYRING}] {archive} {suite} main\n")
        };
        SUITES.iter().map(line).collect()
    }
}

/// The address that ends in `folder` in a line of the older or the newer format; sources.list(5).
fn address<'a>(line: &'a str, folder: &str) -> Option<&'a str> {
    let is_source = line.starts_with("URIs:") || line.starts_with("deb ");
    let mut words = line.split_whitespace().filter(|_| is_source).map(|word| word.trim_end_matches('/'));
    words.find(|word| word.ends_with(folder))
}

fn config(cache: &Path) -> String {
    let cache = cache.display();
    format!(
        "Dir::Etc::sourcelist \"{cache}/sources.list\";\nDir::Etc::sourceparts \"-\";\n\
         Dir::State::Lists \"{cache}/lists\";\nDir::Cache \"{cache}/apt\";\n\
         Acquire::Languages \"none\";\nAcquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         APT::Sandbox::User \"root\";\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_beginnings_of_versions() {
        assert!(is_called("6.1.0-57", "6.1"));
        assert!(!is_called("6.12.1", "6.1"));
    }

    fn kernel(name: &str, from: Option<&str>) -> Kernel {
        Kernel {
            name: name.into(),
            from: from.map(str::to_owned),
            lacks: vec![],
            skips: vec![],
            short: false,
        }
    }

    #[test]
    fn archives_move_on() {
        let first = |known: &[&str], kernel: &Kernel| {
            let known: Vec<String> = known.iter().map(|version| (*version).to_owned()).collect();
            choices(&known, kernel).first().map(|version| (*version).to_owned()).unwrap_or_default()
        };
        let (between, newest) = (kernel("6.18+", Some("6.18")), kernel("newest", Some("7")));
        let now = ["6.12.118", "6.17.13", "6.18.9", "6.18.15", "6.19.14", "7.2.12", "7.3.4"];
        assert_eq!((first(&now, &between), first(&now, &newest)), ("6.18.15".into(), "7.3.4".into()));
        assert_eq!(first(&now, &kernel("6.12", None)), "6.12.118");
        assert_eq!(first(&["6.12.118", "7.2.6", "7.2.12", "7.3.4"], &between), "7.2.12");
        assert_eq!(first(&["6.12.118", "7.3.3", "7.3.4"], &between), "7.3.4");
        assert_eq!(first(&["6.12.117", "6.12.118"], &between), "6.12.118");
        assert_eq!(first(&["6.12.118", "7.3.4"], &kernel("6.18", None)), "");
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let (between, newest) = (kernel("6.18+", Some("6.18")), kernel("newest", Some("7")));
        assert_eq!(wanting(&between, "6.18.15", None), None);
        assert_eq!(wanting(&newest, "7.3.4", None), None);
        let said = |kernel: &Kernel, version, same| wanting(kernel, version, same).unwrap_or_default();
        assert!(said(&newest, "7.3.4", Some("6.18+")).contains("another kernel than that of 6.18+"));
        assert!(said(&newest, "6.19.14", None).contains("Linux 7 or newer"));
        assert!(said(&between, "6.12.118", Some("6.12")).contains("Linux 6.18 or newer"));
    }

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        assert!(numbers("6.12.9+deb13") < numbers("6.12.10+deb12"));
        assert!(numbers("6.1.0-0.deb11.52") < numbers("6.1.0-47"));
    }

    #[test]
    fn archives_are_found_in_both_formats() {
        assert_eq!(
            address("URIs: http://archive.test/debian", "/debian"),
            Some("http://archive.test/debian")
        );
        assert_eq!(
            address("deb [a=b] http://a.test/debian/ x main", "/debian"),
            Some("http://a.test/debian")
        );
        assert_eq!(address("# deb http://a.test/debian/ x main", "/debian"), None);
        assert_eq!(address("URIs: http://archive.test/debian-security", "/debian"), None);
    }

    #[test]
    fn a_machine_without_an_archive_of_debian_has_debians_own() {
        let archives = |texts: &[&str]| {
            let found = Archives::named_in(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
            [found.main, found.security]
        };
        let own = ["http://deb.debian.org/debian", "http://deb.debian.org/debian-security"];
        assert_eq!(archives(&["deb http://archive.ubuntu.com/ubuntu noble main\n"]), own);
        assert_eq!(archives(&[]), own);
        let mirror = ["http://a.test/debian", "http://a.test/debian-security"];
        assert_eq!(archives(&["deb http://a.test/debian x main\n"]), mirror);
        let apart = ["deb http://a.test/debian x main\n", "URIs: http://s.test/debian-security\n"];
        assert_eq!(archives(&apart), ["http://a.test/debian", "http://s.test/debian-security"]);
    }
}
