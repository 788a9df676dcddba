//! Extended attributes (xattr(7)).

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Whether the file has an access control list that says more than its mode (acl(5)).
pub fn has_acl(path: &Path) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = c"system.posix_acl_access";
    // SAFETY: two strings that end; with a size of 0 the kernel writes nothing and tells how long the value is.
    let size = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) };
    match super::check(size as i64) {
        Ok(size) => Ok(size > 0),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(false),
        Err(e) => Err(e),
    }
}
