//! The /dev/fuse loop: a file system of one file, every request answered from the disk, several threads on one
//! descriptor.
//!
//! One descriptor, not clones: the kernel fails what is in flight on a clone that closes, while the supervisor's copy
//! of the one descriptor keeps requests of a killed worker alive until `resend` hands them to the next. For the same
//! reason requests come to locked memory: the kernel fails a request that it cannot copy to a dying process.
//! Numbers and layouts are those of the kernel's `include/uapi/linux/fuse.h`, protocol 7.36 and later.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::counters::{Counter, Latency};
use crate::disk::Fault;
use crate::mapping::Buffer;
use crate::recall::Place;
use crate::requests::{Operation, Requests};

/// `livemount/driver/mounting.py` has the same. Smaller than a read: all of it stays in memory for each thread.
const MAX_WRITE: usize = 256 << 10;
const MAX_READ: usize = 1 << 20;
const IN_HEADER: usize = 40;
const WRITE_HEADER: usize = 40;
const NOTIFY_RESEND: i32 = 7;

const ROOT: u64 = 1;
const FILE: u64 = 2;
pub const FILE_NAME: &[u8] = b"disk";
/// Attributes and names never change: the kernel may keep them for a year.
const VALID: u64 = 365 * 24 * 3600;

const KEEP_CACHE: u32 = 1 << 1;
const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
const SETATTR_SIZE: u32 = 1 << 3;

#[derive(Clone)]
pub struct Device(Arc<OwnedFd>);

impl Device {
    pub fn new(descriptor: OwnedFd) -> Self {
        Self(Arc::new(descriptor))
    }

    fn send(&self, unique: u64, error: i32, payload: &[u8]) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&((16 + payload.len()) as u32).to_le_bytes());
        header[4..8].copy_from_slice(&error.to_le_bytes());
        header[8..].copy_from_slice(&unique.to_le_bytes());
        let parts = [
            libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() },
            libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() },
        ];
        // SAFETY: both parts outlive the call. An error means that nobody waits for this answer any more.
        unsafe { libc::writev(self.0.as_raw_fd(), parts.as_ptr(), 2) };
    }

    fn reply(&self, unique: u64, outcome: Result<&[u8], i32>) {
        match outcome {
            Ok(payload) => self.send(unique, 0, payload),
            Err(errno) => self.send(unique, -errno, &[]),
        }
    }

    /// Has the kernel send again what an earlier worker took and did not answer.
    fn resend(&self) {
        self.send(0, NOTIFY_RESEND, &[]);
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer is ours for the time of the call.
        let count = unsafe { libc::read(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
    }
}

pub struct Session {
    threads: Vec<JoinHandle<()>>,
}

impl Session {
    /// Serves the mount behind `device` until it is unmounted.
    pub fn start(requests: &Arc<Requests>, device: &Device, threads: usize) -> Self {
        device.resend();
        let (flushes, pending) = channel();
        let flusher = {
            let (requests, device) = (Arc::clone(requests), device.clone());
            std::thread::spawn(move || flush_thread(&requests, &device, &pending))
        };
        let ended = Arc::new(AtomicBool::new(false));
        let start = |_| {
            let server = Server {
                requests: Arc::clone(requests),
                device: device.clone(),
                flushes: flushes.clone(),
                ended: Arc::clone(&ended),
            };
            std::thread::spawn(move || server.serve())
        };
        let mut threads: Vec<_> = (0..threads).map(start).collect();
        threads.push(flusher);
        Self { threads }
    }

    pub fn wait(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// One flush answers every fsync that came before it began.
fn flush_thread(requests: &Requests, device: &Device, pending: &Receiver<u64>) {
    while let Ok(first) = pending.recv() {
        let mut uniques = vec![first];
        uniques.extend(pending.try_iter());
        let flushed = catch_unwind(AssertUnwindSafe(|| requests.disk.private.flush())).unwrap_or(Err(libc::EIO));
        for unique in uniques {
            device.reply(unique, flushed.map(|()| &[][..]));
        }
    }
}

struct Server {
    requests: Arc<Requests>,
    device: Device,
    flushes: Sender<u64>,
    ended: Arc<AtomicBool>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

/// Little-endian fields one after the other, as the protocol's structures are made of.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn u64s(mut self, values: &[u64]) -> Self {
        values.iter().for_each(|value| self.0.extend_from_slice(&value.to_le_bytes()));
        self
    }

    fn u32s(mut self, values: &[u32]) -> Self {
        values.iter().for_each(|value| self.0.extend_from_slice(&value.to_le_bytes()));
        self
    }
}

impl Server {
    fn serve(&self) {
        // The kernel hands over a request in one piece, the largest being a write with its headers.
        let (Ok(mut buffer), Ok(mut answer)) = (Buffer::new(MAX_WRITE + 4096), Buffer::new(MAX_READ)) else {
            return;
        };
        // A request that the kernel cannot copy to a worker that is being killed fails, instead of going to the next.
        buffer.keep_present();
        while !self.ended.load(Ordering::Relaxed) {
            let length = match self.device.receive(&mut buffer) {
                Ok(length) if length >= IN_HEADER => length,
                Ok(_) => continue,
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => break,
                // ENOENT: the request was taken back. EINTR, EAGAIN: nothing came.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN)) => {
                    continue;
                }
                Err(_) => break,
            };
            let message = &buffer[..length];
            let handled = catch_unwind(AssertUnwindSafe(|| self.handle(message, &mut answer)));
            if handled.is_err() {
                self.device.reply(u64_at(message, 8), Err(libc::EIO));
            }
        }
        self.ended.store(true, Ordering::Relaxed);
    }

    fn attributes(&self, node: u64) -> Vec<u8> {
        let (size, mode, links) = match node {
            FILE => (self.requests.disk.size, libc::S_IFREG | 0o600, 1),
            _ => (0, libc::S_IFDIR | 0o700, 2),
        };
        Fields::default()
            .u64s(&[node, size, size.div_ceil(512), 0, 0, 0])
            .u32s(&[0, 0, 0, mode, links, 0, 0, 0, 4096, 0])
            .0
    }

    fn handle(&self, message: &[u8], answer: &mut [u8]) {
        let (opcode, unique, node) = (u32_at(message, 4), u64_at(message, 8), u64_at(message, 16));
        let body = &message[IN_HEADER..];
        let needed = match opcode {
            4 => 24,
            15 | 16 => WRITE_HEADER,
            28 | 43 => 32,
            _ => 0,
        };
        if body.len() < needed {
            return self.device.reply(unique, Err(libc::EINVAL));
        }
        match opcode {
            // FORGET, INTERRUPT, BATCH_FORGET: no answer is expected.
            2 | 36 | 42 => (),
            15 => self.read(unique, u64_at(body, 8), u32_at(body, 16) as usize, answer),
            16 => self.write(unique, u64_at(body, 8), u32_at(body, 16) as usize, &body[WRITE_HEADER..]),
            // FSYNC
            20 if node == FILE => drop(self.flushes.send(unique)),
            43 => self.allocate(unique, u64_at(body, 8), u64_at(body, 16), u32_at(body, 24) as i32),
            _ => {
                let outcome = self.metadata(opcode, node, body);
                self.device.reply(unique, outcome.as_deref().map_err(|errno| *errno));
            }
        }
    }

    fn metadata(&self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let attributes = || Fields::default().u64s(&[VALID, 0]).0.into_iter().chain(self.attributes(node)).collect();
        match opcode {
            // LOOKUP
            1 if node == ROOT && body.strip_suffix(b"\0") == Some(FILE_NAME) => {
                let mut entry = Fields::default().u64s(&[FILE, 0, VALID, VALID, 0]).0;
                entry.extend(self.attributes(FILE));
                Ok(entry)
            }
            1 => Err(libc::ENOENT),
            // GETATTR
            3 => Ok(attributes()),
            // SETATTR: a disk keeps its size; owner, mode and times are no concern of it.
            4 if u32_at(body, 0) & SETATTR_SIZE != 0 && u64_at(body, 16) != self.requests.disk.size => Err(libc::EPERM),
            4 => Ok(attributes()),
            // OPEN, OPENDIR
            14 => Ok(Fields::default().u64s(&[0]).u32s(&[KEEP_CACHE | PARALLEL_DIRECT_WRITES, 0]).0),
            27 => Ok(Fields::default().u64s(&[0, 0]).0),
            // STATFS
            17 => {
                let blocks = self.requests.disk.size.div_ceil(4096);
                Ok(Fields::default().u64s(&[blocks, 0, 0, 1, 0]).u32s(&[4096, 255, 4096, 0, 0, 0, 0, 0, 0, 0]).0)
            }
            // RELEASE, FSYNC of the folder, RELEASEDIR, FSYNCDIR, DESTROY
            18 | 20 | 29 | 30 | 38 => Ok(Vec::new()),
            // READDIR: one entry
            28 if u64_at(body, 8) == 0 => {
                let name = FILE_NAME;
                let mut entry =
                    Fields::default().u64s(&[FILE, 1]).u32s(&[name.len() as u32, u32::from(libc::DT_REG)]).0;
                entry.extend(name);
                entry.resize(entry.len().next_multiple_of(8), 0);
                Ok(entry)
            }
            28 => Ok(Vec::new()),
            // SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, CREATE
            6 | 8..=13 | 35 | 45 => Err(libc::EPERM),
            _ => Err(libc::ENOSYS),
        }
    }

    fn read(&self, unique: u64, offset: u64, length: usize, answer: &mut [u8]) {
        let start = Instant::now();
        let disk = &self.requests.disk;
        disk.counters.add(Counter::Reads, 1);
        // The kernel reads up to the end of the last page; what is beyond the disk is not there.
        let left = disk.size.saturating_sub(offset);
        let length = length.min(MAX_READ).min(usize::try_from(left).unwrap_or(usize::MAX));
        disk.counters.add(Counter::ReadBytes, length as u64);
        let answer = &mut answer[..length];
        match self.requests.read(answer, offset) {
            Ok(place) => {
                let hits = match place {
                    Place::Zero => Counter::ZeroHits,
                    Place::Private => Counter::PrivateHits,
                    Place::Recall => Counter::RecallHits,
                };
                disk.counters.add(hits, 1);
                disk.counters.took(Latency::Read, start);
                // Counted before it is answered: who reads the counters after a read finds it there.
                self.device.reply(unique, Ok(answer));
            }
            Err(fault) => {
                if matches!(fault, Fault::Missing(_)) {
                    disk.counters.add(Counter::Misses, 1);
                }
                self.go_on(unique, fault, start, || Operation::Read { offset, length });
            }
        }
    }

    fn write(&self, unique: u64, offset: u64, length: usize, data: &[u8]) {
        let start = Instant::now();
        let counters = &self.requests.disk.counters;
        counters.add(Counter::Writes, 1);
        let Some(data) = data.get(..length) else {
            return self.device.reply(unique, Err(libc::EINVAL));
        };
        counters.add(Counter::WrittenBytes, length as u64);
        match self.requests.write(data, offset) {
            Ok(()) => {
                counters.took(Latency::Write, start);
                self.device.reply(unique, Ok(&written(length)));
            }
            Err(fault) => self.go_on(unique, fault, start, || Operation::Write { offset, data: data.to_vec() }),
        }
    }

    /// FALLOCATE: punching holes and zeroing ranges.
    fn allocate(&self, unique: u64, offset: u64, length: u64, mode: i32) {
        let zeroing = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;
        if mode & zeroing == 0 || mode & !(zeroing | libc::FALLOC_FL_KEEP_SIZE) != 0 {
            return self.device.reply(unique, Err(libc::EOPNOTSUPP));
        }
        // A hole may be punched beyond the end of a file.
        let length = length.min(self.requests.disk.size.saturating_sub(offset));
        let start = Instant::now();
        let operation = Operation::Zero { offset, length };
        match self.requests.run(&operation, &[]) {
            Ok(_) => self.device.reply(unique, Ok(&[])),
            Err(fault) => self.go_on(unique, fault, start, || operation),
        }
    }

    /// Answers a request that failed, when it cannot go on any more.
    fn go_on(&self, unique: u64, fault: Fault, start: Instant, operation: impl FnOnce() -> Operation) {
        let operation = operation();
        let (errors, latency) = match operation {
            Operation::Read { .. } => (Counter::ReadErrors, Latency::Read),
            _ => (Counter::WriteErrors, Latency::Write),
        };
        let length = if let Operation::Write { data, .. } = &operation { Some(data.len()) } else { None };
        let (requests, device) = (Arc::clone(&self.requests), self.device.clone());
        self.requests.submit(operation, fault, move |outcome| {
            requests.disk.counters.took(latency, start);
            match outcome {
                Ok(data) => device.reply(unique, Ok(&length.map_or(data, written))),
                Err(errno) => {
                    requests.disk.counters.add(errors, 1);
                    device.reply(unique, Err(errno));
                }
            }
        });
    }
}

/// The answer to a WRITE.
fn written(length: usize) -> Vec<u8> {
    Fields::default().u32s(&[length as u32, 0]).0
}
