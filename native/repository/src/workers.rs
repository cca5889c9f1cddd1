//! Threads that share one piece of work: the first error ends all of them, a panic is an error.
//!
//! Threads of our own, not a global pool: such a pool would be dead in a forked child.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

/// How often `tick` is called, at least.
const TICK: Duration = Duration::from_millis(100);

/// Set when the work has failed elsewhere: leave at the next chance, the result is not used.
pub struct Stop(AtomicBool);

impl Stop {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Two threads a core: one computes while the other waits for the disk.
pub fn threads() -> usize {
    thread::available_parallelism().map_or(4, |cores| (cores.get() * 2).min(32))
}

/// Run `work` in `count` threads and `tick` in this one, and return what the threads return.
pub fn run<T: Send, E: From<Error>>(
    count: usize,
    work: impl Fn(&Stop) -> Result<T> + Sync,
    mut tick: impl FnMut() -> std::result::Result<(), E>,
) -> std::result::Result<Vec<T>, E> {
    let stop = Stop(AtomicBool::new(false));
    let (sender, receiver) = channel();
    thread::scope(|scope| {
        for _ in 0..count {
            let (sender, stop, work) = (sender.clone(), &stop, &work);
            scope.spawn(move || {
                let result = catch_unwind(AssertUnwindSafe(|| work(stop)))
                    .unwrap_or_else(|payload| Err(Error::panicked(&*payload)));
                // The receiver lives until all senders are gone.
                let _ = sender.send(result);
            });
        }
        drop(sender);
        let mut results = Vec::with_capacity(count);
        let mut first_error = None;
        loop {
            let failed = match receiver.recv_timeout(TICK) {
                Ok(Ok(result)) => {
                    results.push(result);
                    None
                }
                Ok(Err(error)) => Some(E::from(error)),
                Err(RecvTimeoutError::Timeout) if first_error.is_none() => tick().err(),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Some(error) = failed {
                stop.0.store(true, Ordering::Relaxed);
                first_error.get_or_insert(error);
            }
        }
        match first_error {
            Some(error) => Err(error),
            None => Ok(results),
        }
    })
}
