//! User, group and capability identity of a task (credentials(7)).

use super::proc::Status;
use crate::sys::ids;
use crate::sys::inject::Call;
use crate::sys::remote::Remote;
use std::io;

/// Real, effective, saved and file-system ids, groups and capability sets.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Credentials {
    #[prost(uint32, repeated, tag = "1")]
    pub uids: Vec<u32>,
    #[prost(uint32, repeated, tag = "2")]
    pub gids: Vec<u32>,
    #[prost(uint32, repeated, tag = "3")]
    pub groups: Vec<u32>,
    #[prost(fixed64, tag = "4")]
    pub inheritable: u64,
    #[prost(fixed64, tag = "5")]
    pub permitted: u64,
    #[prost(fixed64, tag = "6")]
    pub effective: u64,
    #[prost(fixed64, tag = "7")]
    pub bounding: u64,
    #[prost(fixed64, tag = "8")]
    pub ambient: u64,
    #[prost(bool, tag = "9")]
    pub no_new_privileges: bool,
    /// `SECBIT_*`, PR_SET_KEEPCAPS among them.
    #[prost(uint32, tag = "10")]
    pub securebits: u32,
}

pub fn capture(status: &Status, securebits: u32) -> io::Result<Credentials> {
    let shown = status.numbers("Groups")?;
    Ok(Credentials {
        uids: status.numbers("Uid")?,
        gids: status.numbers("Gid")?,
        groups: ids::noted_groups().map_or(shown, <[u32]>::to_vec),
        inheritable: status.hex("CapInh")?,
        permitted: status.hex("CapPrm")?,
        effective: status.hex("CapEff")?,
        bounding: status.hex("CapBnd")?,
        ambient: status.hex("CapAmb")?,
        no_new_privileges: status.decimal("NoNewPrivs")? != 0,
        securebits,
    })
}

impl Credentials {
    /// # Errors
    /// InvalidData when the image does not hold four ids of each kind.
    pub fn ids(&self) -> io::Result<([u32; 4], [u32; 4])> {
        let four = |v: &[u32]| <[u32; 4]>::try_from(v).ok();
        four(&self.uids).zip(four(&self.gids)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the image's credentials record is incomplete")
        })
    }
}

/// `SECBIT_KEEP_CAPS`, which needs no right.
pub const KEEP_CAPS: u32 = 1 << 4;

/// Gives the calling skeleton thread the recorded identity; `current` is its status.
pub fn rebuild(wanted: &Credentials, remote: &mut Remote, current: &Status) -> io::Result<()> {
    const KEEPCAPS: u64 = libc::PR_SET_KEEPCAPS as u64;
    const CAPBSET_DROP: u64 = libc::PR_CAPBSET_DROP as u64;
    let (uids, gids) = wanted.ids()?;
    let groups: Vec<u8> = wanted.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let bits = remote.call(libc::SYS_prctl, &[libc::PR_GET_SECUREBITS as u64, 0, 0, 0, 0])? as u32;
    let (bounding, permitted) = (current.hex("CapBnd")?, current.hex("CapPrm")?);
    let groups_at = remote.data(&groups)?;
    let all_at = remote.data(&sets(permitted, permitted, wanted.inheritable))?;
    let wanted_at = remote.data(&sets(wanted.effective, wanted.permitted, wanted.inheritable))?;
    let id = |v: u32| u64::from(v);
    let fs_ids =
        [Call::new(libc::SYS_setfsgid, &[id(gids[3])]), Call::new(libc::SYS_setfsuid, &[id(uids[3])])];
    let mut calls = vec![
        Call::new(libc::SYS_prctl, &[KEEPCAPS, 1, 0, 0, 0]),
        // What may be inherited need not be in the bounding set, but cannot come once it is dropped there.
        Call::new(libc::SYS_capset, &[all_at, all_at + 8]),
    ];
    for cap in (0..64u64).filter(|c| bounding & !wanted.bounding & 1 << c != 0) {
        calls.push(Call::new(libc::SYS_prctl, &[CAPBSET_DROP, cap, 0, 0, 0]));
    }
    match ids::noted_groups() {
        Some(own) if own == wanted.groups => {}
        Some(own) => {
            let (own, wanted) = (own, &wanted.groups);
            return Err(io::Error::other(format!(
                "its groups {wanted:?} are not those of here, {own:?}, which only root may change"
            )));
        }
        // To say what is so already takes CAP_SETGID, too.
        None if current.numbers("Groups")? == wanted.groups => {}
        None => calls.push(Call::new(libc::SYS_setgroups, &[wanted.groups.len() as u64, groups_at])),
    }
    calls.extend([
        Call::new(libc::SYS_setresgid, &[id(gids[0]), id(gids[1]), id(gids[2])]),
        Call::new(libc::SYS_setresuid, &[id(uids[0]), id(uids[1]), id(uids[2])]),
        // Other ids have taken the effective set away, which all that follows needs.
        Call::new(libc::SYS_capset, &[all_at, all_at + 8]),
    ]);
    calls.extend(fs_ids);
    for cap in (0..64u64).filter(|c| wanted.ambient & 1 << c != 0) {
        const AMBIENT_RAISE: u64 = libc::PR_CAP_AMBIENT_RAISE as u64;
        calls.push(Call::new(libc::SYS_prctl, &[libc::PR_CAP_AMBIENT as u64, AMBIENT_RAISE, cap, 0, 0]));
    }
    let secure = if (bits ^ wanted.securebits) & !KEEP_CAPS != 0 {
        [libc::PR_SET_SECUREBITS as u64, u64::from(wanted.securebits), 0, 0, 0]
    } else {
        [KEEPCAPS, u64::from(wanted.securebits & KEEP_CAPS != 0), 0, 0, 0]
    };
    calls.push(Call::new(libc::SYS_prctl, &secure));
    calls.push(Call::new(libc::SYS_capset, &[wanted_at, wanted_at + 8]));
    if wanted.no_new_privileges {
        calls.push(Call::new(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0]));
    }
    for (call, result) in calls.iter().zip(remote.run(&calls)?) {
        if result < 0 && fs_ids.iter().all(|fs| fs.number != call.number) {
            return Err(io::Error::from_raw_os_error(-result as i32));
        }
    }
    // These return what was set before, and say of no error.
    let set = remote.run(&fs_ids)?;
    if set != [i64::from(gids[3]), i64::from(uids[3])] {
        return Err(io::Error::other("its file system ids (setfsuid(2)) cannot be had"));
    }
    Ok(())
}

/// `struct __user_cap_header_struct` (version 3) and two `__user_cap_data_struct`s: capset(2).
fn sets(effective: u64, permitted: u64, inheritable: u64) -> Vec<u8> {
    let mut bytes = 0x2008_0522u32.to_le_bytes().to_vec();
    bytes.extend(0u32.to_le_bytes());
    for shift in [0, 32] {
        for set in [effective, permitted, inheritable] {
            bytes.extend(((set >> shift) as u32).to_le_bytes());
        }
    }
    bytes
}
