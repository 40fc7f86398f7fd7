//! Real nodes: what one missed comes by itself, a change of layout moves everything while writes go on, and a node that
//! lost its metadata gets it back before it serves.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod nodes_support;

use hayloft_common::layout::PartitionState;
use nodes_support::{Nodes, rows_of, until};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn a_node_that_was_away_gets_what_it_missed() {
    run(async {
        let mut nodes = Nodes::start(3).await;
        nodes.apply(&[0, 1, 2], 3).await;
        for n in 0..20 {
            nodes.write(0, n).await;
        }
        nodes.down(2).await;
        for n in 20..100 {
            nodes.write(0, n).await;
        }
        nodes.up(2).await;
        nodes.equal().await;
        nodes.check_holders_have(0..100);
    });
}

#[test]
fn data_moves_to_a_new_node_while_writes_go_on_and_the_one_that_leaves_forgets_it() {
    run(async {
        let nodes = Nodes::start(4).await;
        nodes.apply(&[0, 1, 2], 3).await;
        for n in 0..100 {
            nodes.write(1, n).await;
        }
        let (moved, next) = (AtomicBool::new(false), AtomicU32::new(100));
        let writing = async {
            while !moved.load(Ordering::Relaxed) {
                nodes.write(1, next.fetch_add(1, Ordering::Relaxed)).await;
            }
        };
        let moving = async {
            nodes.apply(&[1, 2, 3], 3).await;
            nodes.stable(2).await;
            moved.store(true, Ordering::Relaxed);
        };
        tokio::join!(biased; writing, moving);
        let written = next.load(Ordering::Relaxed);
        assert!(written > 101, "nothing was written while data moved");
        // The new node has what was acknowledged as soon as it counts; the others within a comparison.
        nodes.equal().await;
        nodes.check_holders_have(0..written);
        let left = nodes.node(0);
        until("the node that left forgets its rows", async || {
            left.layout_store.leftovers().is_empty() && rows_of(left) == 0
        })
        .await;
        assert_eq!(nodes.node(3).layout_store.synced(), 2);
    });
}

#[test]
fn another_replication_factor_is_a_move_like_any_other() {
    run(async {
        let nodes = Nodes::start(3).await;
        nodes.apply(&[0, 1, 2], 1).await;
        for n in 0..60 {
            nodes.write(0, n).await;
        }
        nodes.apply(&[0, 1, 2], 3).await;
        nodes.stable(2).await;
        nodes.equal().await;
        nodes.check_holders_have(0..60);
        nodes.apply(&[0, 1, 2], 2).await;
        nodes.stable(3).await;
        nodes.equal().await;
        nodes.check_holders_have(0..60);
    });
}

#[test]
fn a_node_that_lost_its_metadata_fills_itself_from_the_others_before_it_serves() {
    run(async {
        let mut nodes = Nodes::start(3).await;
        nodes.apply(&[0, 1, 2], 3).await;
        for n in 0..60 {
            nodes.write(0, n).await;
        }
        nodes.equal().await;
        nodes.down(2).await;
        nodes.0[2].metadata.wipe();
        nodes.up(2).await;
        let node = nodes.node(2).clone();
        until("it serves again", async || {
            let holdings = node.layout_store.holdings();
            holdings.synced() == 1
                && holdings.all_in(PartitionState::Member).len() == 1 << nodes_support::BITS
        })
        .await;
        nodes.check_holders_have(0..60);
        nodes.equal().await;
    });
}

#[test]
fn a_node_that_is_cut_off_while_it_is_filled_goes_on_and_a_block_that_nobody_has_holds_nothing_up() {
    run(async {
        let mut nodes = Nodes::start(4).await;
        nodes.apply(&[0, 1, 2], 3).await;
        for n in 0..150 {
            nodes.write(0, n).await;
        }
        nodes.equal().await;
        for i in 0..3 {
            nodes.lose_block(i, 7).await;
        }
        nodes.apply(&[1, 2, 3], 3).await;
        let new = nodes.node(3).clone();
        until("the new node has begun", async || rows_of(&new) > 0).await;
        drop(new);
        nodes.down(3).await;
        nodes.up(3).await;
        nodes.stable(2).await;
        nodes.check_holders_have(0..150);
        assert_eq!(nodes.missing(3), 1, "the lost one alone");
    });
}
