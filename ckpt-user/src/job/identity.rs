//! Whose program it is: which ids a launch runs it with, and which a restart may give back.
//!
//! Under sudo the program is the person's who called it, not root's. A restart never makes anyone more than the
//! image's owner or the person who asks could be by themselves; only what root owns restores root.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;

use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};

use crate::sys::ids::FsIds;

/// Ids and the environment that goes with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id, real, effective, saved.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Variables to set: HOME, USER, LOGNAME, SHELL, or none when the identity does not change.
    pub env: Vec<(OsString, OsString)>,
    /// Name for messages; the number where the user database has none.
    pub name: String,
    /// Whether this is another user than ckptbpf itself runs as, so that ids must be changed.
    pub changed: bool,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No such user.
    #[error("there is no user {0}; give a name or uid that `getent passwd` knows")]
    Unknown(String),
    /// Not root.
    #[error("-u {0} needs root: sudo ckptbpf …")]
    NeedsRoot(String),
    /// The user database cannot be read.
    #[error("cannot look {user} up in the user database")]
    Lookup {
        /// Name or uid.
        user: String,
        /// What the library said.
        #[source]
        source: nix::Error,
    },
}

/// Which user is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// Whoever ckptbpf runs as.
    Current,
    /// A user by number.
    Uid(u32),
    /// A user by name.
    Name(String),
}

/// The rule: `-u`, else under sudo the person who called it, else nobody else.
pub fn choose(euid: u32, sudo_uid: Option<&str>, user: Option<&str>) -> Choice {
    if let Some(user) = user {
        return user.parse().map_or_else(|_| Choice::Name(user.to_owned()), Choice::Uid);
    }
    match sudo_uid.and_then(|uid| uid.parse::<u32>().ok()) {
        Some(uid) if euid == 0 && uid != 0 => Choice::Uid(uid),
        _ => Choice::Current,
    }
}

impl Identity {
    /// Of this process, by [`choose`] with its environment; `user` is `-u`.
    pub fn of_caller(user: Option<&str>) -> Result<Self, IdentityError> {
        let euid = geteuid();
        let sudo_uid = std::env::var("SUDO_UID").ok();
        let choice = choose(euid.as_raw(), sudo_uid.as_deref(), user);
        let found = match &choice {
            Choice::Current => return Ok(Self::current()),
            Choice::Uid(uid) => lookup(&uid.to_string(), User::from_uid(Uid::from_raw(*uid)))?,
            Choice::Name(name) => lookup(name, User::from_name(name))?,
        };
        if found.uid != euid && !euid.is_root() {
            return Err(IdentityError::NeedsRoot(found.name));
        }
        if found.uid == euid && user.is_some() && !under_sudo() {
            return Ok(Self::current());
        }
        Self::of_user(&found)
    }

    /// Of ckptbpf itself: nothing changes.
    pub fn current() -> Self {
        let FsIds { uid, gid, groups } = FsIds::current();
        let name = match User::from_uid(Uid::from_raw(uid)) {
            Ok(Some(user)) => user.name,
            _ => uid.to_string(),
        };
        Self { uid, gid, groups, env: Vec::new(), name, changed: false }
    }

    fn of_user(user: &User) -> Result<Self, IdentityError> {
        let groups = groups_of(user)?;
        let name = OsString::from(&user.name);
        let env = [
            ("HOME", user.dir.clone().into_os_string()),
            ("USER", name.clone()),
            ("LOGNAME", name),
            ("SHELL", user.shell.clone().into_os_string()),
        ];
        Ok(Self {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups,
            env: env.into_iter().map(|(key, value)| (key.into(), value)).collect(),
            name: user.name.clone(),
            changed: user.uid != geteuid(),
        })
    }

    /// The ids with which this user's files are made and opened.
    pub fn fs_ids(&self) -> FsIds {
        FsIds { uid: self.uid, gid: self.gid, groups: self.groups.clone() }
    }
}

/// Whether ckptbpf was started by sudo.
pub fn under_sudo() -> bool {
    geteuid().is_root() && std::env::var_os("SUDO_UID").is_some()
}

/// A user's ids by number, as the user database has them.
pub fn fs_ids_of(uid: u32) -> Option<FsIds> {
    let user = User::from_uid(Uid::from_raw(uid)).ok()??;
    let groups = groups_of(&user).ok()?;
    Some(FsIds { uid, gid: user.gid.as_raw(), groups })
}

fn lookup(user: &str, found: nix::Result<Option<User>>) -> Result<User, IdentityError> {
    found
        .map_err(|source| IdentityError::Lookup { user: user.to_owned(), source })?
        .ok_or_else(|| IdentityError::Unknown(user.to_owned()))
}

fn groups_of(user: &User) -> Result<Vec<u32>, IdentityError> {
    let fail = |source| IdentityError::Lookup { user: user.name.clone(), source };
    let name = CString::new(OsString::from(&user.name).as_bytes()).map_err(|_| fail(nix::Error::EINVAL))?;
    let groups = getgrouplist(&name, user.gid).map_err(fail)?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

/// Ids and capabilities that the tasks of an image claim: the union over all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claimed {
    /// Real, effective, saved and file-system uids.
    pub uids: Vec<u32>,
    /// The same of groups, and all supplementary ones.
    pub gids: Vec<u32>,
    /// Permitted, effective, inheritable and ambient capability sets, or-ed.
    pub capabilities: u64,
}

/// Why a restart does not give what an image claims.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A user id beyond.
    #[error(
        "the image claims uid {claimed}, but its file belongs to uid {owner}, and it is uid {caller} who restarts \
         it; only an image that root owns gives other ids than those"
    )]
    User {
        /// In the image.
        claimed: u32,
        /// Of the file.
        owner: u32,
        /// Who restarts.
        caller: u32,
    },
    /// A group id beyond.
    #[error(
        "the image claims group {claimed}, of which neither its owner (uid {owner}) nor the caller (uid {caller}) \
         is a member; add them to it, or have root own the image"
    )]
    Group {
        /// In the image.
        claimed: u32,
        /// Of the file.
        owner: u32,
        /// Who restarts.
        caller: u32,
    },
    /// Capabilities beyond.
    #[error(
        "the image claims capabilities ({claimed:#x}), but it belongs to uid {owner}; only root's may have them"
    )]
    Capabilities {
        /// In the image.
        claimed: u64,
        /// Of the file.
        owner: u32,
    },
    /// Ids that only root can give.
    #[error(
        "the image (of uid {owner}) claims ids or capabilities that you have not, which takes root: sudo ckptbpf restart …"
    )]
    NeedsRoot {
        /// Of the file.
        owner: u32,
    },
}

/// Who restarts: the ids of the person (under sudo the one who called it), and whether ckptbpf has root's rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The person.
    pub ids: FsIds,
    /// Effective uid 0.
    pub root: bool,
}

impl Caller {
    /// Of this process; under sudo the person who called it.
    pub fn current() -> Result<Self, IdentityError> {
        Ok(Self { ids: Identity::of_caller(None)?.fs_ids(), root: geteuid().is_root() })
    }
}

/// Whether a restart may give what an image claims. `image_owner` is from fstat of the opened file, its groups
/// from the user database ([`fs_ids_of`]).
pub fn permitted(image_owner: &FsIds, caller: &Caller, claimed: &Claimed) -> Result<(), Refusal> {
    let (owner, person) = (image_owner.uid, caller.ids.uid);
    let in_groups = |ids: &FsIds, gid: u32| ids.gid == gid || ids.groups.contains(&gid);
    let own_uid = |uid: u32| uid == person;
    let own_gid = |gid: u32| in_groups(&caller.ids, gid);
    if !caller.root {
        // The kernel would refuse too, but later and with less of a reason.
        let beyond =
            claimed.uids.iter().any(|uid| !own_uid(*uid)) || claimed.gids.iter().any(|gid| !own_gid(*gid));
        return if beyond || claimed.capabilities != 0 { Err(Refusal::NeedsRoot { owner }) } else { Ok(()) };
    }
    if owner == 0 {
        return Ok(());
    }
    // Root himself restarting a user's image gives that user's ids: uid 0 comes from root's images only.
    let uid_ok = |uid: u32| uid != 0 && (uid == owner || own_uid(uid));
    if let Some(&uid) = claimed.uids.iter().find(|uid| !uid_ok(**uid)) {
        return Err(Refusal::User { claimed: uid, owner, caller: person });
    }
    let gid_ok = |gid: u32| in_groups(image_owner, gid) || (person != 0 && own_gid(gid));
    if let Some(&gid) = claimed.gids.iter().find(|gid| !gid_ok(**gid)) {
        return Err(Refusal::Group { claimed: gid, owner, caller: person });
    }
    if claimed.capabilities != 0 {
        return Err(Refusal::Capabilities { claimed: claimed.capabilities, owner });
    }
    Ok(())
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
