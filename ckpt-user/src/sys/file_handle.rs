//! File handles (name_to_handle_at(2)): by what a file system itself knows a file, whatever its name is.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// MAX_HANDLE_SZ, bytes.
const LARGEST: usize = 128;

/// For a handle that is only to be compared, and that no file is ever opened by (AT_HANDLE_FID, Linux 6.5).
pub const TO_COMPARE: i32 = 0x200;

/// Kind and bytes of the handle of what `path` leads to. `flags`: 0 or [`TO_COMPARE`].
///
/// # Errors
/// EOPNOTSUPP where the file system gives none, EOVERFLOW for one that is too long, EINVAL where the kernel does not know the
/// flag.
pub fn of(path: &Path, flags: i32) -> io::Result<(i32, Vec<u8>)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // struct file_handle: length, kind, bytes; of ints, so that it is aligned.
    let mut words = [0u32; 2 + LARGEST / 4];
    words[0] = LARGEST as u32;
    let mut mount = 0i32;
    let flags = libc::AT_SYMLINK_FOLLOW | flags;
    // SAFETY: a string that lives across the call; the kernel writes one int to `mount`, and to `words`, which is a struct
    // file_handle with room for as many bytes as it says.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            words.as_mut_ptr(),
            &raw mut mount,
            flags,
        )
    };
    super::check(done)?;
    let bytes = words[2..].iter().flat_map(|word| word.to_ne_bytes()).take(words[0] as usize).collect();
    Ok((words[1] as i32, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_and_another_file_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        std::fs::write(&one, "").unwrap();
        std::fs::write(&other, "").unwrap();
        let Ok(first) = of(&one, 0) else {
            return crate::skipped::because("this file system gives no handles");
        };
        assert_eq!(of(&one, 0).unwrap(), first);
        assert_ne!(of(&other, 0).unwrap(), first);
        std::fs::hard_link(&one, dir.path().join("again")).unwrap();
        assert_eq!(of(&dir.path().join("again"), 0).unwrap(), first);
        assert_eq!(of(&dir.path().join("gone"), 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
