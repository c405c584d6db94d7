//! Threads that ask the guest while somebody else works: as many requests are under way as there
//! are lanes.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use log::info;

use crate::vm::confinement::confine_thread;

type Job = Box<dyn FnOnce() + Send>;

/// The threads. They end with what they are doing when this is dropped.
pub struct Pool {
    jobs: Sender<Job>,
}

impl Pool {
    /// Starts `count` threads, which give up what they don't need.
    ///
    /// # Errors
    /// Where there can be none.
    pub fn start(count: usize) -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..count {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name("files".to_owned()).spawn(move || {
                if let Err(error) = confine_thread() {
                    info!("a thread that reads files is not confined: {error}");
                }
                // A job that panics takes only its own thread along.
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok(job) = next() {
                    job();
                }
            })?;
        }
        Ok(Self { jobs })
    }

    /// Has `work` done; what comes of it is to be waited for.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Awaited<T> {
        let (sender, receiver) = channel();
        let job = move || {
            // Nobody waits any more where this fails.
            let _ = sender.send(work());
        };
        // The threads live as long as this sender, or the work is lost and that is noticed.
        let _ = self.jobs.send(Box::new(job));
        Awaited(receiver)
    }
}

/// What is being worked on.
pub struct Awaited<T>(Receiver<T>);

impl<T> Awaited<T> {
    /// Waits for it. `None` where the work broke down.
    pub fn wait(self) -> Option<T> {
        self.0.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_comes_back_to_who_waits_for_it() {
        let pool = Pool::start(2).unwrap();
        let doubled: Vec<Awaited<u32>> = (0..100).map(|n| pool.run(move || n * 2)).collect();
        for (n, awaited) in (0..).zip(doubled) {
            assert_eq!(awaited.wait(), Some(n * 2));
        }
        assert_eq!(pool.run(|| -> u32 { panic!("on purpose") }).wait(), None);
        assert_eq!(pool.run(|| 1).wait(), Some(1));
    }
}
