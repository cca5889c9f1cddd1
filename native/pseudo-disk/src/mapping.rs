//! Mapped memory: of a file, shared, for state that outlives the process (not the machine) without system calls; and
//! private, for buffers that take memory only as far as they are used.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64};

pub struct Mapping {
    start: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: the memory is only ever reached through atomics, by this and by other processes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of `file`, whose blocks must be allocated: a full disk would be a SIGBUS.
    pub fn new(file: &File, length: usize) -> io::Result<Self> {
        if file.metadata()?.len() < length as u64 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: a fresh mapping of a descriptor we hold; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Self { start, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: the mapping is `length` bytes long and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length) }
    }

    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: as above, and a mapping starts at a page.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length / 8) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr(), self.length) };
    }
}

/// Zeroed bytes of our own.
pub struct Buffer {
    start: NonNull<u8>,
    length: usize,
}

impl Buffer {
    pub fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a fresh mapping; the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        match NonNull::new(start) {
            Some(start) if start.as_ptr() != libc::MAP_FAILED => Ok(Self { start: start.cast(), length }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Buffer {
    /// Has all of it in memory, and stay there: the kernel brings in no page for a process that is being killed.
    pub fn keep_present(&mut self) {
        // SAFETY: a range that we mapped.
        if unsafe { libc::mlock(self.start.as_ptr().cast(), self.length) } != 0 {
            // Not allowed to: present at least now. Written, for pages that were only read are shared zeros.
            self.fill(0);
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is `length` initialized bytes long, ours alone, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
