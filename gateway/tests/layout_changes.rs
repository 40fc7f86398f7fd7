//! Operators and the layout: apply, queue, collide, follow, skip dead nodes, through the admin interface of real
//! gateways and against the storage nodes' real registers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod layout_support;

use hayloft_proto::admin::Endpoint::{
    ClusterLayoutSkipDeadNodes, GetClusterLayout, GetClusterLayoutHistory, PreviewClusterLayoutChanges,
    RevertClusterLayout, UpdateClusterLayout,
};
use http::StatusCode;
use layout_support::{admin, apply, call, gateway, nodes, ok, stage};
use serde_json::{Value, json};

const RF2: fn() -> Value = || json!({"replicationFactor": 2});

fn lines(answer: &Value) -> String {
    answer["message"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line.as_str().unwrap())
        .collect::<Vec<_>>()
        .join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_layout_is_in_force_at_once_later_ones_move_and_queue() {
    let nodes = nodes(4).await;
    let admin = admin(&gateway(&nodes).await);
    stage(&admin, &[&nodes[0], &nodes[1]], &[], RF2()).await;
    let (status, answer) = apply(&admin, 1).await;
    assert_eq!((status, &answer["state"]), (StatusCode::OK, &json!("inForce")), "{answer}");
    let (status, answer) = apply(&admin, 2).await;
    assert_eq!(
        (status, &answer["code"]),
        (StatusCode::BAD_REQUEST, &json!("InvalidLayout")),
        "nothing staged"
    );

    stage(&admin, &[&nodes[2]], &[&nodes[0]], json!({})).await;
    let (status, answer) = apply(&admin, 1).await;
    assert_eq!((status, &answer["code"]), (StatusCode::CONFLICT, &json!("LayoutConflict")));
    let (_, answer) = apply(&admin, 2).await;
    assert_eq!(answer["state"], "moving", "{answer}");
    assert_eq!(answer["layout"]["stagedRoleChanges"], json!([]), "what is applied is no longer staged");

    stage(&admin, &[&nodes[3]], &[], json!({"replicationFactor": 3})).await;
    let preview = ok(&admin, PreviewClusterLayoutChanges, json!({})).await;
    assert_eq!(preview["newLayout"]["version"], 3);
    assert!(
        lines(&preview).contains("Copies of each partition: 2 before, 3 after; 256 are made and 0 dropped")
    );
    let (_, answer) = apply(&admin, 3).await;
    assert_eq!(answer["state"], "queued", "{answer}");
    let (status, _) = apply(&admin, 3).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let shown = ok(&admin, GetClusterLayout, json!({})).await;
    assert_eq!((&shown["version"], shown["roles"].as_array().unwrap().len()), (&json!(3), 3), "the newest");

    let history = ok(&admin, GetClusterLayoutHistory, json!({})).await;
    assert_eq!((&history["currentVersion"], &history["phase"]), (&json!(2), &json!("introduced")));
    let states = |of: &str| -> Vec<(Value, Value)> {
        let all = history[of].as_array().unwrap().iter();
        all.map(|version| (version["version"].clone(), version["status"].clone())).collect()
    };
    assert_eq!(states("versions"), [(json!(2), json!("Current")), (json!(1), json!("Draining"))]);
    assert_eq!(states("queued"), [(json!(3), json!("Queued"))]);

    for _ in 0..5 {
        nodes[3].advance().await;
    }
    let history = ok(&admin, GetClusterLayoutHistory, json!({})).await;
    assert_eq!((&history["currentVersion"], &history["phase"]), (&json!(3), &json!("stable")));
    assert_eq!((&history["nodes"], &history["updateTrackers"]), (&json!([]), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_who_apply_at_once_one_wins_and_the_other_gets_a_conflict() {
    let nodes = nodes(4).await;
    let admins = [admin(&gateway(&nodes).await), admin(&gateway(&nodes).await)];
    stage(&admins[0], &[&nodes[0], &nodes[1]], &[], RF2()).await;
    let check = |first: (StatusCode, Value), second: (StatusCode, Value)| {
        let won = [&first, &second].iter().filter(|(status, _)| *status == StatusCode::OK).count();
        assert_eq!(won, 1, "{first:?} {second:?}");
        let (status, answer) = if first.0 == StatusCode::OK { second } else { first };
        assert_eq!((status, &answer["code"]), (StatusCode::CONFLICT, &json!("LayoutConflict")), "{answer}");
    };
    // The same changes are staged everywhere: both compute the same layout, and yet only one applies it.
    let (first, second) = tokio::join!(apply(&admins[0], 1), apply(&admins[1], 1));
    check(first, second);
    for version in 2..8 {
        let (adding, removing) = if version % 2 == 0 { (2, 3) } else { (3, 2) };
        let removing = if version == 2 { Vec::new() } else { vec![&nodes[removing]] };
        stage(&admins[0], &[&nodes[adding]], &removing, json!({})).await;
        let (first, second) = tokio::join!(apply(&admins[0], version), apply(&admins[1], version));
        check(first, second);
        let shown = ok(&admins[1], GetClusterLayout, json!({})).await;
        assert_eq!((&shown["version"], &shown["stagedRoleChanges"]), (&json!(version), &json!([])));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phase_that_ends_meanwhile_is_no_conflict() {
    let nodes = nodes(3).await;
    let admin = admin(&gateway(&nodes).await);
    stage(&admin, &[&nodes[0], &nodes[1]], &[], RF2()).await;
    assert_eq!(apply(&admin, 1).await.0, StatusCode::OK);
    for version in 2..7 {
        let (adding, removing) = if version % 2 == 0 { (2, 1) } else { (1, 2) };
        stage(&admin, &[&nodes[adding]], &[&nodes[removing]], json!({})).await;
        let advance = async {
            if version > 2 {
                nodes[0].advance().await;
            }
        };
        let ((status, answer), ()) = tokio::join!(apply(&admin, version), advance);
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_nodes_are_skipped_if_enough_copies_are_left() {
    let nodes = nodes(5).await;
    let admin = admin(&gateway(&nodes).await);
    let (status, answer) = call(&admin, ClusterLayoutSkipDeadNodes, json!({"version": 1})).await;
    assert_eq!((status, &answer["code"]), (StatusCode::BAD_REQUEST, &json!("NothingToSkip")), "{answer}");
    stage(&admin, &[&nodes[0], &nodes[1], &nodes[2]], &[], json!({"replicationFactor": 3})).await;
    assert_eq!(apply(&admin, 1).await.0, StatusCode::OK);
    stage(&admin, &[&nodes[3]], &[&nodes[0]], json!({})).await;
    assert_eq!(apply(&admin, 2).await.0, StatusCode::OK);
    let (_, answer) = call(&admin, ClusterLayoutSkipDeadNodes, json!({"version": 2})).await;
    assert!(answer["message"].as_str().unwrap().contains("none is dead"), "{answer}");

    nodes[0].kill().await;
    let (status, _) = call(&admin, ClusterLayoutSkipDeadNodes, json!({"version": 1})).await;
    assert_eq!(status, StatusCode::CONFLICT, "another change is under way");
    let answer = ok(&admin, ClusterLayoutSkipDeadNodes, json!({"version": 2})).await;
    assert_eq!(answer["partitionsAtRisk"], 0, "{answer}");
    assert_eq!(answer["syncUpdated"], json!([nodes[0].id]));
    let history = ok(&admin, GetClusterLayoutHistory, json!({})).await;
    let rows = history["nodes"].as_array().unwrap();
    let row = rows.iter().find(|row| row["id"] == json!(nodes[0].id)).unwrap();
    assert_eq!((&row["skipped"], &row["waitedFor"]), (&json!(true), &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn skipping_that_risks_data_is_refused_unless_it_is_accepted() {
    let nodes = nodes(4).await;
    let admin = admin(&gateway(&nodes).await);
    stage(&admin, &[&nodes[0], &nodes[1], &nodes[2]], &[], RF2()).await;
    assert_eq!(apply(&admin, 1).await.0, StatusCode::OK);
    stage(&admin, &[&nodes[3]], &[&nodes[0]], json!({})).await;
    assert_eq!(apply(&admin, 2).await.0, StatusCode::OK);
    nodes[0].kill().await;
    let (status, answer) = call(&admin, ClusterLayoutSkipDeadNodes, json!({"version": 2})).await;
    assert_eq!((status, &answer["code"]), (StatusCode::BAD_REQUEST, &json!("DataAtRisk")), "{answer}");
    assert!(answer["message"].as_str().unwrap().contains(&nodes[0].id.short()), "{answer}");
    let history = ok(&admin, GetClusterLayoutHistory, json!({})).await;
    assert!(history["nodes"].as_array().unwrap().iter().all(|row| row["skipped"] == false));

    let accepted = json!({"version": 2, "allowMissingData": true});
    let answer = ok(&admin, ClusterLayoutSkipDeadNodes, accepted).await;
    assert!(answer["partitionsAtRisk"].as_u64().unwrap() > 0);
    assert!(lines(&answer).contains("At risk:"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reverting_drops_what_is_staged_and_nothing_that_was_applied() {
    let nodes = nodes(3).await;
    let admin = admin(&gateway(&nodes).await);
    stage(&admin, &[&nodes[0], &nodes[1]], &[], RF2()).await;
    assert_eq!(apply(&admin, 1).await.0, StatusCode::OK);
    stage(&admin, &[&nodes[2]], &[&nodes[1]], json!({})).await;
    assert_eq!(apply(&admin, 2).await.0, StatusCode::OK);
    stage(&admin, &[&nodes[1]], &[], json!({"zoneRedundancy": {"atLeast": 1}})).await;
    let layout = ok(&admin, RevertClusterLayout, json!({})).await;
    assert_eq!((&layout["version"], &layout["stagedRoleChanges"]), (&json!(2), &json!([])));
    assert_eq!(layout["stagedParameters"], Value::Null);
    // Undone by applying the former roles: it queues behind.
    stage(&admin, &[&nodes[1]], &[&nodes[2]], json!({})).await;
    let (_, answer) = apply(&admin, 3).await;
    assert_eq!(answer["state"], "queued");
    let unknown = json!({"roles": [{"id": "ab".repeat(32), "remove": true}]});
    let (status, _) = call(&admin, UpdateClusterLayout, unknown).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "a node without a role cannot lose it");
}
