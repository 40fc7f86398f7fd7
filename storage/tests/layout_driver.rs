//! Changes of layout go on by themselves, also without some of the nodes: that which drives first among them.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod nodes_support;

use hayloft_common::layout::PartitionState;
use nodes_support::{Nodes, until};

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn queued_changes_go_on_without_the_node_that_drives_first_and_it_catches_up() {
    run(async {
        let mut nodes = Nodes::start(4).await;
        nodes.apply(&[0, 1, 2], 3).await;
        nodes.stable(1).await;
        for n in 0..20 {
            nodes.write(0, n).await;
        }
        // Whoever comes first in order of id would propose at once.
        let first = (0..3).min_by_key(|i| nodes.0[*i].id()).unwrap();
        let rest: Vec<usize> = (0..3).filter(|i| *i != first).collect();
        nodes.down(first).await;
        // Away from it and back to it, while it sleeps. The second is applied while the first is under way.
        nodes.apply(&[rest[0], rest[1], 3], 3).await;
        nodes.apply(&[rest[0], rest[1], first], 3).await;
        for n in 20..40 {
            nodes.write(rest[0], n).await;
        }
        nodes.stable(3).await;
        let late = nodes.node(rest[0]).membership.progress();
        assert!(late.get(&nodes.0[first].id()).is_none_or(|said| said.synced < 3));

        nodes.up(first).await;
        until("the node that slept has everything", async || {
            let node = nodes.node(first);
            node.layout_store.synced() == 3 && node.layout_store.leftovers().is_empty()
        })
        .await;
        let holdings = nodes.node(first).layout_store.holdings();
        assert!(holdings.all_in(PartitionState::Lost).is_empty());
        nodes.equal().await;
        nodes.check_holders_have(0..40);
        // Now that all have everything, the node that was only passed through forgets.
        until("leftovers are gone", async || nodes.node(3).layout_store.leftovers().is_empty()).await;
        assert_eq!(nodes_support::rows_of(nodes.node(3)), 0);
    });
}
