//! The cases: what is put, read, listed and deleted, in which order and how often.

use super::BenchArgs;
use super::measure::{Meter, Until};
use crate::client::{Content, Error, Payload, S3};
use crate::report::{Report, bytes_text};
use crate::workload::together;
use anyhow::{Result, bail};
use std::time::Duration;

const SMALL: [u64; 2] = [1 << 10, 64 << 10];

/// Objects of one size under one prefix, made from their number alone.
#[derive(Clone)]
struct Set {
    prefix: String,
    size: u64,
}

impl Set {
    fn key(&self, index: u64) -> String {
        format!("{}{index:08}", self.prefix)
    }

    fn content(&self, index: u64) -> Content {
        Content::of(&self.key(index), 1, self.size)
    }

    async fn put(&self, s3: &S3, index: u64) -> Result<u64, Error> {
        s3.put(&self.key(index), Payload::whole(self.content(index)), &[]).await?;
        Ok(self.size)
    }

    async fn get(&self, s3: &S3, index: u64, verify: bool) -> Result<u64, Error> {
        let content = verify.then(|| self.content(index));
        let delivery = s3.get(&self.key(index), |_| Ok(content)).await?;
        if delivery.bytes != self.size {
            return Err(Error::WrongContent(format!("{} bytes instead of {}", delivery.bytes, self.size)));
        }
        Ok(delivery.bytes)
    }

    /// Makes sure that objects `from..to` are there, without measuring.
    async fn fill(&self, meter: &Meter, from: u64, to: u64) -> Result<()> {
        let lanes = (0..32u64).map(|lane| {
            let (set, s3) = (self.clone(), meter.s3.clone());
            async move {
                let mut index = from + lane;
                while index < to {
                    set.put(&s3, index).await?;
                    index += 32;
                }
                Ok::<_, Error>(())
            }
        });
        for done in together(&meter.env, "fill", lanes).await {
            match done {
                Some(result) => result?,
                None => bail!("a client of the benchmark panicked"),
            }
        }
        Ok(())
    }

    /// Deletes objects `0..count` in requests of 1000.
    async fn clear(&self, meter: &Meter, count: u64) -> Result<()> {
        for from in (0..count).step_by(1000) {
            let keys: Vec<_> = (from..count.min(from + 1000)).map(|index| self.key(index)).collect();
            meter.s3.delete_objects(&keys).await?;
        }
        Ok(())
    }
}

/// A number below `count`, in an order that looks random.
fn scattered(index: u64, count: u64) -> u64 {
    (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % count.max(1)
}

/// Runs every case that was asked for and appends it to the report.
pub(super) async fn all(meter: &Meter, args: &BenchArgs, report: &mut Report) -> Result<()> {
    // Objects of an earlier run with the same names would be overwritten, which is another operation.
    let base = format!("bench-{:x}/", meter.env.random_u64());
    for size in SMALL {
        small(meter, args, report, &base, size).await?;
    }
    throughput(meter, args, report, &base).await?;
    listing(meter, args, report, &base).await
}

fn timed(args: &BenchArgs, at_most: u64) -> Until {
    Until::Time {
        warm_up: Duration::from_secs_f64(args.warm_up.max(0.0)),
        measured: Duration::from_secs_f64(args.seconds),
        at_most,
    }
}

async fn small(meter: &Meter, args: &BenchArgs, report: &mut Report, base: &str, size: u64) -> Result<()> {
    let text = bytes_text(size);
    let name = |operation: &str, clients: usize| format!("{operation}/{text}/c{clients}");
    let wanted =
        |operation: &str| args.concurrency.iter().any(|clients| args.wants(&name(operation, *clients)));
    if !["put", "get", "head", "delete"].iter().any(|operation| wanted(operation)) {
        return Ok(());
    }
    // What each number of clients wrote is read back by it, and deleted by it at the end.
    for &clients in &args.concurrency {
        let set = Set { prefix: format!("{base}{text}/c{clients}/"), size };
        let mut written = 0;
        if args.wants(&name("put", clients)) {
            let each = set.clone();
            let put = move |s3: S3, index| {
                let set = each.clone();
                async move { set.put(&s3, index).await }
            };
            let (case, begun) = meter.run(&name("put", clients), clients, timed(args, u64::MAX), put).await?;
            report.cases.push(case);
            written = begun;
        }
        if written < 1000
            && ["get", "head", "delete"].iter().any(|operation| args.wants(&name(operation, clients)))
        {
            set.fill(meter, written, 1000).await?;
            written = 1000;
        }
        if args.wants(&name("get", clients)) {
            let (each, verify) = (set.clone(), args.verify);
            let get = move |s3: S3, index| {
                let set = each.clone();
                async move { set.get(&s3, scattered(index, written), verify).await }
            };
            report.cases.push(meter.run(&name("get", clients), clients, timed(args, u64::MAX), get).await?.0);
        }
        if args.wants(&name("head", clients)) {
            let each = set.clone();
            let head = move |s3: S3, index| {
                let key = each.key(scattered(index, written));
                async move { s3.head(&key).await.map(|_| 0) }
            };
            report
                .cases
                .push(meter.run(&name("head", clients), clients, timed(args, u64::MAX), head).await?.0);
        }
        if args.wants(&name("delete", clients)) {
            let each = set.clone();
            let delete = move |s3: S3, index| {
                let key = each.key(index);
                async move { s3.delete(&key).await.map(|()| 0) }
            };
            // All of them are there, so each delete deletes something; how many there are limits the time.
            let until = Until::Ops(written);
            report.cases.push(meter.run(&name("delete", clients), clients, until, delete).await?.0);
        } else if !args.keep {
            set.clear(meter, written).await?;
        }
    }
    Ok(())
}

async fn throughput(meter: &Meter, args: &BenchArgs, report: &mut Report, base: &str) -> Result<()> {
    let sizes =
        [(1 << 20, 16, None), (64 << 20, 4, Some(args.medium_count)), (1 << 30, 1, Some(args.large_count))];
    for (size, clients, count) in sizes {
        let text = bytes_text(size);
        let (up, down) = (format!("upload/{text}/c{clients}"), format!("download/{text}/c{clients}"));
        if count == Some(0) || !(args.wants(&up) || args.wants(&down)) {
            continue;
        }
        let set = Set { prefix: format!("{base}{text}/"), size };
        let until = count.map_or_else(|| timed(args, u64::MAX), Until::Ops);
        let each = set.clone();
        let put = move |s3: S3, index| {
            let set = each.clone();
            async move { set.put(&s3, index).await }
        };
        // There is nothing to download without an upload.
        let (case, written) = meter.run(&up, clients, until, put).await?;
        report.cases.push(case);
        if args.wants(&down) && written > 0 {
            let (each, verify) = (set.clone(), args.verify);
            let get = move |s3: S3, index: u64| {
                let set = each.clone();
                async move { set.get(&s3, index % written, verify).await }
            };
            report.cases.push(meter.run(&down, clients, until, get).await?.0);
        }
        if !args.keep {
            set.clear(meter, written).await?;
        }
    }
    Ok(())
}

async fn listing(meter: &Meter, args: &BenchArgs, report: &mut Report, base: &str) -> Result<()> {
    let name = format!("list/{}", args.list_keys);
    if args.list_keys == 0 || !args.wants(&name) {
        return Ok(());
    }
    let set = Set { prefix: format!("{base}list/"), size: 16 };
    println!("putting {} keys to list", args.list_keys);
    set.fill(meter, 0, args.list_keys).await?;
    let (prefix, count) = (set.prefix.clone(), args.list_keys);
    // One operation is the whole listing, in pages of 1000.
    let list = move |s3: S3, _| {
        let prefix = prefix.clone();
        async move {
            let listed = s3.list_all(&prefix).await?.len() as u64;
            if listed == count {
                Ok(0)
            } else {
                Err(Error::WrongContent(format!("{listed} of {count} keys listed")))
            }
        }
    };
    report.cases.push(meter.run(&name, 1, Until::Ops(10), list).await?.0);
    if !args.keep {
        set.clear(meter, args.list_keys).await?;
    }
    Ok(())
}
