//! Requests and recalls: a request runs at once when it hits; else it waits, without a thread, for its chunks.
//!
//! One recall a chunk however many requests wait for it. A recall that fails fails the requests waiting for it, and is
//! forgotten: the next request tries again.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::counters::Counter;
use crate::disk::{Disk, Fault};
use crate::recall::Chunk;

pub enum Operation {
    Read { offset: u64, length: usize },
    Write { offset: u64, data: Vec<u8> },
    Zero { offset: u64, length: u64 },
}

/// The data of a read, or nothing; or an errno.
pub type Outcome = Result<Vec<u8>, i32>;

type Done = Box<dyn FnOnce(Outcome) + Send>;

struct Waiting {
    operation: Operation,
    done: Mutex<Option<Done>>,
    hand: Mutex<Vec<Chunk>>,
    missing: AtomicUsize,
    failure: AtomicI32,
}

#[derive(Default)]
struct Queue {
    waiting: HashMap<u64, Vec<Arc<Waiting>>>,
    chunks: VecDeque<u64>,
    closed: bool,
}

pub struct Requests {
    pub disk: Disk,
    recall: Py<PyAny>,
    queue: Mutex<Queue>,
    filled: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Requests {
    /// `recall(offset, length)` is Python's: it returns the source's bytes or raises `OSError`.
    pub fn start(disk: Disk, recall: Py<PyAny>, threads: usize) -> Arc<Self> {
        let requests =
            Arc::new(Self { disk, recall, queue: Mutex::default(), filled: Condvar::new(), threads: Mutex::default() });
        let start = |_| {
            let requests = Arc::clone(&requests);
            std::thread::spawn(move || requests.recall_chunks())
        };
        *requests.threads.lock() = (0..threads).map(start).collect();
        requests
    }

    /// Ends the recall threads; requests that still wait fail.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.filled.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            let _ = thread.join();
        }
        let left = std::mem::take(&mut self.queue.lock().waiting);
        for (_, requests) in left {
            requests.iter().for_each(|request| self.arrived(request, Err(libc::EIO)));
        }
    }

    /// Has a request wait for its missing chunks, then run; `done` gets the outcome on another thread.
    pub fn submit(&self, operation: Operation, missing: &[u64], done: impl FnOnce(Outcome) + Send + 'static) {
        let request = Waiting {
            operation,
            done: Mutex::new(Some(Box::new(done))),
            hand: Mutex::default(),
            missing: AtomicUsize::new(missing.len()),
            failure: AtomicI32::new(0),
        };
        self.wait(&Arc::new(request), missing);
    }

    fn wait(&self, request: &Arc<Waiting>, missing: &[u64]) {
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue);
            missing.iter().for_each(|_| self.arrived(request, Err(libc::EIO)));
            return;
        }
        for chunk in missing {
            let known = queue.waiting.entry(*chunk).or_default();
            known.push(Arc::clone(request));
            if known.len() == 1 {
                queue.chunks.push_back(*chunk);
                self.filled.notify_one();
            }
        }
    }

    fn recall_chunks(&self) {
        loop {
            let chunk = {
                let mut queue = self.queue.lock();
                loop {
                    if queue.closed {
                        return;
                    }
                    if let Some(chunk) = queue.chunks.pop_front() {
                        break chunk;
                    }
                    self.filled.wait(&mut queue);
                }
            };
            let fetched = if self.disk.recall.has(chunk) {
                // It came between the request's look and its waiting, or from another mount's worker.
                Ok(None)
            } else {
                catch_unwind(AssertUnwindSafe(|| self.fetch(chunk))).unwrap_or(Err(libc::EIO)).map(Some)
            };
            if let Ok(Some(bytes)) = &fetched {
                self.disk.counters.add(Counter::RecalledBytes, bytes.len() as u64);
                self.disk.recall.keep(chunk, bytes);
            }
            let requests = self.queue.lock().waiting.remove(&chunk).unwrap_or_default();
            for request in requests {
                let arrived = fetched.clone().map(|bytes| bytes.map(|bytes| (chunk, bytes)));
                let guarded = AssertUnwindSafe(|| self.arrived(&request, arrived));
                if catch_unwind(guarded).is_err() {
                    finish(&request, Err(libc::EIO));
                }
            }
        }
    }

    fn fetch(&self, chunk: u64) -> Result<Arc<Vec<u8>>, i32> {
        let (offset, length) = self.disk.recall.range(chunk);
        let bytes = Python::attach(|py| -> PyResult<Vec<u8>> {
            let answer = self.recall.call1(py, (offset, length))?;
            Ok(answer.bind(py).cast::<PyBytes>()?.as_bytes().to_vec())
        });
        match bytes {
            Ok(bytes) if bytes.len() == length => Ok(Arc::new(bytes)),
            _ => Err(libc::EIO),
        }
    }

    /// Notes a chunk (none when it is in the store now); the last one makes the request go on.
    fn arrived(&self, request: &Arc<Waiting>, chunk: Result<Option<Chunk>, i32>) {
        match chunk {
            Ok(chunk) => request.hand.lock().extend(chunk),
            Err(errno) => request.failure.store(errno, Ordering::Release),
        }
        if request.missing.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let failure = request.failure.load(Ordering::Acquire);
        if failure != 0 {
            return finish(request, Err(failure));
        }
        let hand = std::mem::take(&mut *request.hand.lock());
        match self.run(&request.operation, &hand) {
            Ok(data) => finish(request, Ok(data)),
            Err(Fault::Errno(errno)) => finish(request, Err(errno)),
            // What was at hand stays there: with no room in the recall store it is nowhere else.
            Err(Fault::Missing(missing)) => {
                *request.hand.lock() = hand;
                request.missing.store(missing.len(), Ordering::Release);
                self.wait(request, &missing);
            }
        }
    }

    /// Runs an operation with the chunks at hand.
    pub fn run(&self, operation: &Operation, hand: &[Chunk]) -> Result<Vec<u8>, Fault> {
        match operation {
            Operation::Read { offset, length } => {
                let mut buffer = vec![0; *length];
                self.disk.read(&mut buffer, *offset, hand).map(|()| buffer)
            }
            Operation::Write { offset, data } => self.disk.write(data, *offset, hand).map(|()| Vec::new()),
            Operation::Zero { offset, length } => self.disk.zero(*offset, *length, hand).map(|()| Vec::new()),
        }
    }
}

fn finish(request: &Waiting, outcome: Outcome) {
    if let Some(done) = request.done.lock().take() {
        done(outcome);
    }
}
