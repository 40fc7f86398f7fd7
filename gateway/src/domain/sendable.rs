//! Every operation can be awaited in a task: its future is `Send` whatever the lifetimes of its arguments. (Closures
//! over borrowed values in streams break this only where the future is boxed, so it is checked here.)

use super::*;
use hayloft_common::schema::Permissions;
use std::ops::Range;

fn check<T>(_: impl Future<Output = T> + Send) {}

#[expect(clippy::too_many_arguments, reason = "one of each kind of argument")]
#[allow(dead_code, reason = "it has to compile, not to run")]
fn every_operation_is_send<'a>(
    gateway: &'a Arc<Gateway>,
    bucket: &'a Bucket,
    key: &'a KeyId,
    name: &'a str,
    head: &'a ObjectHead,
    upload: &'a UploadRef,
    put: PutObject,
    copy: CopyObject,
    complete: CompleteUpload,
    create: CreateUpload,
    row: &'a KeyRow,
    bodies: (Body, Body),
) {
    let id = bucket.id();
    check(gateway.put(put, bodies.0));
    check(gateway.open(bucket, name, None));
    check(gateway.head(bucket, name, None));
    check(gateway.delete(bucket, name));
    check(gateway.delete_many(bucket, Vec::new()));
    check(gateway.copy(head, copy));
    check(gateway.list(bucket, ListRequest::default()));
    check(gateway.list_uploads(bucket, ListUploads::default()));
    check(gateway.create_upload(create));
    check(gateway.put_part(upload.clone(), 1, BodyChecks::default(), bodies.1));
    check(gateway.copy_part(upload.clone(), 1, head, None::<Range<u64>>));
    check(gateway.list_parts(upload, 0, 1));
    check(gateway.complete_upload(complete));
    check(gateway.abort_upload(upload));
    check(gateway.authorize(key, name, Right::Read));
    check(gateway.resolve(name));
    check(gateway.list_buckets_of(row));
    check(gateway.create_bucket_as(key, name));
    check(gateway.delete_bucket(bucket));
    check(gateway.create_bucket(NewBucket::default()));
    check(gateway.list_buckets());
    check(gateway.bucket_info(id));
    check(gateway.allow(id, key, Permissions::ALL));
    check(gateway.add_global_alias(id, name));
    check(gateway.remove_global_alias(id, name));
    check(gateway.add_local_alias(id, key, name));
    check(gateway.remove_local_alias(id, key, name));
    check(gateway.key(key));
    check(gateway.list_keys());
    check(gateway.create_key(NewKey::default()));
    check(gateway.update_key(key, KeyChange::default()));
    check(gateway.delete_key(key));
}
