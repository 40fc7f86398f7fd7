//! The network between the daemons of a cluster on one machine: every connection to a storage node passes here, so
//! that links can be cut, delayed and throttled for each pair and direction, and their bytes counted.
//!
//! Works with `hayloft dev --fronts`: storage nodes give out a port of ours as their address. Who connects is told
//! from /proc (see `owner`), so neither root nor kernel modules are needed.
//!
//! Fault model. A cut direction is *silent*: bytes are held, nothing is reset, no end of connection passes; when it is
//! healed they go on, as a network's retransmissions would. What differs from a real line: a connection attempt over a
//! cut link is accepted and then silent, where a real one gets no answer to its SYN; loss shows only as delay. A
//! process that dies closes its connections at once, as on a machine that goes on running.

use super::owner::owner;
use anyhow::{Context as _, Result};
use hayloft_common::env::{BoxStream, Env, Listener};
use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};

/// Most bytes of one piece.
const PIECE: usize = 64 << 10;
/// Pieces under way in one direction of a connection: bounds memory, and what a long link can carry.
const PIECES: usize = 256;

/// An entry of `fronts.json`, as `hayloft dev` writes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Front {
    pub name: String,
    /// Where we listen.
    pub front: String,
    /// Where the node listens.
    pub addr: String,
}

/// How bytes travel from one daemon to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Nothing comes through.
    pub cut: bool,
    /// One way.
    pub delay: Duration,
    /// Of all connections together; none: as fast as it goes.
    pub bytes_per_second: Option<u64>,
}

/// A direction: from, to.
type Way = (String, String);

struct Shared {
    env: Env,
    /// Where the daemons' directories are.
    dir: PathBuf,
    rules: watch::Sender<BTreeMap<Way, Rule>>,
    traffic: Mutex<BTreeMap<Way, Traffic>>,
}

#[derive(Clone, Copy, Default)]
struct Traffic {
    /// Bytes delivered.
    bytes: u64,
    /// Until when a throttled direction is busy.
    busy_until: Duration,
}

/// The links of a cluster; cheap to clone.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
    names: Arc<Vec<String>>,
}

impl Links {
    /// Listens for every front. `dir` is the directory of the cluster's daemons.
    pub async fn start(env: &Env, dir: &Path, fronts: &[Front]) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("cannot use {}", dir.display()))?;
        let shared = Arc::new(Shared {
            env: env.clone(),
            dir,
            rules: watch::Sender::new(BTreeMap::new()),
            traffic: Mutex::default(),
        });
        for front in fronts {
            let listener = env
                .net
                .listen(&front.front)
                .await
                .with_context(|| format!("cannot listen on {} for {}", front.front, front.name))?;
            env.spawn("front", shared.clone().serve(listener, front.clone()));
        }
        let names = fronts.iter().map(|front| front.name.clone()).collect();
        Ok(Self { shared, names: Arc::new(names) })
    }

    /// Sets how bytes travel from `from` to `to`, also on connections that are open.
    pub fn set(&self, from: &str, to: &str, rule: Rule) {
        self.shared.rules.send_modify(|rules| {
            rules.insert((from.to_owned(), to.to_owned()), rule);
        });
    }

    /// Cuts or heals both directions between two daemons.
    pub fn cut(&self, a: &str, b: &str, cut: bool) {
        for (from, to) in [(a, b), (b, a)] {
            self.shared.rules.send_modify(|rules| {
                rules.entry((from.to_owned(), to.to_owned())).or_default().cut = cut;
            });
        }
    }

    /// All links are clear again.
    pub fn heal(&self) {
        self.shared.rules.send_replace(BTreeMap::new());
    }

    /// Bytes delivered from each daemon to each other, so far.
    pub fn bytes(&self) -> BTreeMap<(String, String), u64> {
        self.shared.traffic.lock().iter().map(|(way, traffic)| (way.clone(), traffic.bytes)).collect()
    }

    /// Bytes that storage nodes sent one another so far: what they keep in step with, and nothing of the gateways'.
    pub fn bytes_between_nodes(&self) -> u64 {
        self.bytes_where(|from, to| self.is_node(from) && self.is_node(to))
    }

    /// Bytes that the storage node `name` exchanged with other storage nodes so far, both ways.
    pub fn bytes_of_node(&self, name: &str) -> u64 {
        self.bytes_where(|from, to| self.is_node(from) && self.is_node(to) && (from == name || to == name))
    }

    fn is_node(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    fn bytes_where(&self, counts: impl Fn(&str, &str) -> bool) -> u64 {
        let traffic = self.shared.traffic.lock();
        traffic.iter().filter(|((from, to), _)| counts(from, to)).map(|(_, traffic)| traffic.bytes).sum()
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, listener: Box<dyn Listener>, front: Front) {
        let Some(port) = port_of(&front.front) else { return };
        loop {
            // Too many open files, or a connection that is gone already: others may still come.
            let Ok((stream, peer)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let Some(from) = port_of(&peer) else { continue };
            let (shared, front) = (self.clone(), front.clone());
            self.env.spawn("link", async move {
                let dir = shared.dir.clone();
                // A caller that nobody owns any more is dead: its connection goes as `stream` does.
                let caller = shared.env.run_blocking(move || owner(&dir, from, port)).await;
                if let Ok(Some(caller)) = caller {
                    shared.join(stream, caller, front).await;
                }
            });
        }
    }

    /// Passes a connection of `caller` on, until either side ends it.
    async fn join(self: Arc<Self>, stream: BoxStream, caller: String, front: Front) {
        let there = (caller.clone(), front.name.clone());
        let back = (front.name.clone(), caller);
        // SYN and its answer take their way too.
        let round_trip = self.rule(&there).delay + self.rule(&back).delay;
        self.clear(&there).await;
        self.clear(&back).await;
        tokio::time::sleep(round_trip).await;
        let Ok(target) = self.env.net.dial(&front.addr).await else { return };
        let (from_caller, to_caller) = tokio::io::split(stream);
        let (from_node, to_node) = tokio::io::split(target);
        let forth = self.clone().pump(there, from_caller, to_node);
        let return_way = self.clone().pump(back, from_node, to_caller);
        futures::future::join(forth, return_way).await;
    }

    fn rule(&self, way: &Way) -> Rule {
        self.rules.borrow().get(way).copied().unwrap_or_default()
    }

    /// Waits while `way` is cut.
    async fn clear(&self, way: &Way) {
        let mut rules = self.rules.subscribe();
        // The sender is ours: it is never gone.
        let _ = rules.wait_for(|rules| !rules.get(way).is_some_and(|rule| rule.cut)).await;
    }

    /// Carries bytes one way until they end.
    async fn pump(
        self: Arc<Self>,
        way: Way,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) {
        let (send, mut receive) = mpsc::channel::<(Duration, Vec<u8>)>(PIECES);
        let reader = async {
            let send = send;
            let mut buffer = vec![0; PIECE];
            while let Ok(count @ 1..) = from.read(&mut buffer).await {
                let due = self.due(&way, count as u64);
                if send.send((due, buffer[..count].to_vec())).await.is_err() {
                    return;
                }
            }
        };
        let writer = async {
            while let Some((due, piece)) = receive.recv().await {
                let wait = due.saturating_sub(self.env.now());
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                self.clear(&way).await;
                if to.write_all(&piece).await.is_err() {
                    return;
                }
                self.traffic.lock().entry(way.clone()).or_default().bytes += piece.len() as u64;
            }
            // The end travels like bytes do.
            self.clear(&way).await;
            let _ = to.shutdown().await;
        };
        // A writer that fails ends the reader; a reader that ends lets the writer deliver the rest.
        tokio::pin!(reader, writer);
        tokio::select! {
            biased;
            () = &mut writer => {}
            () = &mut reader => writer.await,
        }
    }

    /// When a piece of `size` bytes that is sent now arrives.
    fn due(&self, way: &Way, size: u64) -> Duration {
        let (rule, now) = (self.rule(way), self.env.now());
        let Some(rate) = rule.bytes_per_second else { return now + rule.delay };
        let mut traffic = self.traffic.lock();
        let busy = &mut traffic.entry(way.clone()).or_default().busy_until;
        *busy = (*busy).max(now) + Duration::from_secs_f64(size as f64 / rate.max(1) as f64);
        *busy + rule.delay
    }
}

fn port_of(address: &str) -> Option<u16> {
    address.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ends joined by the links: the caller `a`, and node `b`, which echoes.
    async fn echo() -> (Links, BoxStream) {
        let env = Env::real();
        let node = env.net.listen("127.0.0.1:0").await.unwrap();
        let addr = node.local_addr();
        env.spawn("echo", async move {
            let (stream, _) = node.accept().await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
        let dir = tempfile::tempdir().unwrap();
        let links = Links::start(&env, dir.path(), &[]).await.unwrap();
        let links = Links { names: Arc::new(vec!["a".into(), "b".into()]), ..links };
        let (near, far) = tokio::io::duplex(1 << 20);
        let front = Front { name: "b".into(), front: String::new(), addr };
        env.spawn("join", links.shared.clone().join(Box::new(far), "a".into(), front));
        (links, Box::new(near))
    }

    async fn answers(stream: &mut BoxStream, within: Duration) -> bool {
        stream.write_all(b"hello").await.unwrap();
        let mut answer = [0; 5];
        tokio::time::timeout(within, stream.read_exact(&mut answer)).await.is_ok()
    }

    #[tokio::test]
    async fn bytes_pass_are_held_while_either_way_is_cut_and_go_on_afterwards() {
        let (links, mut stream) = echo().await;
        assert!(answers(&mut stream, Duration::from_secs(10)).await);
        assert_eq!(links.bytes_between_nodes(), 10);
        for (from, to) in [("a", "b"), ("b", "a")] {
            links.set(from, to, Rule { cut: true, ..Rule::default() });
            assert!(!answers(&mut stream, Duration::from_millis(100)).await);
            links.heal();
            let mut held = [0; 5];
            stream.read_exact(&mut held).await.unwrap();
            assert_eq!(&held, b"hello");
        }
        assert_eq!(
            (links.bytes_between_nodes(), links.bytes_of_node("b"), links.bytes_of_node("c")),
            (30, 30, 0)
        );
    }

    #[tokio::test]
    async fn a_connection_begun_over_a_cut_link_waits_and_its_end_is_passed_on() {
        let (links, mut stream) = echo().await;
        links.cut("a", "b", true);
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        links.cut("a", "b", false);
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"hello");
    }

    #[tokio::test]
    async fn throttled_pieces_queue_behind_one_another() {
        let (links, _stream) = echo().await;
        let way = ("a".to_owned(), "b".to_owned());
        let delay = Duration::from_millis(100);
        links.set("a", "b", Rule { cut: false, delay, bytes_per_second: Some(1000) });
        let before = links.shared.env.now();
        assert!(links.shared.due(&way, 500) >= before + delay + Duration::from_millis(500));
        assert!(links.shared.due(&way, 500) >= before + delay + Duration::from_secs(1));
        assert_eq!(links.shared.due(&("b".into(), "a".into()), 500).saturating_sub(before).as_secs(), 0);
    }
}
