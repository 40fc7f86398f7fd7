//! A value that tasks wait on.
//!
//! Like tokio's `watch`, but waiters wake in the order in which they came. tokio's wakes them in a random one, and a
//! run of the simulator would not repeat.

use parking_lot::Mutex;
use tokio::sync::Notify;

/// See the module's head.
pub(crate) struct Watched<T> {
    value: Mutex<T>,
    changed: Notify,
}

impl<T: Clone> Watched<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Mutex::new(value), changed: Notify::new() }
    }

    /// The value as it is now.
    pub(crate) fn get(&self) -> T {
        self.value.lock().clone()
    }

    /// Puts `value` in place.
    pub(crate) fn set(&self, value: T) {
        *self.value.lock() = value;
        self.changed.notify_waiters();
    }

    /// Lets `change` change the value, and wakes those who wait if it says that it did. Returns what it said.
    pub(crate) fn modify(&self, change: impl FnOnce(&mut T) -> bool) -> bool {
        let changed = change(&mut self.value.lock());
        if changed {
            self.changed.notify_waiters();
        }
        changed
    }

    /// Waits until `wanted` likes the value. A value that stands only for a moment may be missed.
    pub(crate) async fn wait_for(&self, wanted: impl Fn(&T) -> bool) -> T {
        loop {
            // Made before the look: a change after it is not missed.
            let changed = self.changed.notified();
            let now = self.get();
            if wanted(&now) {
                return now;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn waiters_wake_when_the_value_fits_and_not_before() {
        let watched = Watched::new(1);
        let mut wait = Box::pin(watched.wait_for(|value| *value == 3));
        assert!(wait.as_mut().now_or_never().is_none());
        watched.set(2);
        assert!(wait.as_mut().now_or_never().is_none());
        assert!(!watched.modify(|_| false));
        assert!(watched.modify(|value| {
            *value = 3;
            true
        }));
        assert_eq!(wait.as_mut().now_or_never(), Some(3));
    }
}
