//! The system calls that Python has no names for: mount(2), umount2(2), and prctl's PR_SET_IO_FLUSHER.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use pyo3::prelude::*;

use crate::error::{errno, os_error};

/// From the kernel's `include/uapi/linux/prctl.h`; the libc crate does not have it for all C libraries.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

fn checked(result: libc::c_int) -> PyResult<()> {
    if result == 0 { Ok(()) } else { Err(os_error(errno(&io::Error::last_os_error()))) }
}

fn c_string(path: PathBuf) -> PyResult<CString> {
    Ok(CString::new(path.into_os_string().into_vec())?)
}

#[pyfunction]
pub fn mount_fuse(py: Python<'_>, descriptor: i32, target: PathBuf) -> PyResult<()> {
    let target = c_string(target)?;
    let options = format!("fd={descriptor},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other");
    let options = CString::new(options)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_NOATIME;
    py.detach(|| {
        // SAFETY: all strings end in a zero byte and outlive the call.
        checked(unsafe {
            libc::mount(
                c"livemount".as_ptr(),
                target.as_ptr(),
                c"fuse.livemount".as_ptr(),
                flags,
                options.as_ptr().cast(),
            )
        })
    })
}

#[pyfunction]
pub fn unmount(py: Python<'_>, target: PathBuf, force: bool) -> PyResult<()> {
    let target = c_string(target)?;
    let flags = if force { libc::MNT_FORCE | libc::MNT_DETACH } else { 0 };
    // SAFETY: the string ends in a zero byte and outlives the call.
    py.detach(|| checked(unsafe { libc::umount2(target.as_ptr(), flags | libc::UMOUNT_NOFOLLOW) }))
}

/// Memory that this process needs to serve I/O must not wait for that very I/O to free some.
#[pyfunction]
pub fn set_io_flusher() -> PyResult<()> {
    // SAFETY: takes numbers only.
    checked(unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) })
}
