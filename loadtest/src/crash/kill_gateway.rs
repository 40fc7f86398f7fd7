//! A gateway is killed in the middle of a large upload: the old object is intact, and a second gateway serves at
//! once.

use super::CrashArgs;
use crate::client::{Content, Payload};
use crate::cluster::{Daemon, Role};
use crate::history::Outcome;
use crate::report::duration_text;
use crate::testbed::{Testbed, verify};
use crate::workload::{Keys, Observed, observe, together};
use anyhow::{Context as _, Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(super) async fn run(setup: &mut Testbed, args: &CrashArgs) -> Result<String> {
    setup.gateways(2).await?;
    let (site, prefix) = setup.site("kill-gateway");
    let keys = Keys::new(&prefix, 1);
    let key = keys.name(0);
    let first = Daemon { role: Role::Gateway, index: 0 };
    let through_second = site.through(setup.s3.pinned(1));
    let (old, outcome) = through_second.write(&key, 5_000_000, None).await;
    if outcome != Outcome::Acked {
        bail!("the old object could not be written: {:?}", site.failures.lock());
    }

    let size = args.transfer_mib << 20;
    let sent = Arc::new(AtomicU64::new(0));
    let upload = {
        let (s3, key, sent) = (setup.s3.pinned(0), key.clone(), Arc::clone(&sent));
        // Generation 0 is never used by the history: seen in a read, it is a violation.
        let content = Content::of(&key, 0, size);
        async move {
            let metadata = [("hayloft-generation", "0")];
            let result =
                s3.put_counted(&key, Payload::whole(content), &metadata, Some(Arc::clone(&sent))).await;
            // However it ended: the killer must not wait for more bytes.
            sent.fetch_max(size, Ordering::Relaxed);
            result
        }
    };
    let env = setup.env.clone();
    let uploading = together(&env, "upload", [upload]);
    let killing = async {
        while sent.load(Ordering::Relaxed) < size / 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        setup.processes.kill(&[first]).await
    };
    let (uploaded, killed) = futures::future::join(uploading, killing).await;
    killed?;
    match uploaded.into_iter().next().flatten().context("the upload panicked")? {
        Ok(_) => bail!("the upload succeeded although its gateway was killed: make it larger"),
        Err(error) => println!("  upload broken after at least {} bytes: {error}", size / 2),
    }

    let start = site.env.now();
    if observe(&through_second, &key).await != Observed::State(old) {
        bail!("the old object is not intact: {:?}, {:?}", site.violations.lock(), site.failures.lock());
    }
    let took = site.env.now().saturating_sub(start);
    through_second.write(&key, 1_000_000, None).await;
    let failures = through_second.failures.lock().clone();
    if !failures.is_empty() {
        bail!("the second gateway failed: {failures:?}");
    }
    setup.restart(&[first], &[])?;
    setup.healthy().await?;
    verify(setup, &site, &keys, args.monotonic).await?;
    Ok(format!("old object intact, read through the second gateway in {}", duration_text(took)))
}
