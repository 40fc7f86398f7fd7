//! Which bucket a host name means: `<bucket>.<root domain>` (virtual-host style), or none (path style).

/// The bucket named by `host` (as in the `Host` header, with or without port), if the host lies directly
/// below `root_domain` (with or without a leading dot). Names are compared without regard to case.
pub fn bucket_of_host(host: &str, root_domain: Option<&str>) -> Option<String> {
    let root = root_domain?.trim_start_matches('.').trim_end_matches('.');
    if root.is_empty() {
        return None;
    }
    let name = without_port(host).trim_end_matches('.').to_ascii_lowercase();
    let bucket = name.strip_suffix(&root.to_ascii_lowercase())?.strip_suffix('.')?;
    (!bucket.is_empty()).then(|| bucket.to_owned())
}

/// A host without its port; an IPv6 address keeps its brackets.
pub fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_below_the_root_domain_name_a_bucket() {
        let root = Some(".s3.example.org");
        assert_eq!(bucket_of_host("photos.s3.example.org", root).as_deref(), Some("photos"));
        assert_eq!(bucket_of_host("Photos.S3.example.org:3900", root).as_deref(), Some("photos"));
        assert_eq!(bucket_of_host("a.b.s3.example.org", Some("s3.example.org")).as_deref(), Some("a.b"));
    }

    #[test]
    fn other_hosts_mean_path_style() {
        let root = Some("s3.example.org");
        for host in ["s3.example.org", "example.org", "xs3.example.org", "127.0.0.1:3900", "[::1]:3900", ""] {
            assert_eq!(bucket_of_host(host, root), None, "{host}");
        }
        assert_eq!(bucket_of_host("photos.s3.example.org", None), None);
        assert_eq!(bucket_of_host("photos.s3.example.org", Some(".")), None);
    }

    #[test]
    fn ports_are_cut_off() {
        assert_eq!(without_port("a:1"), "a");
        assert_eq!(without_port("a"), "a");
        assert_eq!(without_port("[::1]:80"), "[::1]");
        assert_eq!(without_port("[::1]"), "[::1]");
    }
}
