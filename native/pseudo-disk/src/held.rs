//! Writes that found no space for the private store: held and tried again until there is some, or patience is over.
//!
//! Like a thin pool's `queue_if_no_space`. The kernel has acknowledged these writes to the guest before it sent them, so
//! space that is made in time loses nothing. Patience counts from when the space ran out: after it, writes fail at
//! once (and the guest's next flush with them) until one finds space again. No thread waits but the one that tries.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::requests::{Requests, Waiting};

const PAUSE: Duration = Duration::from_millis(200);

/// Whether an errno says that there is no space now.
pub fn is_full(errno: i32) -> bool {
    matches!(errno, libc::ENOSPC | libc::EDQUOT)
}

#[derive(Default)]
struct Queue {
    requests: VecDeque<Arc<Waiting>>,
    /// When the space ran out, and when that was last noticed.
    full: Option<(Instant, Instant)>,
    has_thread: bool,
    closed: bool,
}

pub struct Held {
    patience: Duration,
    is_full: AtomicBool,
    queue: Mutex<Queue>,
    closing: Condvar,
}

impl Held {
    pub fn new(patience: Duration) -> Self {
        Self { patience, is_full: AtomicBool::new(false), queue: Mutex::default(), closing: Condvar::new() }
    }

    /// Takes a request that found no space, or says that it must fail.
    pub fn take(&self, requests: &Arc<Requests>, request: &Arc<Waiting>) -> bool {
        let mut queue = self.queue.lock();
        let now = Instant::now();
        let since = match queue.full {
            // Nobody wrote for long: what was the matter then says nothing about now.
            Some((since, last)) if now - last <= self.patience.max(2 * PAUSE) => since,
            _ => now,
        };
        queue.full = Some((since, now));
        self.is_full.store(true, Ordering::Relaxed);
        if queue.closed || now - since >= self.patience {
            return false;
        }
        if !queue.has_thread {
            let requests = Arc::clone(requests);
            let thread = std::thread::Builder::new().name("no-space".to_owned()).spawn(move || {
                while requests.held.pause() {
                    requests.held.try_all(&requests);
                }
            });
            queue.has_thread = thread.is_ok();
        }
        if queue.has_thread {
            queue.requests.push_back(Arc::clone(request));
        }
        queue.has_thread
    }

    /// Notes that a write found space.
    pub fn found_space(&self) {
        if self.is_full.load(Ordering::Relaxed) {
            self.is_full.store(false, Ordering::Relaxed);
            self.queue.lock().full = None;
        }
    }

    /// Whether requests are still held after a pause.
    fn pause(&self) -> bool {
        let mut queue = self.queue.lock();
        if !queue.requests.is_empty() && !queue.closed {
            self.closing.wait_for(&mut queue, PAUSE);
        }
        queue.has_thread = !queue.requests.is_empty();
        queue.has_thread
    }

    /// Tries those that are held now; the ones that find no space come back by `take`.
    fn try_all(&self, requests: &Requests) {
        let found = std::mem::take(&mut self.queue.lock().requests);
        found.iter().for_each(|request| requests.attempt(request));
    }

    /// What is held now, and what comes from now on, fails.
    pub fn close(&self) {
        self.queue.lock().closed = true;
        self.closing.notify_all();
    }
}
