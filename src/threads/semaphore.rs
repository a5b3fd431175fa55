//! A counting semaphore: at most so many at a time, the others wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Permits that are taken and given back.
pub struct Semaphore {
    free: Mutex<usize>,
    returned: Condvar,
}

/// Given back when it is dropped, also by a panic.
pub struct Permit(Arc<Semaphore>);

impl Semaphore {
    pub fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Mutex::new(permits),
            returned: Condvar::new(),
        })
    }

    /// How many permits are free.
    pub fn available(&self) -> usize {
        *self.free.lock()
    }

    /// Waits for a permit, `patience` at most.
    pub fn acquire_within(self: &Arc<Self>, patience: Duration) -> Option<Permit> {
        let mut free = self.free.lock();
        let deadline = Instant::now() + patience;
        self.returned
            .wait_while_until(&mut free, |free| *free == 0, deadline);
        if *free == 0 {
            return None;
        }
        *free -= 1;
        Some(Permit(Arc::clone(self)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.returned.notify_one();
    }
}
