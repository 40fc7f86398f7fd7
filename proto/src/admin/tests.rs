//! The JSON shapes survive a round trip, and secrets do not show.

use super::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Reads `json` as `T` and back: the shape survives.
fn round_trip<T: Serialize + DeserializeOwned>(json: &Value) {
    let value: T = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(&serde_json::to_value(&value).unwrap(), json);
}

fn id() -> String {
    "ab".repeat(32)
}

#[test]
fn endpoints_have_names_methods_and_paths() {
    assert_eq!(Endpoint::from_name("ListKeys"), Some(Endpoint::ListKeys));
    assert_eq!(Endpoint::ListKeys.method(), "GET");
    assert_eq!(Endpoint::ApplyClusterLayout.path(), "/v2/ApplyClusterLayout");
    assert_eq!(Endpoint::from_name("listkeys"), None);
    for endpoint in Endpoint::ALL {
        use Endpoint::{GetBlockInfo, GetWorkerInfo, GetWorkerVariable, ListWorkers};
        // These read, but what they ask for is in the body.
        let asks = matches!(endpoint, GetBlockInfo | GetWorkerInfo | GetWorkerVariable | ListWorkers);
        let reads = endpoint.name().starts_with("Get") || endpoint.name().starts_with("List");
        let reads = reads && !asks;
        assert_eq!(endpoint.method(), if reads { "GET" } else { "POST" }, "{endpoint:?}");
    }
}

#[test]
fn layouts_keep_their_shape() {
    round_trip::<ClusterLayout>(&json!({
        "version": 1,
        "roles": [{"id": id(), "zone": "a", "tags": ["t"], "capacity": 10, "storedPartitions": 256, "usableCapacity": 9}],
        "parameters": {"zoneRedundancy": {"atLeast": 2}, "replicationFactor": 3},
        "partitionSize": 7,
        "stagedRoleChanges": [
            {"id": id(), "zone": "b", "capacity": 5, "tags": []},
            {"id": id(), "remove": true},
        ],
        "stagedParameters": {"zoneRedundancy": "maximum"},
    }));
    round_trip::<UpdateClusterLayout>(&json!({"roles": [], "parameters": {"zoneRedundancy": "maximum"}}));
    let update: UpdateClusterLayout = serde_json::from_value(json!({})).unwrap();
    assert_eq!(update, UpdateClusterLayout::default());
}

#[test]
fn the_history_of_layouts_keeps_its_shape_and_reads_without_our_fields() {
    let version = |version, status| {
        json!({"version": version, "status": status, "storageNodes": 1, "gatewayNodes": 0, "nodes": [id()],
               "replicationFactor": 3})
    };
    round_trip::<ClusterLayoutHistory>(&json!({
        "currentVersion": 3,
        "minAck": 2,
        "versions": [version(3, "Current"), version(2, "Draining")],
        "updateTrackers": {id(): {"ack": 3, "sync": 2, "syncAck": 2}},
        "epoch": 7,
        "phase": "introduced",
        "queued": [version(4, "Queued")],
        "nodes": [{
            "id": id(), "hostname": "nas", "isUp": false, "lastSeenSecsAgo": 3, "waitedFor": true, "skipped": false,
            "epoch": 6, "synced": false, "partitionsToSync": 9, "partitionsLeft": 4, "blocksLeft": 5,
        }],
    }));
    let bare = json!({
        "currentVersion": 1, "minAck": 1,
        "versions": [{"version": 1, "status": "Historical", "storageNodes": 3, "gatewayNodes": 1}],
    });
    let bare: ClusterLayoutHistory = serde_json::from_value(bare).unwrap();
    assert_eq!((bare.phase, bare.queued.len(), bare.update_trackers), (LayoutPhase::Stable, 0, None));
    let skip: SkipDeadNodes = serde_json::from_value(json!({"version": 2})).unwrap();
    assert!(!skip.allow_missing_data);
    round_trip::<SkippedDeadNodes>(&json!({
        "ackUpdated": [id()], "syncUpdated": [], "partitionsAtRisk": 2, "message": ["a"],
    }));
}

#[test]
fn a_role_change_must_say_one_thing() {
    for (change, wrong) in [
        (json!({"id": id()}), "or `remove: true`"),
        (json!({"id": id(), "remove": false}), "or `remove: true`"),
        (json!({"id": id(), "remove": true, "zone": "a"}), "exclude each other"),
    ] {
        let error = serde_json::from_value::<RoleChange>(change).unwrap_err().to_string();
        assert!(error.contains(wrong), "{error}");
    }
}

#[test]
fn a_preview_is_an_error_or_a_layout() {
    round_trip::<LayoutPreview>(&json!({"error": "too few zones"}));
    let preview = json!({
        "message": ["ok"],
        "newLayout": {"version": 1, "roles": [], "parameters": {}, "partitionSize": 0, "stagedRoleChanges": []},
    });
    round_trip::<LayoutPreview>(&preview);
    let preview: LayoutPreview = serde_json::from_value(preview).unwrap();
    assert!(matches!(preview, LayoutPreview::Possible { .. }));
}

#[test]
fn status_and_health_keep_their_shape() {
    round_trip::<ClusterStatus>(&json!({
        "layoutVersion": 2,
        "nodes": [{
            "id": id(), "isUp": true, "draining": false, "addr": "10.0.0.1:3901", "garageVersion": "0.1.0",
            "role": {"zone": "a", "capacity": 10, "tags": []},
            "dataPartition": {"available": 1, "total": 2},
        }, {
            "id": id(), "isUp": false, "draining": false, "lastSeenSecsAgo": 3,
            "role": {"zone": "a", "capacity": null, "tags": []},
        }],
    }));
    round_trip::<ClusterHealth>(&json!({
        "status": "degraded", "knownNodes": 3, "connectedNodes": 2, "storageNodes": 3, "storageNodesUp": 2,
        "storageNodesOk": 2, "partitions": 256, "partitionsQuorum": 256, "partitionsAllOk": 0,
    }));
}

#[test]
fn keys_keep_their_shape_and_hide_their_secret() {
    let json = json!({
        "accessKeyId": "GK1", "secretAccessKey": "topsecret", "name": "n", "expired": false,
        "permissions": {"createBucket": true},
        "buckets": [{
            "id": "cd".repeat(16), "globalAliases": ["b"], "localAliases": [],
            "permissions": {"read": true, "write": false, "owner": false},
        }],
    });
    round_trip::<KeyInfo>(&json);
    let key: KeyInfo = serde_json::from_value(json).unwrap();
    assert!(!format!("{key:?}").contains("topsecret"));
    let settings: KeySettings = serde_json::from_value(json!({"allow": {"createBucket": true}})).unwrap();
    assert_eq!(settings.allow, Some(KeyPermissions { create_bucket: true }));
    let import = json!({"accessKeyId": "GK1", "secretAccessKey": "topsecret", "name": "n"});
    round_trip::<ImportKey>(&import);
    assert!(!format!("{:?}", serde_json::from_value::<ImportKey>(import).unwrap()).contains("topsecret"));
}

#[test]
fn buckets_keep_their_shape() {
    round_trip::<BucketInfo>(&json!({
        "id": "cd".repeat(16), "created": "2030-01-01T00:00:00Z", "globalAliases": ["b"],
        "keys": [{
            "accessKeyId": "GK1", "name": "n", "bucketLocalAliases": [],
            "permissions": {"read": true, "write": true, "owner": false},
        }],
        "websiteAccess": false, "quotas": {"maxSize": null, "maxObjects": 5}, "monotonicReads": false,
        "objects": 1, "bytes": 2,
        "unfinishedUploads": 3, "unfinishedMultipartUploads": 4, "unfinishedMultipartUploadParts": 5,
        "unfinishedMultipartUploadBytes": 6,
    }));
    round_trip::<BucketAlias>(&json!({"bucketId": "cd".repeat(16), "globalAlias": "b"}));
    round_trip::<BucketAlias>(&json!({"bucketId": "cd".repeat(16), "accessKeyId": "GK1", "localAlias": "b"}));
    round_trip::<BucketKeyPermissions>(&json!({
        "bucketId": "cd".repeat(16), "accessKeyId": "GK1",
        "permissions": {"read": true, "write": false, "owner": false},
    }));
}
