//! The mixed workload: puts of all sizes, overwrites, deletes, multipart uploads and reads on shared keys.

use super::object::{Retries, observe, observe_head};
use super::{Keys, Site, together};
use crate::check;
use crate::client::{Content, Payload};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt as _, SeedableRng as _};

/// Smallest part but the last that S3 allows.
const PART: u64 = 5 << 20;

/// How much of what: weights, not percentages.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub put: u32,
    pub delete: u32,
    pub multipart: u32,
    pub abandoned_upload: u32,
    pub get: u32,
    pub head: u32,
    pub list: u32,
    pub copy: u32,
    /// Whole listings that are judged: dear, as they read all keys and the whole history.
    pub checked_list: u32,
    /// Largest object of a put, in bytes.
    pub max_size: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            put: 45,
            delete: 15,
            multipart: 2,
            abandoned_upload: 1,
            get: 30,
            head: 5,
            list: 2,
            copy: 3,
            checked_list: 0,
            max_size: 3 << 20,
        }
    }
}

impl Mix {
    /// A size from 0 to the largest: the ends of each range, inline sizes and blocks all occur.
    pub fn size(&self, random: &mut impl Rng) -> u64 {
        let top = match random.random_range(0..10) {
            0 => return 0,
            1 => {
                return [1, 16 << 10, (16 << 10) + 1, 1 << 20, (1 << 20) + 1][random.random_range(0..5)]
                    .min(self.max_size);
            }
            2..=5 => 4 << 10,
            6..=7 => 256 << 10,
            _ => self.max_size,
        };
        random.random_range(0..=top.min(self.max_size))
    }
}

/// Runs `clients` clients until the site is stopped. Everything they draw comes from `seed`.
pub async fn mixed(site: &Site, keys: &Keys, mix: Mix, clients: u64, seed: u64) {
    let work = (0..clients).map(|client| {
        let (site, keys) = (site.clone(), keys.clone());
        let mut random = SmallRng::seed_from_u64(seed.wrapping_mul(0x1_0001).wrapping_add(client));
        async move {
            while !site.stopped() {
                step(&site, &keys, mix, &mut random).await;
            }
        }
    });
    together(&site.env, "mixed-client", work).await;
}

async fn step(site: &Site, keys: &Keys, mix: Mix, random: &mut SmallRng) {
    let key = keys.pick(random);
    let size = mix.size(random);
    let weights = [
        mix.put,
        mix.delete,
        mix.multipart,
        mix.abandoned_upload,
        mix.get,
        mix.head,
        mix.list,
        mix.copy,
        mix.checked_list,
    ];
    let mut draw = random.random_range(0..weights.iter().sum::<u32>().max(1));
    let chosen = weights.iter().position(|weight| {
        let hit = draw < *weight;
        draw = draw.saturating_sub(*weight);
        hit
    });
    match chosen {
        Some(0) => drop(site.write(&key, size, None).await),
        Some(1) => drop(site.delete(&key).await),
        Some(2) => drop(site.write(&key, PART + size, Some(PART)).await),
        Some(3) => abandon(site, &key, size, random.random_bool(0.5)).await,
        Some(5) => observe_head(site, &key).await,
        Some(6) => list(site, keys).await,
        Some(7) => site.copy(&key, &keys.pick(random)).await,
        Some(8) => list_checked(site, keys).await,
        _ => drop(observe(site, &key).await),
    }
}

/// An upload that is never completed must not touch the object.
async fn abandon(site: &Site, key: &str, size: u64, abort: bool) {
    let content = Content::of(key, 0, size);
    let result = async {
        let upload = site.s3.create_upload(key, &[]).await?;
        site.s3.upload_part(key, &upload, 1, Payload::whole(content)).await?;
        if abort { site.s3.abort_upload(key, &upload).await } else { Ok(()) }
    };
    match result.await {
        Ok(()) => site.succeeded(),
        Err(error) => site.failed("abandoned upload", &error),
    }
}

async fn list(site: &Site, keys: &Keys) {
    // Judged when the keys are at rest; here it only adds load and must not fail.
    let mut retries = Retries::of(site, "list");
    let result = loop {
        let result = retries.client().list_page(keys.prefix(), Some("/"), None, 100).await;
        if !retries.again(&result).await {
            break result;
        }
    };
    match result {
        Ok(_) => site.succeeded(),
        Err(error) => site.failed("list", &error),
    }
}

/// Lists all keys and judges the listing against what was written before and meanwhile.
async fn list_checked(site: &Site, keys: &Keys) {
    let mut retries = Retries::of(site, "list");
    let (start, result) = loop {
        let start = site.env.now();
        let result = retries.client().list_all(keys.prefix()).await;
        if !retries.again(&result).await {
            break (start, result);
        }
    };
    match result {
        Ok(listed) => {
            let end = site.env.now();
            let listed: Vec<_> = listed.into_iter().map(|object| (object.key, object.size)).collect();
            let found = check::listing(&site.history.writes_under(keys.prefix()), &listed, start, end);
            site.violations.lock().extend(found);
            site.succeeded();
        }
        Err(error) => site.failed("list", &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_stay_in_bounds_and_cover_empty_inline_and_blocks() {
        let mix = Mix::default();
        let mut random = SmallRng::seed_from_u64(1);
        let sizes: Vec<_> = (0..2_000).map(|_| mix.size(&mut random)).collect();
        assert!(sizes.iter().all(|size| *size <= mix.max_size));
        for range in [0..1, 1..16 << 10, 16 << 10..1 << 20, 1 << 20..u64::MAX] {
            assert!(sizes.iter().any(|size| range.contains(size)), "{range:?}");
        }
    }
}
