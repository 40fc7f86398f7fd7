//! What clients do: requests drawn by the seed's weights, on a few shared keys.

use super::clients::Site;
use super::knobs::rng;
use hayloft_common::limits::MIN_PART_SIZE;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};
use std::time::Duration;

fn size(site: &Site, random: &mut StdRng) -> u64 {
    let (block, inline) =
        (site.world.knobs.domain.block_size as u64, site.world.knobs.domain.inline_max as u64);
    match random.random_range(0..20) {
        0 => 0,
        1 => inline,
        2 => inline + 1,
        3 => block,
        4 => 2 * block + 1,
        5..12 => random.random_range(0..=inline.max(100)),
        12..19 => random.random_range(0..5 * block),
        // More blocks than a row lists.
        _ if block <= 4 << 10 => random.random_range(64 * block..80 * block),
        _ => random.random_range(0..8 * block),
    }
}

enum Request {
    Put,
    Delete,
    Copy,
    Multipart,
    Abandon,
    List,
    Get,
}

fn draw(site: &Site, random: &mut StdRng) -> Request {
    let weights = &site.world.knobs.requests;
    let kinds = [
        (Request::Put, weights.put),
        (Request::Delete, weights.delete),
        (Request::Copy, weights.copy),
        (Request::Multipart, weights.multipart),
        (Request::Abandon, weights.abandon),
        (Request::List, weights.list),
    ];
    let total = weights.get + kinds.iter().map(|(_, weight)| weight).sum::<u32>();
    let mut at = random.random_range(0..total.max(1));
    for (request, weight) in kinds {
        if at < weight {
            return request;
        }
        at -= weight;
    }
    Request::Get
}

/// One client: operations until `until`.
pub(super) async fn run(site: Site, client: usize, until: Duration) {
    let who = format!("c{client}");
    let mut random = rng(site.world.seed(), &who);
    let keys = site.keys();
    let knobs = site.world.knobs.clone();
    let gateways = knobs.gateways.len();
    let think = knobs.think.as_micros() as u64;
    while site.world.log.now() < until {
        tokio::time::sleep(Duration::from_micros(random.random_range(0..=think))).await;
        let random = &mut random;
        let key = keys[random.random_range(0..keys.len())].clone();
        // Mostly one's own gateway, sometimes another.
        let gateway =
            if random.random_bool(0.7) { client % gateways } else { random.random_range(0..gateways) };
        let len = size(&site, random);
        match draw(&site, random) {
            Request::Put if random.random_bool(knobs.requests.alike) => {
                site.put_alike(&who, gateway, &key, random.next_u64()).await;
            }
            Request::Put => {
                let cut = if random.random_bool(0.1) { 500 } else { random.random_range(0..8) };
                site.put(&who, gateway, &key, len, cut).await;
            }
            Request::Delete => drop(site.delete(&who, gateway, &key, random.random_bool(0.3)).await),
            Request::Copy => {
                let from = keys[random.random_range(0..keys.len())].clone();
                site.copy(&who, gateway, &from, &key).await;
            }
            Request::Multipart => {
                let large = knobs.large_parts && random.random_bool(0.3);
                let len = if large { MIN_PART_SIZE + len } else { len };
                site.multipart(&who, random, &key, len).await;
            }
            Request::Abandon => site.abandon(&who, random, gateway, &key, len).await,
            Request::List if random.random_bool(0.3) => drop(site.list_rolled_up(&who, gateway).await),
            Request::List => drop(site.list(&who, gateway, random.random_range(1..=10)).await),
            Request::Get => {
                let part = random.random_bool(0.12).then(|| random.random_range(0.0..1.0));
                drop(site.get(&who, gateway, &key, part).await);
            }
        }
    }
}
