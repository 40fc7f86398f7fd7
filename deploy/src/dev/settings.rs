//! Ready-to-paste settings of common clients.

use crate::cluster_file::ClusterFile;
use std::path::Path;

/// What is printed once the cluster can be used.
pub(super) fn show(cluster: &ClusterFile, dir: &Path) -> String {
    let s3 = &cluster.s3;
    let (endpoint, region) = (s3.endpoints.first().map_or("", String::as_str), &s3.region);
    let (id, secret, bucket) = (&s3.access_key, &s3.secret_key, &s3.bucket);
    let all = s3.endpoints.join(" ");
    let file = dir.join("cluster.json");
    let file = file.display();
    let dir = dir.display();
    format!(
        "\
Hayloft runs. Ctrl-C stops it; its data stays in {dir}.

S3 endpoint   {all}
Region        {region}
Key id        {id}
Secret        {secret}
Bucket        {bucket}

# AWS CLI (paste into a shell)
export AWS_ENDPOINT_URL={endpoint}
export AWS_DEFAULT_REGION={region}
export AWS_ACCESS_KEY_ID={id}
export AWS_SECRET_ACCESS_KEY={secret}
aws s3 ls s3://{bucket}

# rclone (add to ~/.config/rclone/rclone.conf, then: rclone ls hayloft:{bucket})
[hayloft]
type = s3
provider = Other
endpoint = {endpoint}
region = {region}
access_key_id = {id}
secret_access_key = {secret}
force_path_style = true

# Python (boto3)
import boto3
s3 = boto3.client(\"s3\", endpoint_url=\"{endpoint}\", region_name=\"{region}\",
                  aws_access_key_id=\"{id}\", aws_secret_access_key=\"{secret}\")
print(s3.list_objects_v2(Bucket=\"{bucket}\"))

# Operate the cluster
hayloft --cluster {file} status
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_file::{AdminAccess, S3Access};

    #[test]
    fn settings_hold_all_that_a_client_needs() {
        let cluster = ClusterFile {
            s3: S3Access {
                endpoints: vec!["http://127.0.0.1:1".into(), "http://127.0.0.1:2".into()],
                region: "hayloft".into(),
                access_key: "GKid".into(),
                secret_key: "s3cr3t".into(),
                bucket: "dev".into(),
            },
            admin: AdminAccess { url: "http://127.0.0.1:3".into(), token: "adm1n".into() },
            processes: Vec::new(),
            config: std::collections::BTreeMap::new(),
        };
        let text = show(&cluster, Path::new("/d"));
        for line in [
            "S3 endpoint   http://127.0.0.1:1 http://127.0.0.1:2",
            "export AWS_ENDPOINT_URL=http://127.0.0.1:1",
            "export AWS_SECRET_ACCESS_KEY=s3cr3t",
            "access_key_id = GKid",
            "hayloft --cluster /d/cluster.json status",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("adm1n"), "the admin token is not for the screen");
    }
}
