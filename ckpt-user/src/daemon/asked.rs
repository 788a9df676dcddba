//! What a person asked their ckptbpf for, handed on to the worker: the command line as it is, in memory of its own, as it may be
//! long, with the few variables that say where things are.

use crate::object::memfd;
use nix::sys::memfd::MFdFlags;
use prost::Message;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Those that the worker goes by.
pub const VARIABLES: &[&str] = &[
    "CKPTBPF_DIR",
    "XDG_RUNTIME_DIR",
    // Of which Slurm job the directory's record is to tell (`job::slurm::place`).
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURMD_NODENAME",
];

/// execve(2) takes no more than this of arguments: a quarter of the largest stack (`_STK_LIM`, fs/exec.c).
const LIMIT: u64 = 6 << 20;

/// The command line, program included, and [`VARIABLES`] that are set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub words: Vec<OsString>,
    pub variables: Vec<(&'static str, OsString)>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Written {
    #[prost(bytes = "vec", repeated, tag = "1")]
    words: Vec<Vec<u8>>,
    /// As [`VARIABLES`].
    #[prost(message, repeated, tag = "2")]
    variables: Vec<Variable>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Variable {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

impl Asked {
    /// Of this process.
    pub fn here() -> Self {
        let variables = VARIABLES.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        Self { words: std::env::args_os().collect(), variables: variables.collect() }
    }

    /// In memory that can be passed on.
    ///
    /// # Errors
    /// There is none.
    pub fn written(&self) -> io::Result<OwnedFd> {
        let bytes = |word: &OsString| word.as_bytes().to_vec();
        let number = |name: &str| VARIABLES.iter().position(|one| *one == name).unwrap_or_default() as u32;
        let variables = self.variables.iter();
        let written = Written {
            words: self.words.iter().map(bytes).collect(),
            variables: variables
                .map(|(name, value)| Variable { number: number(name), value: bytes(value) })
                .collect(),
        };
        let mut file = memfd::own(c"ckptbpf-asked", MFdFlags::empty())?;
        file.write_all(&written.encode_to_vec())?;
        file.rewind()?;
        Ok(file.into())
    }

    /// # Errors
    /// InvalidData when it is none, or too long.
    pub fn read(from: OwnedFd) -> io::Result<Self> {
        let mut bytes = Vec::new();
        let from = File::from(from);
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no command line that can be read");
        // Nothing that has to be waited for.
        if !from.metadata()?.is_file() {
            return Err(wrong());
        }
        from.take(LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LIMIT {
            return Err(wrong());
        }
        let Written { words, variables } = Written::decode(bytes.as_slice()).map_err(|_| wrong())?;
        let named = |one: Variable| {
            let name = VARIABLES.get(one.number as usize).copied().ok_or_else(wrong)?;
            let has_end = one.value.contains(&0);
            if has_end { Err(wrong()) } else { Ok((name, OsString::from_vec(one.value))) }
        };
        Ok(Self {
            words: words.into_iter().map(OsString::from_vec).collect(),
            variables: variables.into_iter().map(named).collect::<io::Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_any_bytes_and_variables_arrive() {
        let asked = Asked {
            words: vec!["ckptbpf".into(), "launch".into(), OsString::from_vec(vec![0xff, b'\n'])],
            variables: vec![("XDG_RUNTIME_DIR", "/run/user/1000".into())],
        };
        assert_eq!(Asked::read(asked.written().unwrap()).unwrap(), asked);
    }

    #[test]
    fn what_is_no_command_line_is_refused() {
        let file = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            file.rewind().unwrap();
            OwnedFd::from(file)
        };
        assert!(Asked::read(file(&[0xff; 7])).is_err());
        assert!(Asked::read(file(&vec![0; LIMIT as usize + 1])).is_err());
        let variable = |number, value: &[u8]| Written {
            variables: vec![Variable { number, value: value.to_vec() }],
            ..Written::default()
        };
        assert!(Asked::read(file(&variable(9, b"x").encode_to_vec())).is_err());
        assert!(Asked::read(file(&variable(0, b"a\0b").encode_to_vec())).is_err());
    }
}
