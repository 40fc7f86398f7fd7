//! The workload: clients that call gateways' domain API on a few shared keys, and record what they did.
//!
//! Every write has a generation of its own, which the object carries with the name of its content, so that a reader
//! can check every byte (a copy has another generation than its source and the same content). A request runs as a
//! task of its gateway: it dies with it, and then its outcome is unknown.

use super::knobs::rng;
use super::liveness;
use super::world::{Front, World};
use crate::check::{self, Fault, Violation};
use crate::client::Content;
use crate::history::{Generation, History, Outcome, State};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use hayloft_common::limits::MIN_PART_SIZE;
use hayloft_gateway::domain::{
    Body, BodyChecks, Bucket, CompleteUpload, CopyObject, CreateUpload, DomainError, ListRequest, ListStart,
    Listed, NamedPart, ObjectHead, OpenObject, PutObject, UploadRef,
};
use parking_lot::Mutex;
use rand::RngExt as _;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The only bucket.
pub(super) const BUCKET: &str = "simulated";
/// A client gives up on a request after this long, as HTTP clients do.
const PATIENCE: Duration = Duration::from_mins(1);
/// Header that names an object's generation and content.
const NAME: &str = "x-amz-meta-name";

/// Why a request gave no result.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// The gateway is down: nothing was sent.
    Down,
    /// The gateway crashed meanwhile, or did not answer in time.
    Lost,
    Domain(DomainError),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Down => write!(f, "gateway is down"),
            Self::Lost => write!(f, "no answer"),
            Self::Domain(error) => write!(f, "{error}"),
        }
    }
}

/// Which bytes an object has: those of a generation of a key, maybe another's (after a copy).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    generation: Generation,
    origin: (String, Generation),
    len: u64,
}

impl Named {
    fn fresh(key: &str, generation: Generation, len: u64) -> Self {
        Self { generation, origin: (key.to_owned(), generation), len }
    }

    /// One of a few contents that other objects have too, so that they share blocks.
    fn alike(generation: Generation, choice: u64, block_size: u64) -> Self {
        let len = [block_size, 2 * block_size, 3 * block_size + 100][choice as usize % 3];
        Self { generation, origin: ("alike".into(), choice % 3), len }
    }

    fn state(&self) -> State {
        State::Present { generation: self.generation, len: self.len }
    }

    fn headers(&self) -> Vec<(String, String)> {
        vec![(NAME.into(), format!("{} {} {}", self.generation, self.origin.1, self.origin.0))]
    }

    fn of(head: &ObjectHead) -> Option<Self> {
        let (_, text) = head.headers().iter().find(|(name, _)| name == NAME)?;
        let mut words = text.splitn(3, ' ');
        let generation = words.next()?.parse().ok()?;
        let origin = words.next()?.parse().ok()?;
        Some(Self { generation, origin: (words.next()?.to_owned(), origin), len: head.version.size })
    }

    /// A third of all contents compress, the others do not.
    fn fill(&self, offset: u64, out: &mut [u8]) {
        Content::of(&self.origin.0, self.origin.1, self.len).fill(offset, out);
        if self.origin.1.is_multiple_of(3) {
            for byte in out {
                *byte &= 3;
            }
        }
    }

    fn bytes(&self, range: Range<u64>) -> Bytes {
        let mut out = vec![0; (range.end - range.start) as usize];
        self.fill(range.start, &mut out);
        out.into()
    }
}

/// What all clients share; cheap to clone.
#[derive(Clone)]
pub(super) struct Site {
    pub(super) world: World,
    pub(super) history: Arc<History>,
    pub(super) violations: Arc<Mutex<Vec<Violation>>>,
    /// Results by operation and kind.
    pub(super) counts: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Site {
    pub(super) fn new(world: World) -> Self {
        let history = Arc::new(History::new());
        Self { world, history, violations: Arc::default(), counts: Arc::default() }
    }

    fn now(&self) -> Duration {
        self.world.log.now()
    }

    /// The names of all keys, in order.
    pub(super) fn keys(&self) -> Vec<String> {
        let name = |n| match n % 3 {
            0 => format!("plain{n}"),
            1 => format!("a/{n}"),
            _ => format!("a/b/{n}"),
        };
        let mut keys: Vec<String> = (0..self.world.knobs.keys).map(name).collect();
        keys.sort();
        keys
    }

    fn violated(&self, key: &str, what: String) {
        self.world.log.event("t", format!("[{key}] VIOLATION: {what}"));
        self.violations.lock().push(Violation { key: key.to_owned(), what: Fault::Content(what) });
    }

    /// Runs a request, which moves that many bytes, as a task of its gateway.
    async fn request<T: Send + 'static>(
        &self,
        (operation, bytes): (&str, u64),
        gateway: usize,
        work: impl FnOnce(Front) -> BoxFuture<'static, Result<T, DomainError>>,
    ) -> Result<T, Failure> {
        let Some(front) = self.world.front(gateway) else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            return Err(Failure::Down);
        };
        let start = self.now();
        let (done, result) = tokio::sync::oneshot::channel();
        let work = work(front.clone());
        let task = front.env.spawn("request", async move {
            // A client that gave up needs no answer.
            let _ = done.send(work.await);
        });
        let result = match tokio::time::timeout(PATIENCE, result).await {
            Ok(Ok(result)) => result.map_err(Failure::Domain),
            Ok(Err(_)) => Err(Failure::Lost),
            Err(_) => {
                task.abort();
                Err(Failure::Lost)
            }
        };
        let error = match &result {
            Err(Failure::Domain(error)) => Some(error),
            _ => None,
        };
        liveness::judge(&self.world, gateway, operation, bytes, self.now().saturating_sub(start), error);
        result
    }

    fn count<T>(&self, operation: &str, result: &Result<T, Failure>) {
        let kind = match result {
            Ok(_) => "ok".to_owned(),
            Err(Failure::Domain(DomainError::NoSuchKey { .. })) => "no such key".to_owned(),
            Err(Failure::Domain(error)) => {
                let debug = format!("{error:?}");
                debug.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
            }
            Err(failure) => failure.to_string(),
        };
        *self.counts.lock().entry(format!("{operation}: {kind}")).or_default() += 1;
        if let Err(Failure::Domain(error @ (DomainError::NoSuchBucket { .. } | DomainError::Internal(_)))) =
            result
        {
            self.world.fault(format!("{operation} answered {error}"));
        }
    }

    /// A write: recorded before and after. Whatever fails may have happened, except what never was sent.
    async fn write(
        &self,
        who: &str,
        key: &str,
        state: State,
        operation: &str,
        result: impl Future<Output = Result<(), Failure>>,
    ) -> bool {
        let log = &self.world.log;
        log.event(who, format!("{operation} [{key}] {} ...", show(state)));
        let pending = self.history.begin(key, state, self.now());
        let result = result.await;
        self.count(operation, &result);
        let outcome = match &result {
            Ok(()) => Outcome::Acked,
            Err(Failure::Down) => Outcome::Refused,
            Err(_) => Outcome::Unknown,
        };
        self.history.end(pending, outcome, self.now());
        match &result {
            Ok(()) => log.event(who, format!("{operation} [{key}] {} acknowledged", show(state))),
            Err(failure) => {
                log.event(who, format!("{operation} [{key}] {} {outcome:?}: {failure}", show(state)));
            }
        }
        result.is_ok()
    }

    pub(super) async fn put(&self, who: &str, gateway: usize, key: &str, len: u64, cut: u64) -> bool {
        let named = Named::fresh(key, self.history.generation(), len);
        self.put_named(who, gateway, key, named, cut).await
    }

    /// Puts a content that other keys have too.
    pub(super) async fn put_alike(&self, who: &str, gateway: usize, key: &str, choice: u64) -> bool {
        let named =
            Named::alike(self.history.generation(), choice, self.world.knobs.domain.block_size as u64);
        self.put_named(who, gateway, key, named, 0).await
    }

    async fn put_named(&self, who: &str, gateway: usize, key: &str, named: Named, cut: u64) -> bool {
        let len = named.len;
        let (state, name) = (named.state(), key.to_owned());
        let result = self.request(("put", len), gateway, move |front| {
            Box::pin(async move {
                let bucket = front.gateway.resolve(BUCKET).await?;
                let checks =
                    BodyChecks { length: (!cut.is_multiple_of(2)).then_some(len), ..BodyChecks::default() };
                let put = PutObject { bucket, key: name, headers: named.headers(), checks };
                let body = body(&named, 0..named.len, cut);
                front.gateway.put(put, body).await.map(drop)
            })
        });
        self.write(who, key, state, "put", result).await
    }

    pub(super) async fn delete(&self, who: &str, gateway: usize, key: &str, many: bool) -> bool {
        let name = key.to_owned();
        let result = self.request(("delete", 0), gateway, move |front| {
            Box::pin(async move {
                let bucket = front.gateway.resolve(BUCKET).await?;
                if many {
                    let outcomes = front.gateway.delete_many(&bucket, vec![name]).await;
                    return outcomes.into_iter().try_for_each(|outcome| outcome.result);
                }
                front.gateway.delete(&bucket, &name).await
            })
        });
        self.write(who, key, State::Absent, "delete", result).await
    }

    /// True also if there is nothing to copy.
    pub(super) async fn copy(&self, who: &str, gateway: usize, from: &str, to: &str) -> bool {
        let source = from.to_owned();
        let opened = self.request(("head", 0), gateway, move |front| {
            Box::pin(async move {
                let bucket = front.gateway.resolve(BUCKET).await?;
                front.gateway.head(&bucket, &source, None).await
            })
        });
        let opened = opened.await;
        self.count("copy's source", &opened);
        let head = match opened {
            Ok(head) => head,
            Err(failure) => return matches!(failure, Failure::Domain(DomainError::NoSuchKey { .. })),
        };
        let Some(source) = Named::of(&head) else {
            self.violated(from, "an object without its name".into());
            return false;
        };
        let named = Named { generation: self.history.generation(), ..source };
        let (state, name, headers) = (named.state(), to.to_owned(), named.headers());
        let result = self.request(("copy", named.len), gateway, move |front| {
            Box::pin(async move {
                let bucket = front.gateway.resolve(BUCKET).await?;
                let copy = CopyObject { bucket, key: name, headers: Some(headers), checksum: None };
                front.gateway.copy(&head, copy).await.map(drop)
            })
        });
        self.write(who, to, state, "copy", result).await
    }

    /// A multipart upload; its parts go through several gateways. A complete without an answer is tried again.
    pub(super) async fn multipart(&self, who: &str, random: &mut StdRng, key: &str, len: u64) -> bool {
        let gateways = self.world.knobs.gateways.len();
        let named = Named::fresh(key, self.history.generation(), len);
        let first = random.random_range(0..gateways);
        let Some(target) = self.create_upload(first, key, named.headers()).await else { return false };
        let mut parts = Vec::new();
        let mut offset = 0;
        while offset < len || parts.is_empty() {
            let end = (offset + MIN_PART_SIZE).min(len);
            let number = parts.len() as u32 + 1;
            let again = random.random_bool(0.2);
            if again {
                // A first version of the part that the second replaces.
                let junk = Named::fresh("junk", named.generation, end - offset);
                let part = self.part(random.random_range(0..gateways), &target, number, &junk, 0..junk.len);
                if part.await.is_none() {
                    return false;
                }
            }
            let gateway = random.random_range(0..gateways);
            let Some(part) = self.part(gateway, &target, number, &named, offset..end).await else {
                return false;
            };
            parts.push(part);
            offset = end;
        }
        // All tries are one write: whichever takes effect, the others find it done.
        let result = async {
            let mut unknown = None;
            for _ in 0..3 {
                let complete = CompleteUpload {
                    target: target.clone(),
                    parts: parts.clone(),
                    checksum: None,
                    size: Some(len),
                };
                let gateway = random.random_range(0..gateways);
                let result = self.request(("complete", len), gateway, move |front| {
                    Box::pin(async move { front.gateway.complete_upload(complete).await.map(drop) })
                });
                match result.await {
                    Err(Failure::Down) if unknown.is_none() => {}
                    Err(failure) => unknown = Some(failure),
                    Ok(()) => return Ok(()),
                }
            }
            Err(unknown.unwrap_or(Failure::Down))
        };
        self.write(who, key, named.state(), "complete", result).await
    }

    /// An upload with a part that is never completed: aborted, or left alone.
    pub(super) async fn abandon(&self, who: &str, random: &mut StdRng, gateway: usize, key: &str, len: u64) {
        let named = Named::fresh("abandoned", self.history.generation(), len);
        let Some(target) = self.create_upload(gateway, key, named.headers()).await else { return };
        self.part(gateway, &target, 1, &named, 0..len).await;
        self.world.log.event(who, format!("upload [{key}] #{} is abandoned", named.generation));
        if random.random_bool(0.5) {
            let aborted = self.request(("abort", 0), gateway, move |front| {
                Box::pin(async move { front.gateway.abort_upload(&target).await })
            });
            self.count("abort", &aborted.await);
        }
    }

    async fn create_upload(
        &self,
        gateway: usize,
        key: &str,
        headers: Vec<(String, String)>,
    ) -> Option<UploadRef> {
        let name = key.to_owned();
        let created = self.request(("create upload", 0), gateway, move |front| {
            Box::pin(async move {
                let bucket = front.gateway.resolve(BUCKET).await?;
                let target =
                    CreateUpload { bucket: bucket.clone(), key: name.clone(), headers, checksum: None };
                let upload = front.gateway.create_upload(target).await?;
                Ok(UploadRef { bucket, key: name, upload })
            })
        });
        let created = created.await;
        self.count("create upload", &created);
        created.ok()
    }

    /// Every kind of write once through a gateway, on keys of their own. What failed.
    pub(super) async fn every_write(&self, gateway: usize) -> Vec<&'static str> {
        let (block, inline) = {
            let domain = &self.world.knobs.domain;
            (domain.block_size as u64, domain.inline_max as u64)
        };
        let random = &mut rng(self.world.seed(), "every write");
        let mut failed = Vec::new();
        let mut check = |name, good: bool| failed.extend((!good).then_some(name));
        check("put of a small object", self.put("t", gateway, "probe/small", inline, 0).await);
        check("put of blocks", self.put("t", gateway, "probe/blocks", 9 * block + 1, 0).await);
        check("multipart upload", self.multipart("t", random, "probe/parts", 3 * block).await);
        check("copy", self.copy("t", gateway, "probe/blocks", "probe/copy").await);
        check("delete", self.delete("t", gateway, "probe/parts", false).await);
        failed
    }

    async fn part(
        &self,
        gateway: usize,
        target: &UploadRef,
        number: u32,
        named: &Named,
        range: Range<u64>,
    ) -> Option<NamedPart> {
        let (target, named) = (target.clone(), named.clone());
        let result = self.request(("put part", range.end - range.start), gateway, move |front| {
            Box::pin(async move {
                let body = body(&named, range, 3);
                front.gateway.put_part(target, number, BodyChecks::default(), body).await
            })
        });
        let result = result.await;
        self.count("put part", &result);
        let done = result.ok()?;
        Some(NamedPart { number, etag: done.etag, checksum: None })
    }

    /// Reads an object, or from `part` of it on, and checks every byte. The answer, if there was one.
    pub(super) async fn get(
        &self,
        who: &str,
        gateway: usize,
        key: &str,
        part: Option<f64>,
    ) -> Result<State, Failure> {
        let start = self.now();
        let name = key.to_owned();
        let opened = self.request(("get", 0), gateway, move |front| {
            Box::pin(async move {
                let bucket = front.gateway.resolve(BUCKET).await?;
                let first = part.map_or(Some(0), |_| None);
                front.gateway.open_at(&bucket, &name, None, first).await
            })
        });
        let (opened, end) = (opened.await, self.now());
        self.count("get", &opened);
        let object = match opened {
            Ok(object) => object,
            Err(Failure::Domain(DomainError::NoSuchKey { .. })) => {
                self.seen(who, key, State::Absent, start, end);
                return Ok(State::Absent);
            }
            Err(failure) => {
                self.world.log.event(who, format!("get [{key}] failed: {failure}"));
                return Err(failure);
            }
        };
        let Some(named) = Named::of(&object.head) else {
            self.violated(key, "an object without its name".into());
            return Err(Failure::Lost);
        };
        self.seen(who, key, named.state(), start, end);
        let from = part.map_or(0, |part| (named.len as f64 * part) as u64);
        let read = self.request(("get's body", named.len), gateway, {
            let named = named.clone();
            move |_| Box::pin(async move { read(object, &named, from).await })
        });
        let read = read.await;
        self.count("get's body", &read);
        match read {
            Ok(None) => Ok(named.state()),
            Ok(Some(what)) => {
                self.violated(key, format!("{what}; the object claims to be {named:?}"));
                Err(Failure::Lost)
            }
            Err(failure) => {
                self.world.log.event(who, format!("get [{key}] body failed: {failure}"));
                Err(failure)
            }
        }
    }

    fn seen(&self, who: &str, key: &str, state: State, start: Duration, end: Duration) {
        self.world
            .log
            .event(who, format!("get [{key}] since {:.3} gave {}", start.as_secs_f64(), show(state)));
        self.history.read(key, state, start, end);
    }

    /// Lists all keys in pages of `page`, and judges the result.
    pub(super) async fn list(&self, who: &str, gateway: usize, page: usize) -> Result<(), Failure> {
        let start = self.now();
        let result = self.request(("list", 0), gateway, move |front| Box::pin(list(front, page, None))).await;
        self.count("list", &result);
        let listed = result.inspect_err(|failure| {
            self.world.log.event(who, format!("list failed: {failure}"));
        })?;
        let names: Vec<&str> = listed.iter().map(|(name, _)| name.as_str()).collect();
        self.world.log.event(who, format!("list since {:.3} gave {}", start.as_secs_f64(), names.join(" ")));
        let found = check::listing(&self.history.snapshot(), &listed, start, self.now());
        for violation in &found {
            self.world.log.event("t", format!("[{}] VIOLATION: {violation}", violation.key));
        }
        self.violations.lock().extend(found);
        Ok(())
    }

    /// Lists with the delimiter `/`: a prefix is there if and only if a key below it is.
    pub(super) async fn list_rolled_up(&self, who: &str, gateway: usize) -> Result<(), Failure> {
        let start = self.now();
        let result = self
            .request(("list rolled up", 0), gateway, |front| Box::pin(list(front, 2, Some("/".into()))))
            .await;
        self.count("list rolled up", &result);
        let listed = result.inspect_err(|failure| {
            self.world.log.event(who, format!("list rolled up failed: {failure}"));
        })?;
        let has = listed.iter().any(|(name, _)| name == "a/");
        self.world.log.event(who, format!("list rolled up since {:.3}: a/ {has}", start.as_secs_f64()));
        let end = self.now();
        let histories = self.history.snapshot();
        let below = histories.iter().filter(|(key, _)| key.starts_with("a/"));
        let states: Vec<Vec<State>> = below.map(|(_, key)| check::states_at(key, start, end)).collect();
        let may_be = states.iter().flatten().any(|state| *state != State::Absent);
        let must_be = states.iter().any(|states| !states.contains(&State::Absent));
        if (has && !may_be) || (!has && must_be) {
            self.violated("a/", format!("rolled up: {has}, may be there: {may_be}, must be: {must_be}"));
        }
        Ok(())
    }
}

fn show(state: State) -> String {
    match state {
        State::Absent => "absent".into(),
        State::Present { generation, len } => format!("#{generation} of {len} bytes"),
    }
}

/// The bytes in pieces, as a slow client sends them.
fn body(named: &Named, range: Range<u64>, cut: u64) -> Body {
    let piece = (range.end - range.start) / (cut % 4 + 1) + 1;
    let named = named.clone();
    let steps = range.clone().step_by(piece as usize);
    Box::pin(futures::stream::iter(steps).then(move |at| {
        let bytes = named.bytes(at..(at + piece).min(range.end));
        async move {
            if cut > 100 {
                tokio::time::sleep(Duration::from_millis(cut)).await;
            }
            Ok(bytes)
        }
    }))
}

/// Reads from `from` on; what is wrong with the bytes, if anything.
async fn read(object: OpenObject, named: &Named, from: u64) -> Result<Option<String>, DomainError> {
    let mut stream = object.read(from..u64::MAX);
    let mut at = from;
    while let Some(bytes) = stream.next().await {
        let bytes = bytes?;
        let end = at + bytes.len() as u64;
        if end > named.len {
            return Ok(Some(format!("more than {} bytes", named.len)));
        }
        if named.bytes(at..end) != bytes {
            return Ok(Some(format!("wrong bytes between {at} and {end}")));
        }
        at = end;
    }
    Ok((at != named.len).then(|| format!("ends at {at} of {} bytes", named.len)))
}

async fn list(
    front: Front,
    page: usize,
    delimiter: Option<String>,
) -> Result<Vec<check::ListedSize>, DomainError> {
    let bucket: Arc<Bucket> = front.gateway.resolve(BUCKET).await?;
    let mut start = ListStart::Beginning;
    let mut listed = Vec::new();
    loop {
        let request =
            ListRequest { start, max: page, delimiter: delimiter.clone(), ..ListRequest::default() };
        let answer = front.gateway.list(&bucket, request).await?;
        listed.extend(answer.entries.into_iter().map(|entry| match entry {
            Listed::Entry(entry) => (entry.key, entry.version.size),
            Listed::Prefix(prefix) => (prefix, 0),
        }));
        match answer.next {
            Some(token) => start = ListStart::Token(token),
            None => return Ok(listed),
        }
    }
}
