//! A connection's byte stream under hyper: it dies when it idles or stalls, and closes without losing
//! the last answer.
//!
//! - Reading may idle for `idle` while no request is under way (a handler may take its time).
//! - Writing may stall for `stall`.
//! - Closing lingers: data that still comes in is read and dropped for a moment, since closing a TCP
//!   socket with unread data resets it, and the client would lose the error we just sent.

use hayloft_common::env::BoxStream;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a closing connection still swallows what the client sends.
const LINGER: Duration = Duration::from_secs(2);

/// How many requests of a connection are under way.
#[derive(Debug, Default)]
pub struct Activity(AtomicUsize);

/// One request under way; ends when dropped.
pub struct Active(Arc<Activity>);

impl Activity {
    /// Marks the start of a request.
    pub fn begin(self: &Arc<Self>) -> Active {
        self.0.fetch_add(1, Ordering::Relaxed);
        Active(Arc::clone(self))
    }

    fn is_idle(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A timer that runs only while something waits.
struct Watchdog {
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
    armed: bool,
}

impl Watchdog {
    fn new(limit: Duration) -> Self {
        Self { limit, sleep: Box::pin(tokio::time::sleep(limit)), armed: false }
    }

    fn disarm(&mut self) {
        self.armed = false;
    }

    /// Ready once the wait has lasted longer than the limit.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.armed {
            self.sleep.as_mut().reset(Instant::now() + self.limit);
            self.armed = true;
        }
        self.sleep.as_mut().poll(cx)
    }
}

/// See the module's head.
pub struct ConnectionIo {
    inner: BoxStream,
    activity: Arc<Activity>,
    reading: Watchdog,
    writing: Watchdog,
    linger: Watchdog,
    write_closed: bool,
}

impl ConnectionIo {
    pub fn new(inner: BoxStream, activity: Arc<Activity>, idle: Duration, stall: Duration) -> Self {
        Self {
            inner,
            activity,
            reading: Watchdog::new(idle),
            writing: Watchdog::new(stall),
            linger: Watchdog::new(LINGER),
            write_closed: false,
        }
    }

    fn watch_write<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.writing.disarm();
            return result;
        }
        ready!(self.writing.poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }
}

impl AsyncRead for ConnectionIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        if result.is_ready() || !this.activity.is_idle() {
            this.reading.disarm();
            return result;
        }
        ready!(this.reading.poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the connection was idle")))
    }
}

impl AsyncWrite for ConnectionIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.watch_write(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.watch_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_flush(cx);
        this.watch_write(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.write_closed {
            let result = Pin::new(&mut this.inner).poll_shutdown(cx);
            ready!(this.watch_write(cx, result))?;
            this.write_closed = true;
        }
        let mut scratch = [0; 4096];
        loop {
            if this.linger.poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut this.inner).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                // The end, or an error: either way the client is gone.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    const IDLE: Duration = Duration::from_mins(1);
    const STALL: Duration = Duration::from_secs(30);

    fn pair() -> (ConnectionIo, tokio::io::DuplexStream, Arc<Activity>) {
        let (ours, theirs) = tokio::io::duplex(64);
        let activity = Arc::new(Activity::default());
        (ConnectionIo::new(Box::new(ours), Arc::clone(&activity), IDLE, STALL), theirs, activity)
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_times_out_but_a_busy_one_waits() {
        let (mut io, _theirs, activity) = pair();
        let mut byte = [0];
        assert_eq!(io.read(&mut byte).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let busy = activity.begin();
        let waited = tokio::time::timeout(IDLE * 10, io.read(&mut byte)).await;
        assert!(waited.is_err(), "a request is under way: no time-out");
        drop(busy);
        assert!(io.read(&mut byte).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_cut_off() {
        let (mut io, _theirs, _activity) = pair();
        let error = io.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn closing_swallows_what_still_comes() {
        let (mut io, mut theirs, _activity) = pair();
        let client = async {
            // More than the pipe holds: goes through only if the other side reads.
            theirs.write_all(&[0; 1000]).await.unwrap();
            let mut rest = Vec::new();
            theirs.read_to_end(&mut rest).await.unwrap();
            drop(theirs);
            rest
        };
        let server = async {
            io.write_all(b"refused").await.unwrap();
            io.shutdown().await.unwrap();
        };
        let (rest, ()) = tokio::join!(client, server);
        assert_eq!(rest, b"refused");
    }
}
