//! The task seam: every task and every piece of blocking work of a node starts here, so that a
//! simulated crash can drop all of them.

use std::future::Future;
use std::pin::Pin;

/// A task's future.
pub type TaskFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Work that may block its thread.
pub type BlockingJob = Box<dyn FnOnce() + Send>;

/// A running task; dropping the handle does not stop it.
pub struct TaskHandle(Box<dyn Fn() + Send + Sync>);

impl TaskHandle {
    /// Wraps the function that aborts the task.
    pub fn new(abort: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Box::new(abort))
    }

    /// Stops the task at its next await.
    pub fn abort(&self) {
        (self.0)();
    }
}

/// How a node runs things side by side.
pub trait Tasks: Send + Sync + 'static {
    /// Starts a task.
    fn spawn(&self, name: &'static str, task: TaskFuture) -> TaskHandle;
    /// Starts blocking work.
    fn run_blocking(&self, job: BlockingJob);
}

/// tokio's tasks and its pool of blocking threads.
pub struct RealTasks;

#[expect(clippy::disallowed_methods, reason = "the one place that starts tasks and blocking work")]
impl Tasks for RealTasks {
    fn spawn(&self, _name: &'static str, task: TaskFuture) -> TaskHandle {
        let handle = tokio::spawn(task).abort_handle();
        TaskHandle::new(move || handle.abort())
    }

    fn run_blocking(&self, job: BlockingJob) {
        tokio::task::spawn_blocking(job);
    }
}
