//! An ordinary user who exists in one box only, and real sudo for it.
//!
//! A nested mount namespace shows private versions of /etc/passwd, group, shadow and sudoers.d; it ends with the command,
//! and the machine's own files are never written. The repository may lie in root's closed home, so what the user is to
//! run is copied to where everybody can reach it.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::sandbox::{Cmd, Sandbox};
use crate::victim;

/// The user's id, and that of its group.
pub const UID: u32 = 4242;

/// That of another one, and of their group.
pub const OTHER: u32 = UID + 1;

/// Shows the private copies, then becomes the user; what follows is the command.
const BECOME: &str = r#"set -eu
etc=$1 uid=$2 groups=$3
shift 3
for name in passwd group shadow sudoers.d; do mount --bind "$etc/$name" "/etc/$name"; done
exec setpriv --reuid "$uid" --regid "$uid" --groups "$groups" -- "$@"
"#;

/// Shows the private copies to root; what follows is the command.
const SHOW: &str = r#"set -eu
etc=$1
shift
for name in passwd group; do mount --bind "$etc/$name" "/etc/$name"; done
exec "$@"
"#;

/// The box's user.
#[derive(Debug, Clone)]
pub struct User {
    etc: PathBuf,
    home: PathBuf,
    uid: u32,
    /// Beside its own.
    groups: Vec<u32>,
}

impl User {
    /// Makes the user, whose closed home is the folder `home` of the box.
    pub fn of(sandbox: &Sandbox) -> Self {
        let etc = sandbox.dir().join("etc");
        std::fs::create_dir_all(etc.join("sudoers.d")).expect("a folder for the user's entries");
        let home = make_home(&sandbox.dir().join("home"), UID);
        let others = home.with_file_name("other");
        let entry = |name: &str, lines: &str| {
            let old = std::fs::read_to_string(Path::new("/etc").join(name)).unwrap_or_default();
            std::fs::write(etc.join(name), format!("{old}{lines}\n")).expect("an entry for the user");
        };
        let of = |name: &str, id: u32, home: &Path| {
            format!("{name}:x:{id}:{id}:{name}:{}:/bin/bash", home.display())
        };
        entry("passwd", &format!("{}\n{}", of("tester", UID, &home), of("other", OTHER, &others)));
        entry("group", &format!("tester:x:{UID}:\nother:x:{OTHER}:"));
        // Nothing of the real one: nobody can log in by a password here, and no hash is copied.
        let shadow = "root:*:19000:0:99999:7:::\ntester:*:19000:0:99999:7:::\n";
        std::fs::write(etc.join("shadow"), shadow).expect("an entry for the user");
        let rule = etc.join("sudoers.d/tester");
        std::fs::write(&rule, "tester ALL=(ALL:ALL) NOPASSWD: ALL\n").expect("the sudo rule");
        std::fs::set_permissions(&rule, PermissionsExt::from_mode(0o440)).expect("the rule's mode");
        Self { etc, home, uid: UID, groups: vec![UID] }
    }

    /// Somebody who has nothing in common with this one.
    pub fn other(&self) -> Self {
        let home = make_home(&self.home.with_file_name("other"), OTHER);
        Self { etc: self.etc.clone(), home, uid: OTHER, groups: vec![OTHER] }
    }

    /// The user's home, mode 0700.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// The same user as a member of one more group, which has no name.
    #[must_use]
    pub fn in_group(mut self, group: u32) -> Self {
        self.groups.push(group);
        self
    }

    /// `command`, run by the user in its home.
    pub fn runs(&self, command: &Cmd) -> Cmd {
        let prefix = ["-m", "/bin/bash", "-c", BECOME, "become"];
        let cmd = Cmd::new("unshare").args(prefix).arg(&self.etc);
        let cmd = cmd.arg(self.uid.to_string()).arg(self.shown_groups());
        let cmd = cmd.program(command);
        cmd.cwd(&self.home).env("HOME", self.home.to_str().expect("a UTF-8 path"))
    }

    /// `command`, run by root where the user is known.
    pub fn known_to(&self, command: &Cmd) -> Cmd {
        let prefix = ["-m", "/bin/bash", "-c", SHOW, "show"];
        Cmd::new("unshare").args(prefix).arg(&self.etc).program(command)
    }

    /// `command`, run by the user where the process `pid` has its mounts.
    pub fn runs_beside(&self, pid: i32, command: &Cmd) -> Cmd {
        let (id, groups) = (self.uid.to_string(), self.shown_groups());
        let ids = ["--reuid", &id, "--regid", &id, "--groups", &groups, "--"];
        let cmd = Cmd::new("nsenter").args(["-t", &pid.to_string(), "-m", "setpriv"]).args(ids);
        cmd.program(command).cwd(&self.home)
    }

    fn shown_groups(&self) -> String {
        self.groups.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
    }

    /// `sudo command`, run by the user in its home.
    pub fn runs_by_sudo(&self, command: &Cmd) -> Cmd {
        self.runs(&Cmd::new("sudo").arg("-n").arg("--").program(command))
    }

    /// The same command with copies of the victims in it.
    pub fn reaches(&self, command: &Cmd) -> Cmd {
        let copied = |word: &str| match Path::new(word) {
            path if victim::is_one(path) => self.copy_of(path).display().to_string(),
            _ => word.to_owned(),
        };
        command.clone().each(copied)
    }

    /// A copy of a program that the user can reach, the same for all who ask for it.
    pub fn copy_of(&self, program: &Path) -> PathBuf {
        let copy = self.etc.with_file_name("bin").join(program.file_name().expect("a program's name"));
        let content = |path: &Path| std::fs::read(path).ok();
        if content(&copy).is_some_and(|there| Some(there) == content(program)) {
            return copy;
        }
        std::fs::create_dir_all(copy.parent().expect("a folder")).expect("a folder for programs");
        // Beside one that may run.
        let new = copy.with_extension("new");
        std::fs::copy(program, &new).expect("a copy of the program");
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).expect("the copy's mode");
        std::fs::rename(&new, &copy).expect("the copy's name");
        copy
    }
}

/// A closed home.
fn make_home(home: &Path, uid: u32) -> PathBuf {
    std::fs::create_dir_all(home).expect("the user's home");
    chown(home, Some(uid), Some(uid)).expect("the home's owner");
    std::fs::set_permissions(home, PermissionsExt::from_mode(0o700)).expect("the home's mode");
    home.to_owned()
}
