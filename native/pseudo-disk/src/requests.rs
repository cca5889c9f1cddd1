//! Requests and recalls: a request runs at once when it hits; else it waits, without a thread, for its chunks.
//!
//! One recall a chunk however many requests wait for it; neighbouring chunks come in one read of the source. A recall
//! that fails fails the requests waiting for it, and is forgotten: the next request tries again.
//!
//! Recalls that nobody waits for (ahead of sequential reads, and of a boot profile) run in the background: demand goes
//! first, some threads are kept for it, and a source that is away stops the background until demand finds it back.
//! Threads come when there is work and go when there is none.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::ahead::Streams;
use crate::counters::Counter;
use crate::disk::{Disk, Fault};
use crate::held::{Held, is_full};
use crate::recall::{Chunk, Place, Trace};

/// Threads that stay, so that a recall never needs one that the machine has no room for.
const MIN_THREADS: usize = 2;
const IDLE_TIME: Duration = Duration::from_secs(5);
/// The longest read of the source, where a chunk is not longer.
const RUN: u64 = 1 << 20;
/// What a boot profile holds at most: the first reads of this long after the disk was opened, up to so many bytes.
const PROFILE_TIME: Duration = Duration::from_secs(15 * 60);
const PROFILE_BYTES: u64 = 2 << 30;

pub enum Operation {
    Read { offset: u64, length: usize },
    Write { offset: u64, data: Vec<u8> },
    Zero { offset: u64, length: u64 },
}

/// The data of a read, or nothing; or an errno.
pub type Outcome = Result<Vec<u8>, i32>;

type Done = Box<dyn FnOnce(Outcome) + Send>;

pub struct Waiting {
    operation: Operation,
    done: Mutex<Option<Done>>,
    hand: Mutex<Vec<Chunk>>,
    missing: AtomicUsize,
    failure: AtomicI32,
}

enum Failure {
    /// The source does not answer.
    Away,
    /// It answered, but not with these bytes.
    Bytes,
}

struct Run {
    first: u64,
    count: u64,
    background: bool,
}

struct Queue {
    /// Who waits for each chunk that is queued by demand, or under way (then perhaps nobody).
    waiting: HashMap<u64, Vec<Arc<Waiting>>>,
    demand: VecDeque<u64>,
    ahead: VecDeque<u64>,
    profile: VecDeque<u64>,
    streams: Streams,
    first_reads: Vec<u64>,
    /// Background recalls under way.
    background: usize,
    paused: bool,
    threads: usize,
    idle: usize,
    /// Something was recalled since memory was given back.
    used: bool,
    closed: bool,
}

pub struct Requests {
    pub disk: Disk,
    pub held: Held,
    recall: Py<PyAny>,
    /// Microseconds that the fastest of the last recalls took: what the source needs, without waiting for a core.
    latency: AtomicU64,
    queue: Mutex<Queue>,
    filled: Condvar,
    ended: Condvar,
    max_threads: usize,
    opened: Instant,
    me: Weak<Self>,
}

impl Requests {
    /// `recall(offset, length, background)` is Python's: it returns the source's bytes or raises `OSError`, with the
    /// errno `ETIMEDOUT` when the source does not answer. `hold` is how long writes wait for space.
    pub fn start(disk: Disk, recall: Py<PyAny>, max_threads: usize, hold: Duration) -> Arc<Self> {
        let queue = Queue {
            waiting: HashMap::new(),
            demand: VecDeque::new(),
            ahead: VecDeque::new(),
            profile: VecDeque::new(),
            streams: Streams::new(disk.recall.chunks(), disk.recall.chunk_size),
            first_reads: Vec::new(),
            background: 0,
            paused: false,
            threads: 0,
            idle: 0,
            used: true,
            closed: false,
        };
        let requests = Arc::new_cyclic(|me| Self {
            disk,
            held: Held::new(hold),
            recall,
            latency: AtomicU64::new(0),
            queue: Mutex::new(queue),
            filled: Condvar::new(),
            ended: Condvar::new(),
            max_threads: max_threads.max(MIN_THREADS),
            opened: Instant::now(),
            me: me.clone(),
        });
        let mut queue = requests.queue.lock();
        (0..MIN_THREADS).for_each(|_| requests.start_thread(&mut queue));
        drop(queue);
        requests
    }

    /// Ends the recall threads; requests that still wait fail.
    pub fn close(&self) {
        self.held.close();
        let left = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            self.filled.notify_all();
            self.ended.wait_while(&mut queue, |queue| queue.threads > 0);
            std::mem::take(&mut queue.waiting)
        };
        for (_, requests) in left {
            requests.iter().for_each(|request| self.arrived(request, Err(libc::EIO)));
        }
    }

    /// Recalls these chunks in this order when there is nothing better to do.
    pub fn prefetch(&self, chunks: Vec<u64>) {
        let known = self.disk.recall.chunks();
        let mut queue = self.queue.lock();
        queue.profile = chunks.into_iter().filter(|chunk| *chunk < known).collect();
        self.wake(&mut queue);
    }

    /// The chunks that were read, in the order of their first reads; known zeros are left out.
    pub fn first_reads(&self) -> Vec<u64> {
        self.queue.lock().first_reads.clone()
    }

    /// A read that goes as far as it can without waiting.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<Place, Fault> {
        self.traced(|trace| self.disk.read(buffer, offset, &[], trace)).map(|((), place)| place)
    }

    /// A write that goes as far as it can without waiting.
    pub fn write(&self, data: &[u8], offset: u64) -> Result<(), Fault> {
        self.traced(|trace| self.disk.write(data, offset, &[], trace)).map(|((), _)| self.held.found_space())
    }

    fn traced<T>(&self, work: impl FnOnce(&mut Trace) -> Result<T, Fault>) -> Result<(T, Place), Fault> {
        let mut trace = Trace::default();
        let result = work(&mut trace);
        if let (Some((first, _)), Some((last, _))) = (trace.first_reads.first(), trace.first_reads.last()) {
            self.note(*first, *last, &trace.first_reads);
        }
        result.map(|value| (value, trace.place))
    }

    fn note(&self, first: u64, last: u64, chunks: &[(u64, bool)]) {
        let mut queue = self.queue.lock();
        if self.opened.elapsed() < PROFILE_TIME {
            let left = (PROFILE_BYTES / self.disk.recall.chunk_size) as usize - queue.first_reads.len();
            queue.first_reads.extend(chunks.iter().filter(|(_, zero)| !zero).map(|(chunk, _)| chunk).take(left));
        }
        let plan = queue.streams.read(first, last, Duration::from_micros(self.latency.load(Ordering::Relaxed)));
        if !plan.cancelled.is_empty() {
            queue.ahead.retain(|chunk| !plan.cancelled.contains(chunk));
        }
        if !plan.wanted.is_empty() && !queue.paused && self.disk.recall.has_room() {
            queue.ahead.extend(plan.wanted);
            self.wake(&mut queue);
        }
    }

    /// Has a request that met a fault go on when it can, or fail; `done` gets the outcome, perhaps on another thread.
    pub fn submit(&self, operation: Operation, fault: Fault, done: impl FnOnce(Outcome) + Send + 'static) {
        let request = Arc::new(Waiting {
            operation,
            done: Mutex::new(Some(Box::new(done))),
            hand: Mutex::default(),
            missing: AtomicUsize::new(0),
            failure: AtomicI32::new(0),
        });
        self.go_on(&request, fault);
    }

    fn go_on(&self, request: &Arc<Waiting>, fault: Fault) {
        match fault {
            Fault::Missing(missing) => {
                request.missing.store(missing.len(), Ordering::Release);
                self.wait(request, &missing);
            }
            Fault::Errno(errno) => {
                let changes = !matches!(request.operation, Operation::Read { .. });
                let held =
                    changes && is_full(errno) && self.me.upgrade().is_some_and(|me| self.held.take(&me, request));
                if !held {
                    finish(request, Err(errno));
                }
            }
        }
    }

    fn wait(&self, request: &Arc<Waiting>, missing: &[u64]) {
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue);
            missing.iter().for_each(|_| self.arrived(request, Err(libc::EIO)));
            return;
        }
        for chunk in missing {
            if !queue.waiting.contains_key(chunk) {
                queue.demand.push_back(*chunk);
            }
            queue.waiting.entry(*chunk).or_default().push(Arc::clone(request));
        }
        self.wake(&mut queue);
    }

    /// Gets one more thread to work; it does the same when more is left, so that there are as many as there is work.
    fn wake(&self, queue: &mut Queue) {
        if queue.idle > 0 {
            self.filled.notify_one();
        } else if queue.threads < self.max_threads && !queue.closed {
            self.start_thread(queue);
        }
    }

    fn start_thread(&self, queue: &mut Queue) {
        let Some(requests) = self.me.upgrade() else { return };
        // Without a thread now, those that are there do the work.
        if std::thread::Builder::new().name("recall".to_owned()).spawn(move || requests.work()).is_ok() {
            queue.threads += 1;
        }
    }

    fn work(&self) {
        let mut queue = self.queue.lock();
        while !queue.closed {
            if let Some(run) = self.next_run(&mut queue) {
                if !queue.demand.is_empty() || self.has_background_work(&queue) {
                    self.wake(&mut queue);
                }
                drop(queue);
                self.recall(&run);
                queue = self.queue.lock();
                queue.used = true;
                queue.background -= usize::from(run.background);
                continue;
            }
            queue.idle += 1;
            let waited = self.filled.wait_for(&mut queue, IDLE_TIME);
            queue.idle -= 1;
            if !waited.timed_out() {
                continue;
            }
            if queue.threads > MIN_THREADS {
                break;
            }
            if std::mem::take(&mut queue.used) {
                drop(queue);
                // What the recalls needed is given back: a mount that idles is small.
                // SAFETY: has no preconditions.
                unsafe { libc::malloc_trim(0) };
                queue = self.queue.lock();
            }
        }
        queue.threads -= 1;
        self.ended.notify_all();
    }

    /// How many background recalls may be under way: ahead of sequential reads, and for the profile.
    fn background_limits(&self) -> (usize, usize) {
        (self.max_threads - (self.max_threads / 4).max(1), (self.max_threads / 4).max(1))
    }

    fn has_background_work(&self, queue: &Queue) -> bool {
        let (ahead, profile) = self.background_limits();
        !queue.paused
            && self.disk.recall.has_room()
            && (!queue.ahead.is_empty() && queue.background < ahead
                || !queue.profile.is_empty() && queue.background < profile)
    }

    fn next_run(&self, queue: &mut Queue) -> Option<Run> {
        let most = (RUN / self.disk.recall.chunk_size).max(1);
        if let Some(first) = queue.demand.pop_front() {
            let mut count = 1;
            while count < most && queue.demand.front() == Some(&(first + count)) && !self.disk.recall.has(first) {
                queue.demand.pop_front();
                count += 1;
            }
            return Some(Run { first, count, background: false });
        }
        let (ahead, profile) = self.background_limits();
        if queue.paused || !self.disk.recall.has_room() {
            return None;
        }
        let Queue { waiting, background, .. } = queue;
        let mut take = |chunks: &mut VecDeque<u64>| {
            let mut run: Option<Run> = None;
            while let Some(chunk) = chunks.front().copied() {
                if waiting.contains_key(&chunk) || self.disk.recall.has(chunk) {
                    chunks.pop_front();
                    continue;
                }
                match &mut run {
                    Some(run) if run.count < most && chunk == run.first + run.count => run.count += 1,
                    Some(_) => break,
                    None => run = Some(Run { first: chunk, count: 1, background: true }),
                }
                chunks.pop_front();
                waiting.insert(chunk, Vec::new());
            }
            run
        };
        let mut run = None;
        if *background < ahead {
            run = take(&mut queue.ahead);
        }
        if run.is_none() && *background < profile {
            run = take(&mut queue.profile);
        }
        *background += usize::from(run.is_some());
        run
    }

    fn recall(&self, run: &Run) {
        let Run { first, count, background } = *run;
        if self.disk.recall.has(first) {
            // It came between the request's look and its waiting, or from another mount's worker.
            self.settle(first, Ok(None), background);
            return if count > 1 {
                self.recall(&Run { first: first + 1, count: count - 1, background })
            };
        }
        let start = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| self.fetch(run))).unwrap_or(Err(Failure::Bytes)) {
            Ok(bytes) => {
                self.took(start.elapsed());
                self.disk.counters.add(Counter::RecalledBytes, bytes.len() as u64);
                if background {
                    self.disk.counters.add(Counter::PrefetchedBytes, bytes.len() as u64);
                } else {
                    self.queue.lock().paused = false;
                }
                for (chunk, bytes) in (first..).zip(bytes.chunks(self.disk.recall.chunk_size as usize)) {
                    let kept = self.disk.recall.keep(chunk, bytes);
                    self.settle(chunk, Ok((!kept).then_some(bytes)), background);
                }
            }
            // One damaged chunk is no reason to withhold its neighbours.
            Err(Failure::Bytes) if count > 1 => {
                (first..first + count).for_each(|first| self.recall(&Run { first, count: 1, background }));
            }
            Err(failure) => {
                if background && matches!(failure, Failure::Away) {
                    let mut queue = self.queue.lock();
                    queue.paused = true;
                    queue.ahead.clear();
                }
                (first..first + count).for_each(|chunk| self.settle(chunk, Err(libc::EIO), background));
            }
        }
    }

    fn took(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let known = self.latency.load(Ordering::Relaxed);
        // Slowly up, at once down.
        let now = if known == 0 { micros } else { micros.min(known + known / 8 + 1) };
        self.latency.store(now, Ordering::Relaxed);
    }

    fn fetch(&self, run: &Run) -> Result<PyBackedBytes, Failure> {
        let (offset, length) = self.disk.recall.range(run.first, run.count);
        Python::attach(|py| {
            let answer = self.recall.call1(py, (offset, length, run.background));
            match answer.and_then(|answer| Ok(answer.extract::<PyBackedBytes>(py)?)) {
                Ok(bytes) if bytes.len() == length => Ok(bytes),
                Ok(_) => Err(Failure::Bytes),
                Err(error) => {
                    let errno = error.value(py).getattr("errno").and_then(|errno| errno.extract::<i32>());
                    Err(if matches!(errno, Ok(libc::ETIMEDOUT)) { Failure::Away } else { Failure::Bytes })
                }
            }
        })
    }

    /// Tells those who wait for a chunk; its bytes come along when the recall store had no room for them.
    fn settle(&self, chunk: u64, fetched: Result<Option<&[u8]>, i32>, background: bool) {
        let requests = {
            let mut queue = self.queue.lock();
            let wanted = queue.waiting.get(&chunk).is_some_and(|requests| !requests.is_empty());
            if background && fetched.is_err() && wanted {
                // Demand has more patience with a source than the background has.
                queue.demand.push_back(chunk);
                return self.wake(&mut queue);
            }
            queue.waiting.remove(&chunk).unwrap_or_default()
        };
        if requests.is_empty() {
            return;
        }
        let fetched = fetched.map(|bytes| bytes.map(|bytes| (chunk, Arc::new(bytes.to_vec()))));
        for request in requests {
            guarded(&request, || self.arrived(&request, fetched.clone()));
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
        self.attempt(request);
    }

    /// Runs a request whose chunks are all here.
    pub fn attempt(&self, request: &Arc<Waiting>) {
        guarded(request, || {
            let hand = std::mem::take(&mut *request.hand.lock());
            match self.run(&request.operation, &hand) {
                Ok(data) => finish(request, Ok(data)),
                Err(fault) => {
                    // What was at hand stays there: with no room in the recall store it is nowhere else.
                    *request.hand.lock() = hand;
                    self.go_on(request, fault);
                }
            }
        });
    }

    /// Runs an operation with the chunks at hand.
    pub fn run(&self, operation: &Operation, hand: &[Chunk]) -> Result<Vec<u8>, Fault> {
        let ran = self.traced(|trace| match operation {
            Operation::Read { offset, length } => {
                let mut buffer = vec![0; *length];
                self.disk.read(&mut buffer, *offset, hand, trace).map(|()| buffer)
            }
            Operation::Write { offset, data } => self.disk.write(data, *offset, hand, trace).map(|()| Vec::new()),
            Operation::Zero { offset, length } => self.disk.zero(*offset, *length, hand, trace).map(|()| Vec::new()),
        });
        if ran.is_ok() && !matches!(operation, Operation::Read { .. }) {
            self.held.found_space();
        }
        ran.map(|(data, _)| data)
    }
}

/// Does something for a request; a panic is an error of this one.
fn guarded(request: &Waiting, work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        finish(request, Err(libc::EIO));
    }
}

fn finish(request: &Waiting, outcome: Outcome) {
    if let Some(done) = request.done.lock().take() {
        done(outcome);
    }
}
