//! The simulated network: byte streams between named hosts, behind `common::env::Net`.
//!
//! A host's addresses are `host<number>:<port>`. Fault model. Injected: latency with jitter per direction of a pair
//! of hosts (never reordered inside a stream, as TCP), packets that take seconds longer, writes taken only in part, cut
//! links in one or both directions (bytes, and news of a stream's end, wait as TCP retransmits, and flow again when the
//! link heals; dials go on for some seconds), connections that are reset, crashed hosts (streams reset, or fall silent as after a power cut until the host is back
//! and answers strangers with a reset). Must be survived: all of it. Out of scope: corrupted bytes (TLS refuses
//! them), bandwidth (the WAN emulator's job).

use async_trait::async_trait;
use bytes::{Buf as _, Bytes};
use hayloft_common::env::{BoxStream, Listener, Net};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

/// Bytes that may be under way in one direction before the writer has to wait.
const IN_FLIGHT: usize = 1 << 20;
/// How long a dial to a silent host takes to fail, and between its packets.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const DIAL_RETRY: Duration = Duration::from_secs(1);
/// Latency of links that none was set for: base and jitter.
const DEFAULT_LATENCY: (Duration, Duration) = (Duration::from_micros(200), Duration::from_micros(300));

/// A host by number.
pub(super) type HostId = usize;

/// A directed link.
pub(super) type Link = (HostId, HostId);

struct State {
    start: Instant,
    listeners: BTreeMap<String, (HostId, mpsc::UnboundedSender<(BoxStream, String)>)>,
    /// Directed links that carry nothing, and how many faults want that.
    cut: BTreeMap<Link, usize>,
    latency: BTreeMap<Link, (Duration, Duration)>,
    /// Links on which everything takes longer, for now.
    extra: BTreeMap<Link, Duration>,
    /// Hosts that answer nothing at all.
    silent: BTreeSet<HostId>,
    /// How often each host has crashed: streams of an earlier life are dead.
    lives: BTreeMap<HostId, u64>,
    /// Wakers of streams stalled by a cut.
    stalled: Vec<Waker>,
    pipes: Vec<(Link, Weak<Mutex<Pipe>>)>,
    rng: u64,
    next_port: u16,
    /// Everything ever written, to compare two runs.
    digest: u64,
    writes: u64,
    bytes: u64,
}

impl State {
    fn random(&mut self) -> u64 {
        // xorshift: enough for jitter.
        let mut x = self.rng;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.rng = x;
        x
    }

    fn delay(&mut self, link: Link) -> Duration {
        let (base, jitter) = self.latency.get(&link).copied().unwrap_or(DEFAULT_LATENCY);
        let extra = self.extra.get(&link).copied().unwrap_or_default();
        base + extra + Duration::from_micros(self.random() % (jitter.as_micros() as u64 + 1))
    }

    /// Folds a write into the digest: enough to tell two runs apart, and cheap.
    fn note(&mut self, link: Link, data: &[u8]) {
        let now = self.start.elapsed().as_micros() as u64;
        let mut mixed = self.digest ^ now ^ ((link.0 as u64) << 48) ^ ((link.1 as u64) << 56);
        let (words, rest) = data.as_chunks::<8>();
        let words = words.iter().map(|word| u64::from_le_bytes(*word));
        for word in words.chain(rest.iter().map(|byte| u64::from(*byte))) {
            mixed = (mixed.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        self.digest = mixed;
        self.writes += 1;
        self.bytes += data.len() as u64;
    }

    fn life(&self, host: HostId) -> u64 {
        self.lives.get(&host).copied().unwrap_or(0)
    }

    fn is_cut(&self, link: Link) -> bool {
        self.cut.contains_key(&link)
    }

    /// Ends the pipes of `host`, or only those to `peer`. The other side hears of it after the latency of the link.
    fn sever(&mut self, host: HostId, peer: Option<HostId>, woken: &mut Vec<Waker>) {
        let pipes = std::mem::take(&mut self.pipes);
        for (link, pipe) in pipes {
            let Some(strong) = pipe.upgrade() else { continue };
            let other = if link.0 == host { link.1 } else { link.0 };
            if (link.0 != host && link.1 != host) || peer.is_some_and(|peer| peer != other) {
                self.pipes.push((link, pipe));
                continue;
            }
            let at = Instant::now() + self.delay((host, other));
            let mut pipe = strong.lock();
            if link.0 == host {
                pipe.push(at, Item::Reset);
            } else {
                pipe.reader_gone.get_or_insert(at);
            }
            woken.extend(pipe.reader.take());
            woken.extend(pipe.writer.take());
        }
    }
}

/// The network that all hosts share.
#[derive(Clone)]
pub(super) struct SimNetwork(Arc<Mutex<State>>);

impl SimNetwork {
    /// A network whose jitter follows from `seed`. Must be made on a runtime with paused time.
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            start: Instant::now(),
            listeners: BTreeMap::new(),
            cut: BTreeMap::new(),
            latency: BTreeMap::new(),
            extra: BTreeMap::new(),
            silent: BTreeSet::new(),
            lives: BTreeMap::new(),
            stalled: Vec::new(),
            pipes: Vec::new(),
            rng: seed | 1,
            next_port: 10_000,
            digest: 0,
            writes: 0,
            bytes: 0,
        })))
    }

    /// The view of one host, in its present life.
    pub(super) fn host(&self, host: HostId) -> SimNet {
        let life = self.0.lock().life(host);
        SimNet { network: self.clone(), host, life }
    }

    /// Sets the one-way latency from `a` to `b` and back.
    pub(super) fn set_latency(&self, a: HostId, b: HostId, base: Duration, jitter: Duration) {
        let mut state = self.0.lock();
        state.latency.insert((a, b), (base, jitter));
        state.latency.insert((b, a), (base, jitter));
    }

    /// Stops everything on these links, until they are healed as often as cut.
    pub(super) fn cut(&self, links: &[Link]) {
        let mut state = self.0.lock();
        for link in links {
            *state.cut.entry(*link).or_default() += 1;
        }
    }

    /// Takes back one cut of each of these links.
    pub(super) fn heal(&self, links: &[Link]) {
        let wakers = {
            let mut state = self.0.lock();
            for link in links {
                if let Some(count) = state.cut.get_mut(link) {
                    *count -= 1;
                    if *count == 0 {
                        state.cut.remove(link);
                    }
                }
            }
            std::mem::take(&mut state.stalled)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Makes everything from `a` to `b` take that much longer from now on.
    pub(super) fn set_extra(&self, a: HostId, b: HostId, extra: Duration) {
        self.0.lock().extra.insert((a, b), extra);
    }

    /// Resets every connection between two hosts.
    pub(super) fn reset(&self, a: HostId, b: HostId) {
        let mut woken = Vec::new();
        self.0.lock().sever(a, Some(b), &mut woken);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Heals every cut and delay.
    pub(super) fn heal_all(&self) {
        let links: Vec<Link> = {
            let mut state = self.0.lock();
            state.extra.clear();
            state.cut.iter().flat_map(|(link, count)| std::iter::repeat_n(*link, *count)).collect()
        };
        self.heal(&links);
    }

    /// Ends a host's life: its listeners and streams are gone. The others are told, or hear nothing until it is
    /// revived.
    pub(super) fn crash(&self, host: HostId, told: bool) {
        let mut woken = Vec::new();
        {
            let mut state = self.0.lock();
            state.listeners.retain(|_, (owner, _)| *owner != host);
            *state.lives.entry(host).or_default() += 1;
            if told {
                state.sever(host, None, &mut woken);
            } else {
                state.silent.insert(host);
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// The machine is back on the network: it resets streams it does not know.
    pub(super) fn revive(&self, host: HostId) {
        let mut woken = Vec::new();
        {
            let mut state = self.0.lock();
            if state.silent.remove(&host) {
                state.sever(host, None, &mut woken);
            }
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// Writes and bytes so far, and a hash over all of them with their times.
    pub(super) fn digest(&self) -> (u64, u64, String) {
        let state = self.0.lock();
        (state.writes, state.bytes, format!("{:016x}", state.digest))
    }

    fn pipe(&self, link: Link) -> Arc<Mutex<Pipe>> {
        let pipe = Arc::new(Mutex::new(Pipe::default()));
        let mut state = self.0.lock();
        state.pipes.retain(|(_, pipe)| pipe.strong_count() > 0);
        state.pipes.push((link, Arc::downgrade(&pipe)));
        pipe
    }
}

enum Item {
    Data(Bytes),
    End,
    Reset,
}

/// One direction of a stream.
#[derive(Default)]
struct Pipe {
    /// What is under way; `End` and `Reset` stay in front for good.
    queue: VecDeque<(Instant, Item)>,
    bytes: usize,
    /// The writer said that no more comes.
    ended: bool,
    /// Nobody reads any more; the writer knows from then on.
    reader_gone: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn push(&mut self, at: Instant, item: Item) {
        if let Item::Data(data) = &item {
            self.bytes += data.len();
        }
        let at = self.queue.back().map_or(at, |(last, _)| at.max(*last));
        self.queue.push_back((at, item));
    }
}

/// One end of a stream.
struct SimStream {
    network: SimNetwork,
    local: HostId,
    remote: HostId,
    life: u64,
    incoming: Arc<Mutex<Pipe>>,
    outgoing: Arc<Mutex<Pipe>>,
    timer: Pin<Box<Sleep>>,
}

fn reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "simulated reset")
}

impl AsyncRead for SimStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let mut state = this.network.0.lock();
            let mut pipe = this.incoming.lock();
            pipe.reader = Some(cx.waker().clone());
            let Some((at, _)) = pipe.queue.front() else { return Poll::Pending };
            let at = *at;
            if state.is_cut((this.remote, this.local)) {
                state.stalled.retain(|waker| !waker.will_wake(cx.waker()));
                state.stalled.push(cx.waker().clone());
                return Poll::Pending;
            }
            if at > Instant::now() {
                drop((pipe, state));
                this.timer.as_mut().reset(at);
                match std::future::Future::poll(this.timer.as_mut(), cx) {
                    Poll::Ready(()) => continue,
                    Poll::Pending => return Poll::Pending,
                }
            }
            drop(state);
            match pipe.queue.pop_front() {
                Some((_, Item::Data(mut data))) => {
                    let take = data.len().min(out.remaining());
                    out.put_slice(&data[..take]);
                    pipe.bytes -= take;
                    if take < data.len() {
                        data.advance(take);
                        pipe.queue.push_front((at, Item::Data(data)));
                    }
                    if let Some(writer) = pipe.writer.take() {
                        writer.wake();
                    }
                    return Poll::Ready(Ok(()));
                }
                Some((at, Item::Reset)) => {
                    pipe.queue.push_front((at, Item::Reset));
                    return Poll::Ready(Err(reset()));
                }
                Some((at, Item::End)) => {
                    pipe.queue.push_front((at, Item::End));
                    return Poll::Ready(Ok(()));
                }
                None => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut state = this.network.0.lock();
        let mut pipe = this.outgoing.lock();
        if pipe.ended {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "written after shutdown")));
        }
        if let Some(at) = pipe.reader_gone {
            if Instant::now() >= at && !state.is_cut((this.remote, this.local)) {
                return Poll::Ready(Err(reset()));
            }
            // Sent into the void; the news of that is still under way.
            return Poll::Ready(Ok(data.len()));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if pipe.bytes >= IN_FLIGHT {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let random = state.random();
        let take =
            if random.is_multiple_of(8) { 1 + (random >> 8) as usize % data.len() } else { data.len() };
        let at = Instant::now() + state.delay((this.local, this.remote));
        state.note((this.local, this.remote), &data[..take]);
        pipe.push(at, Item::Data(Bytes::copy_from_slice(&data[..take])));
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(take))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().end();
        Poll::Ready(Ok(()))
    }
}

impl SimStream {
    fn end(&self) {
        let at = Instant::now() + self.network.0.lock().delay((self.local, self.remote));
        let mut pipe = self.outgoing.lock();
        if !pipe.ended {
            pipe.ended = true;
            pipe.push(at, Item::End);
            if let Some(reader) = pipe.reader.take() {
                reader.wake();
            }
        }
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        if self.network.0.lock().life(self.local) != self.life {
            // A crashed host sends no last words.
            return;
        }
        self.end();
        let at = Instant::now() + self.network.0.lock().delay((self.local, self.remote));
        let mut pipe = self.incoming.lock();
        pipe.reader_gone.get_or_insert(at);
        if let Some(writer) = pipe.writer.take() {
            writer.wake();
        }
    }
}

/// The network as one host sees it.
pub(super) struct SimNet {
    network: SimNetwork,
    host: HostId,
    life: u64,
}

fn host_of(addr: &str) -> Option<HostId> {
    addr.strip_prefix("host")?.split(':').next()?.parse().ok()
}

impl SimNet {
    fn stream(
        &self,
        (local, life): (HostId, u64),
        remote: HostId,
        incoming: &Arc<Mutex<Pipe>>,
        outgoing: &Arc<Mutex<Pipe>>,
    ) -> BoxStream {
        Box::new(SimStream {
            network: self.network.clone(),
            local,
            remote,
            life,
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        })
    }

    /// The round trip of a dial, unless no packet gets through now.
    fn reach(&self, remote: HostId) -> Option<Duration> {
        let mut state = self.network.0.lock();
        let (there, back) = ((self.host, remote), (remote, self.host));
        let lost = state.is_cut(there) || state.is_cut(back) || state.silent.contains(&remote);
        (!lost).then(|| state.delay(there) + state.delay(back))
    }
}

#[async_trait]
impl Net for SimNet {
    async fn dial(&self, addr: &str) -> io::Result<BoxStream> {
        let remote = host_of(addr).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("{addr} is not an address of the simulation"))
        })?;
        let give_up = Instant::now() + DIAL_TIMEOUT;
        let round_trip = loop {
            if let Some(round_trip) = self.reach(remote) {
                break round_trip;
            }
            if Instant::now() >= give_up {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {addr}")));
            }
            tokio::time::sleep(DIAL_RETRY).await;
        };
        tokio::time::sleep(round_trip).await;
        let (accept, life) = {
            let state = self.network.0.lock();
            let accept = state.listeners.get(addr).map(|(_, accept)| accept.clone());
            (accept, state.life(remote))
        };
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, format!("{addr} refuses"));
        let accept = accept.ok_or_else(refused)?;
        let to = self.network.pipe((self.host, remote));
        let from = self.network.pipe((remote, self.host));
        let theirs = self.stream((remote, life), self.host, &to, &from);
        let ours = self.stream((self.host, self.life), remote, &from, &to);
        accept.send((theirs, format!("host{}", self.host))).map_err(|_| refused())?;
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
        if host_of(&addr) != Some(self.host) {
            let text = format!("{addr} is not an address of host{}", self.host);
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, text));
        }
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
        match self.rx.lock().await.recv().await {
            Some(accepted) => Ok(accepted),
            // Only when the host has crashed: its tasks are being dropped.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> String {
        self.addr.clone()
    }
}
