//! The simulated network: byte streams between named hosts, behind `common::env::Net`.
//!
//! Fault model. Injected: latency with jitter per direction of a pair of hosts (never reordered inside a stream,
//! as TCP), cut links in one or both directions (bytes wait, as TCP retransmits, and flow again when the link
//! heals; dials hang), crashed hosts (streams reset at once, or fall silent as after a power cut). Must be
//! survived: all of it. Out of scope: corrupted bytes (TLS refuses them), bandwidth (the WAN emulator's job).

use async_trait::async_trait;
use hayloft_common::env::{BoxStream, Listener, Net};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

/// Bytes that may be under way in one direction before the writer has to wait.
const IN_FLIGHT: usize = 1 << 20;
/// How long a dial to a silent host takes to fail.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A host by number.
pub type HostId = usize;

#[derive(Default)]
struct State {
    listeners: BTreeMap<String, (HostId, mpsc::UnboundedSender<(BoxStream, String)>)>,
    /// Directed links that carry nothing.
    cut: BTreeSet<(HostId, HostId)>,
    /// One-way latency: base and jitter; the default where a pair is missing.
    latency: BTreeMap<(HostId, HostId), (Duration, Duration)>,
    /// Wakers of streams stalled by a cut.
    stalled: Vec<Waker>,
    /// Pipes by the hosts they join, to reset them when one crashes.
    pipes: Vec<(HostId, HostId, std::sync::Weak<Mutex<Pipe>>)>,
    rng: u64,
    next_port: u16,
}

/// The network that all hosts share.
#[derive(Clone)]
pub struct SimNetwork(Arc<Mutex<State>>);

impl SimNetwork {
    /// A network whose jitter follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State { rng: seed | 1, next_port: 10_000, ..State::default() })))
    }

    /// The view of one host.
    pub fn host(&self, host: HostId) -> SimNet {
        SimNet { network: self.clone(), host }
    }

    /// Sets the one-way latency from `a` to `b` and back.
    pub fn set_latency(&self, a: HostId, b: HostId, base: Duration, jitter: Duration) {
        let mut state = self.0.lock();
        state.latency.insert((a, b), (base, jitter));
        state.latency.insert((b, a), (base, jitter));
    }

    /// Stops everything from `from` to `to`.
    pub fn cut(&self, from: HostId, to: HostId) {
        self.0.lock().cut.insert((from, to));
    }

    /// Heals every cut.
    pub fn heal(&self) {
        let wakers = {
            let mut state = self.0.lock();
            state.cut.clear();
            std::mem::take(&mut state.stalled)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Forgets a crashed host's listeners. Its streams are reset, or stay silent for ever.
    pub fn crash(&self, host: HostId, reset: bool) {
        let mut woken = Vec::new();
        {
            let mut state = self.0.lock();
            state.listeners.retain(|_, (owner, _)| *owner != host);
            let pipes = std::mem::take(&mut state.pipes);
            for (from, to, pipe) in pipes {
                let Some(strong) = pipe.upgrade() else { continue };
                if from == host || to == host {
                    let mut pipe = strong.lock();
                    pipe.end = if reset { End::Reset } else { End::Silent };
                    woken.extend(pipe.reader.take());
                    woken.extend(pipe.writer.take());
                } else {
                    state.pipes.push((from, to, pipe));
                }
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }

    fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.0.lock().cut.contains(&(from, to))
    }

    fn delay(&self, from: HostId, to: HostId) -> Duration {
        let mut state = self.0.lock();
        // xorshift: enough for jitter.
        let mut x = state.rng;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.rng = x;
        let default = (Duration::from_micros(200), Duration::from_micros(300));
        let (base, jitter) = state.latency.get(&(from, to)).copied().unwrap_or(default);
        base + Duration::from_micros(x % (jitter.as_micros() as u64 + 1))
    }

    fn pipe(&self, from: HostId, to: HostId) -> Arc<Mutex<Pipe>> {
        let pipe = Arc::new(Mutex::new(Pipe::default()));
        let mut state = self.0.lock();
        state.pipes.retain(|(_, _, pipe)| pipe.strong_count() > 0);
        state.pipes.push((from, to, Arc::downgrade(&pipe)));
        pipe
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum End {
    #[default]
    Open,
    /// The writer closed it: what is under way still arrives.
    Closed,
    Reset,
    Silent,
}

/// One direction of a stream.
#[derive(Default)]
struct Pipe {
    queue: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    end: End,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One end of a stream.
struct SimStream {
    network: SimNetwork,
    local: HostId,
    remote: HostId,
    incoming: Arc<Mutex<Pipe>>,
    outgoing: Arc<Mutex<Pipe>>,
    timer: Pin<Box<Sleep>>,
}

impl SimStream {
    fn boxed(
        network: &SimNetwork,
        local: HostId,
        remote: HostId,
        incoming: &Arc<Mutex<Pipe>>,
        outgoing: &Arc<Mutex<Pipe>>,
    ) -> BoxStream {
        Box::new(Self {
            network: network.clone(),
            local,
            remote,
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        })
    }
}

fn reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "simulated reset")
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let mut pipe = this.incoming.lock();
            match pipe.end {
                End::Reset => return Poll::Ready(Err(reset())),
                End::Silent => return Poll::Pending,
                End::Closed if pipe.queue.is_empty() => return Poll::Ready(Ok(())),
                End::Open | End::Closed => {}
            }
            pipe.reader = Some(cx.waker().clone());
            let Some((at, _)) = pipe.queue.front() else { return Poll::Pending };
            let at = *at;
            if this.network.is_cut(this.remote, this.local) {
                this.network.0.lock().stalled.push(cx.waker().clone());
                return Poll::Pending;
            }
            if at > Instant::now() {
                drop(pipe);
                this.timer.as_mut().reset(at);
                match std::future::Future::poll(this.timer.as_mut(), cx) {
                    Poll::Ready(()) => continue,
                    Poll::Pending => return Poll::Pending,
                }
            }
            if let Some((_, mut data)) = pipe.queue.pop_front() {
                let take = data.len().min(out.remaining());
                out.put_slice(&data[..take]);
                pipe.bytes -= take;
                if take < data.len() {
                    data.drain(..take);
                    pipe.queue.push_front((at, data));
                }
            }
            if let Some(writer) = pipe.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut pipe = this.outgoing.lock();
        match pipe.end {
            End::Reset | End::Closed => return Poll::Ready(Err(reset())),
            End::Silent => return Poll::Pending,
            End::Open => {}
        }
        if pipe.bytes >= IN_FLIGHT {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let earliest = Instant::now() + this.network.delay(this.local, this.remote);
        let at = pipe.queue.back().map_or(earliest, |(last, _)| earliest.max(*last));
        pipe.queue.push_back((at, data.to_vec()));
        pipe.bytes += data.len();
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        close(&self.outgoing);
        Poll::Ready(Ok(()))
    }
}

fn close(pipe: &Mutex<Pipe>) {
    let mut pipe = pipe.lock();
    if pipe.end == End::Open {
        pipe.end = End::Closed;
    }
    if let Some(reader) = pipe.reader.take() {
        reader.wake();
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        close(&self.outgoing);
        // The peer's writes have nowhere to go any more.
        let mut pipe = self.incoming.lock();
        if pipe.end == End::Open {
            pipe.end = End::Reset;
        }
        if let Some(writer) = pipe.writer.take() {
            writer.wake();
        }
    }
}

/// The network as one host sees it.
pub struct SimNet {
    network: SimNetwork,
    host: HostId,
}

#[async_trait]
impl Net for SimNet {
    async fn dial(&self, addr: &str) -> io::Result<BoxStream> {
        let target = self.network.0.lock().listeners.get(addr).map(|(host, tx)| (*host, tx.clone()));
        let Some((remote, accept)) = target else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody listens on {addr}")));
        };
        if self.network.is_cut(self.host, remote) || self.network.is_cut(remote, self.host) {
            tokio::time::sleep(DIAL_TIMEOUT).await;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {addr}")));
        }
        let round_trip = self.network.delay(self.host, remote) + self.network.delay(remote, self.host);
        tokio::time::sleep(round_trip).await;
        let (to, from) = (self.network.pipe(self.host, remote), self.network.pipe(remote, self.host));
        let theirs = SimStream::boxed(&self.network, remote, self.host, &to, &from);
        let ours = SimStream::boxed(&self.network, self.host, remote, &from, &to);
        accept.send((theirs, format!("host{}", self.host))).map_err(|_| reset())?;
        Ok(ours)
    }

    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let mut state = self.network.0.lock();
        let addr = match addr.strip_suffix(":0") {
            Some(host) => {
                state.next_port += 1;
                format!("{host}:{}", state.next_port)
            }
            None => addr.to_owned(),
        };
        if state.listeners.contains_key(&addr) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{addr} is in use")));
        }
        let (tx, rx) = mpsc::unbounded_channel();
        state.listeners.insert(addr.clone(), (self.host, tx));
        Ok(Box::new(SimListener { addr, rx: tokio::sync::Mutex::new(rx) }))
    }
}

struct SimListener {
    addr: String,
    rx: tokio::sync::Mutex<mpsc::UnboundedReceiver<(BoxStream, String)>>,
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&self) -> io::Result<(BoxStream, String)> {
        self.rx.lock().await.recv().await.ok_or_else(reset)
    }

    fn local_addr(&self) -> String {
        self.addr.clone()
    }
}
