//! The session keyring of a thread (keyrings(7)), where it has joined another one than ckptbpf has.
//!
//! One that was joined by name is joined again by that name. Nobody can read what is in it, so it must hold as many keys
//! at the restart as it did at the checkpoint. One without a name exists for those that have it alone and cannot come
//! back; neither can a thread's own keyring or a process's.

use crate::record::Process;
use crate::refusal::Refusal;
use crate::sys::bpf::Keyrings;
use crate::sys::keyring as keys;
use crate::sys::remote::Remote;
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What keyctl(2) calls things (linux/keyctl.h).
pub const THREAD: i64 = -1;
pub const PROCESS: i64 = -2;
pub const SESSION: i64 = -3;
pub const GET_KEYRING_ID: u64 = 0;
const JOIN_SESSION_KEYRING: u64 = 1;
const SET_PERMISSIONS: u64 = 5;
pub const DESCRIBE: u64 = 6;
pub const READ: u64 = 11;
pub const SET_DESTINATION: u64 = 14;
pub const NO_CHANGE: u64 = u64::MAX;

/// `KEY_USR_SEARCH`: whoever has the same user id may join it by name.
const MAY_JOIN: u32 = 0x0008_0000;
/// What one allows while others are to join it: everything to whoever has it, and that. Nobody has it so by chance.
const OPEN: u32 = 0x3f00_0000 | MAY_JOIN;
/// How long somebody else may take who makes one of the same name.
const PATIENCE: Duration = Duration::from_secs(5);
/// Names of those that nobody has given a name: a session's, and a user's for all sessions.
const NAMELESS: [&[u8]; 2] = [b"_ses", b"_uid"];

/// A session keyring with a name.
#[derive(Clone, PartialEq, Eq, prost::Message, serde::Serialize)]
pub struct Keyring {
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// KEY_POS_*, KEY_USR_*, ….
    #[prost(uint32, tag = "2")]
    pub permissions: u32,
    /// How many keys it held.
    #[prost(uint64, tag = "3")]
    pub keys: u64,
    /// Its serial number at the origin: threads with the same one share it.
    #[prost(int32, tag = "4")]
    pub serial: i32,
}

/// What is known of a thread, from either source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    pub thread: i32,
    pub process: i32,
    pub session: Keyring,
    /// KEY_REQKEY_DEFL_*.
    pub destination: u64,
}

impl Known {
    pub fn of(row: &Keyrings) -> Self {
        let name = row.name.split(|&b| b == 0).next().unwrap_or_default().to_vec();
        let (permissions, keys, serial) = (row.permissions, row.keys, row.session);
        let session = Keyring { name, permissions, keys, serial };
        Self { thread: row.thread, process: row.process, session, destination: row.destination }
    }

    /// Our own, asked for by system calls, or those that were noted; nothing where the kernel has no keys.
    pub fn own() -> Self {
        if let Some(noted) = NOTED.get() {
            return noted.clone();
        }
        let id = |which| keys::id(which).unwrap_or(0);
        let described = keys::describe(SESSION).ok().and_then(|bytes| described(&bytes));
        let (permissions, name) = described.unwrap_or_default();
        let session = Keyring { name, permissions, keys: 0, serial: id(SESSION) };
        Self { thread: id(THREAD), process: id(PROCESS), session, destination: 0 }
    }

    /// A user's keyring for all sessions takes the place of none at the first look.
    fn session(&self) -> i32 {
        if self.session.name.starts_with(NAMELESS[1]) { 0 } else { self.session.serial }
    }
}

/// Those of whoever has started the program, for a worker that has others.
static NOTED: OnceLock<Known> = OnceLock::new();

/// Notes whose session keyring the program has where it has joined none; the first call counts.
pub fn note_session(serial: i32, name: Vec<u8>) {
    let session = Keyring { name, serial, ..Keyring::default() };
    NOTED.get_or_init(|| Known { session, ..Known::default() });
}

/// What is to be saved of a thread's keyrings; `own` are ckptbpf's, in whose place those of a restart's come.
///
/// # Errors
/// Named: a keyring that cannot come back.
pub fn capture(pid: Pid, known: &Known, own: &Known) -> Result<Option<Keyring>, Refusal> {
    let refused = |what: &str, why: &str| Err(Refusal::unsupported(pid, what.to_owned(), why.to_owned()));
    if known.thread != 0 || known.process != 0 {
        return refused("has a keyring of its own (keyrings(7))", "nobody can read the keys in it");
    }
    if known.destination != own.destination {
        return refused("has chosen a keyring for keys that it requests", "this cannot be saved yet");
    }
    if known.session() == own.session() {
        return Ok(None);
    }
    let name = &known.session.name;
    if known.session() == 0 || NAMELESS.iter().any(|n| name.starts_with(n)) {
        return refused(
            "is in another session keyring than ckptbpf, one without a name",
            "only one with a name can be joined again: keyctl session NAME",
        );
    }
    if name.is_empty() || name.starts_with(b".") || name.len() + 1 >= ckpt_common::KEYRING_NAME {
        return refused(
            "is in a session keyring that cannot be joined by name",
            "its name is too long, or the kernel's",
        );
    }
    Ok(Some(known.session.clone()))
}

/// # Errors
/// Names a keyring that users share of whom only one could make it again.
pub fn check(processes: &[Process]) -> Result<(), Refusal> {
    let mut users: HashMap<i32, u32> = HashMap::new();
    for process in processes {
        for thread in &process.threads {
            let (Some(ring), Some(ids)) = (&thread.keyring, &thread.credentials) else { continue };
            let user = ids.uids.get(3).copied().unwrap_or(0);
            if *users.entry(ring.serial).or_insert(user) != user {
                let what =
                    format!("shares session keyring \"{}\" with another user", ring.name.escape_ascii());
                return Err(Refusal::unsupported(
                    Pid::from_raw(process.pid),
                    what,
                    "this cannot be saved yet",
                ));
            }
        }
    }
    Ok(())
}

/// Those that threads of the image have joined so far.
#[derive(Debug, Default)]
pub struct Joined(HashMap<i32, One>);

#[derive(Debug)]
struct One {
    here: u64,
    /// It was made here, and is open to those that are to share it: what it is to allow in the end, and who may say so.
    made: Option<(Pid, u32)>,
}

impl Joined {
    /// Has the calling skeleton thread, which has its ids, join.
    ///
    /// # Errors
    /// Named: the keyring, which does not hold what it held.
    pub fn join(&mut self, wanted: &Keyring, remote: &mut Remote) -> io::Result<()> {
        let name = wanted.name.escape_ascii().to_string();
        let failed = |e: io::Error| io::Error::new(e.kind(), format!("session keyring \"{name}\": {e}"));
        if wanted.name.is_empty() || wanted.name.starts_with(b".") || wanted.name.contains(&0) {
            return Err(failed(io::Error::from(io::ErrorKind::InvalidData)));
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let at = remote.string(&wanted.name)?;
            let here = remote.call(libc::SYS_keyctl, &[JOIN_SESSION_KEYRING, at]).map_err(failed)?;
            let permissions = permissions(remote, here).map_err(failed)?;
            match self.0.get(&wanted.serial) {
                Some(known) if known.here == here => return Ok(()),
                None if permissions != OPEN => {
                    return self.first(wanted, here, permissions, remote).map_err(failed);
                }
                // Somebody else is doing the same with one of the same name, and will be done soon.
                _ if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
                _ => return Err(failed(io::Error::other("threads that shared it cannot join the same one"))),
            }
        }
    }

    /// Looks at one that was joined for the first time, and opens it to those that are to share it if it was made here.
    fn first(
        &mut self,
        wanted: &Keyring,
        here: u64,
        permissions: u32,
        remote: &mut Remote,
    ) -> io::Result<()> {
        let keys = remote.call(libc::SYS_keyctl, &[READ, here, 0, 0])? / size_of::<i32>() as u64;
        if keys != wanted.keys {
            let what = format!("it held {} keys at the checkpoint, and holds {keys} now", wanted.keys);
            return Err(io::Error::other(what));
        }
        let mut made = None;
        if permissions & MAY_JOIN == 0 {
            remote.call(libc::SYS_keyctl, &[SET_PERMISSIONS, here, u64::from(OPEN)])?;
            made = Some((remote.pid(), wanted.permissions));
        }
        self.0.insert(wanted.serial, One { here, made });
        Ok(())
    }

    /// Gives those that were made their permissions, by the threads that have made them.
    ///
    /// # Errors
    /// From the kernel.
    pub fn close(&self, thread: Pid, remote: &mut Remote) -> io::Result<()> {
        for one in self.0.values() {
            if let Some((_, permissions)) = one.made.filter(|made| made.0 == thread) {
                remote.call(libc::SYS_keyctl, &[SET_PERMISSIONS, one.here, u64::from(permissions)])?;
            }
        }
        Ok(())
    }
}

/// KEY_POS_*, KEY_USR_*, ….
fn permissions(remote: &mut Remote, ring: u64) -> io::Result<u32> {
    let mut bytes = vec![0; 256];
    let at = remote.data(&bytes)?;
    remote.call(libc::SYS_keyctl, &[DESCRIBE, ring, at, bytes.len() as u64])?;
    remote.read(at, &mut bytes)?;
    described(&bytes).map(|d| d.0).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Permissions and name out of what KEYCTL_DESCRIBE has written: `type;uid;gid;permissions;name`.
pub fn described(bytes: &[u8]) -> Option<(u32, Vec<u8>)> {
    let text = bytes.split(|&b| b == 0).next()?;
    let mut parts = text.splitn(5, |&b| b == b';').skip(3);
    let permissions = std::str::from_utf8(parts.next()?).ok()?;
    Some((u32::from_str_radix(permissions, 16).ok()?, parts.next()?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &[u8], serial: i32) -> Known {
        Known { session: Keyring { name: name.to_vec(), serial, ..Keyring::default() }, ..Known::default() }
    }

    #[test]
    fn only_another_one_with_a_name_is_saved_and_one_without_is_refused() {
        let pid = Pid::from_raw(1);
        let own = known(b"_ses", 7);
        assert_eq!(capture(pid, &own, &own).unwrap(), None);
        assert_eq!(capture(pid, &known(b"_uid_ses.0", 3), &Known::default()).unwrap(), None);
        assert_eq!(capture(pid, &known(b"mine", 3), &own).unwrap().unwrap().name, b"mine");
        for other in [known(b"_ses", 8), known(b"_uid_ses.0", 3), Known::default(), known(b".x", 9)] {
            assert!(capture(pid, &other, &own).is_err(), "{other:?}");
        }
        for one in [Known { thread: 5, ..own.clone() }, Known { process: 5, ..own.clone() }] {
            assert!(capture(pid, &one, &own).is_err());
        }
        assert!(capture(pid, &Known { destination: 3, ..own.clone() }, &own).is_err());
    }

    #[test]
    fn a_description_is_taken_apart_whatever_the_name() {
        let text = b"keyring;0;65534;3f130000;a;b c\0rest";
        assert_eq!(described(text), Some((0x3f13_0000, b"a;b c".to_vec())));
        assert_eq!(described(b"keyring;0"), None);
    }
}
