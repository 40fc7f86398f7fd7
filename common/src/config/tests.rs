//! What loading a configuration promises, and that the example files tell the truth.

use super::*;
use std::os::unix::fs::PermissionsExt as _;

const SECRET: &str = "abababababababababababababababababababababababababababababababab";
const STORAGE_EXAMPLE: &str = include_str!("../../../deploy/config/storage.example.toml");
const GATEWAY_EXAMPLE: &str = include_str!("../../../deploy/config/gateway.example.toml");

fn env(name: &str) -> Option<String> {
    (name == "HAYLOFT_RPC_SECRET").then(|| SECRET.to_owned())
}

fn storage(text: &str) -> Result<StorageConfig, Vec<Problem>> {
    parse(text, &env)
}

fn gateway(text: &str) -> Result<GatewayConfig, Vec<Problem>> {
    parse(text, &env)
}

fn minimal_storage() -> String {
    "metadata_dir = '/m'\ndata_dir = '/d'\n".into()
}

fn minimal_gateway() -> String {
    "storage_peers = ['a:1']\n".into()
}

/// The only problem, as `line: text`.
fn only<T: fmt::Debug>(result: Result<T, Vec<Problem>>) -> String {
    let problems = result.unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    format!("{}: {}", problems[0].line.unwrap_or(0), problems[0].text)
}

#[test]
fn unknown_keys_are_refused_with_line_and_nearest_key() {
    let text = minimal_storage() + "data_fync = true\n[admin]\napi_bnd_addr = '127.0.0.1:1'\n";
    let problems = storage(&text).unwrap_err();
    assert_eq!(
        problems,
        [
            Problem { line: Some(3), text: "unknown key `data_fync`: did you mean `data_fsync`?".into() },
            Problem {
                line: Some(5),
                text: "unknown key `admin.api_bnd_addr`: did you mean `admin.api_bind_addr`?".into()
            },
        ]
    );
    let text = minimal_gateway() + "s3_region = 'x'\n";
    assert_eq!(
        only(gateway(&text)),
        "2: unknown key `s3_region`: did you mean `s3_api.s3_region`, in the section [s3_api]?"
    );
    let text = minimal_gateway() + "entirely_different = 1\n";
    assert!(only(gateway(&text)).contains("the nearest known key is `"));
    let text = minimal_storage() + "replication_factor = 3\n";
    assert!(only(storage(&text)).contains("hayloft layout config"));
    let text = "metadata_dir = '/m'\ndata_dir = [\n{ path = '/a', capacty = 1 }]\n";
    assert_eq!(only(storage(text)), "3: unknown key `data_dir.capacty`: did you mean `data_dir.capacity`?");
}

#[test]
fn every_section_refuses_unknown_keys() {
    for section in ["s3_api", "admin", "limits", "cache", "log", "trace"] {
        let text = format!("{}[{section}]\nbogus = 1\n", minimal_gateway());
        assert!(only(gateway(&text)).starts_with(&format!("3: unknown key `{section}.bogus`")), "{section}");
    }
    for section in ["admin", "log", "trace"] {
        let text = format!("{}[{section}]\nbogus = 1\n", minimal_storage());
        assert!(only(storage(&text)).starts_with(&format!("4: unknown key `{section}.bogus`")), "{section}");
    }
}

#[test]
fn values_of_the_wrong_kind_are_told_with_their_line() {
    let text = minimal_storage() + "meta_cache_size = 'lots'\n";
    assert!(only(storage(&text)).starts_with("3: `lots` is not a size"), "{}", only(storage(&text)));
    let text = minimal_gateway() + "[log]\nformat = 'xml'\n";
    assert!(only(gateway(&text)).contains("expected `text` or `json`"), "{}", only(gateway(&text)));
    let text = minimal_gateway() + "compression_level = 23\n";
    assert!(only(gateway(&text)).contains("a level from -99 to 22"), "{}", only(gateway(&text)));
    assert!(only(storage("data_dir = '/d'\n")).contains("missing field `metadata_dir`"));
    assert!(only(storage("metadata_dir = ")).starts_with("1: "));
}

#[test]
fn limits_are_checked_and_all_problems_are_told_at_once() {
    let text = "storage_peers = []\nblock_size = '1k'\n[s3_api]\napi_bind_addr = 'localhost'\ntls_cert = 'x'\n\
                [cache]\ncontrol_max_age = '2m'\n";
    let problems = gateway(text).unwrap_err();
    let told = |line, start: &str| {
        problems.iter().any(|problem| problem.line == Some(line) && problem.text.starts_with(start))
    };
    assert!(told(1, "`storage_peers`: give at least one"), "{problems:?}");
    assert!(told(2, "`block_size`: 1000 is out of range: from 64KiB to 16MiB"), "{problems:?}");
    assert!(told(4, "`s3_api.api_bind_addr`: `localhost` is not an address"), "{problems:?}");
    assert!(told(5, "`s3_api.tls_cert`: `tls_key` is missing"), "{problems:?}");
    assert!(told(7, "`cache.control_max_age`: 2m is out of range"), "{problems:?}");
}

#[test]
fn data_directories_are_checked() {
    for (dirs, wrong) in [
        ("[]", "at least one"),
        ("[{ path = '/a', read_only = true }]", "every directory is read-only"),
        ("[{ path = '/a', capacity = '1T' }, { path = '/b' }]", "/b needs a capacity"),
        ("[{ path = '/a', capacity = 1 }, { path = '/a', capacity = 2 }]", "given twice"),
        ("[{ path = '/a', capacity = 0 }]", "capacity 0"),
        ("'/m'", "also `metadata_dir`"),
    ] {
        let text = format!("metadata_dir = '/m'\ndata_dir = {dirs}\n");
        assert!(only(storage(&text)).contains(wrong), "{dirs}: {}", only(storage(&text)));
    }
    let text = "metadata_dir = '/m'\ndata_dir = [{ path = '/a', capacity = '2T' }, { path = '/b', read_only = true }]\n";
    assert_eq!(storage(text).unwrap().data_dir[0].capacity, Some(2_000_000_000_000));
}

#[test]
fn a_missing_or_malformed_secret_is_refused() {
    let none = |_: &str| None;
    assert!(only(parse::<StorageConfig>(&minimal_storage(), &none)).contains("no secret is set"));
    let text = minimal_storage() + "rpc_secret = 'abc'\n";
    assert!(only(parse::<StorageConfig>(&text, &none)).contains("64 hexadecimal digits"));
    let text = format!("{}rpc_secret = '{SECRET}'\n", minimal_storage());
    let config = parse::<StorageConfig>(&text, &none).unwrap();
    assert_eq!(config.rpc_secret().as_bytes(), &[0xab; 32]);
    assert!(!format!("{config:?}").contains("abab"), "{config:?}");
}

#[test]
fn a_file_with_a_secret_in_it_must_be_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.toml");
    let text = format!("{}rpc_secret = '{SECRET}'\n[admin]\nadmin_token = 'letmein'\n", minimal_gateway());
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let none = |_: &str| None;
    let error = load::<GatewayConfig>(&path, &none).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    let allow = |name: &str| (name == "HAYLOFT_ALLOW_WORLD_READABLE_SECRETS").then(|| "true".to_owned());
    assert!(load::<GatewayConfig>(&path, &allow).is_ok());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = load::<GatewayConfig>(&path, &none).unwrap();
    assert!(config.admin.admin_token().unwrap().matches("letmein"));
    assert!(!format!("{config:?}").contains("letmein"));
}

#[test]
fn errors_name_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.toml");
    std::fs::write(&path, minimal_storage() + "bogus = 1\nmetadata_fsynk = true\n").unwrap();
    let error = load::<StorageConfig>(&path, &env).unwrap_err().to_string();
    let lines: Vec<_> = error.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[1].starts_with(&format!("{}:4: unknown key `metadata_fsynk`", path.display())), "{error}");
    let gone = load::<StorageConfig>(&dir.path().join("gone"), &env).unwrap_err().to_string();
    assert!(gone.contains("cannot read this file"), "{gone}");
}

#[test]
fn new_gives_the_same_defaults_as_an_almost_empty_file() {
    let secret = RpcSecret::from_hex(SECRET).unwrap();
    let made = StorageConfig::new(Path::new("/m"), Path::new("/d"), secret.clone());
    assert_eq!(storage(&minimal_storage()).unwrap(), made);
    let made = GatewayConfig::new(vec!["a:1".parse().unwrap()], secret);
    assert_eq!(gateway(&minimal_gateway()).unwrap(), made);
}

/// The keys a file shows, as `section.key`, with the lines above each; `#key = …` counts.
fn shown(text: &str) -> Vec<(String, bool)> {
    let mut section = String::new();
    let mut documented = false;
    let mut keys = Vec::new();
    for line in text.lines() {
        let bare = line.strip_prefix('#').unwrap_or(line);
        let is_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some((key, _)) = bare.split_once(" = ").filter(|(key, _)| key.chars().all(is_key)) {
            keys.push((format!("{section}{key}"), documented));
            documented = false;
        } else if line.starts_with("# ") {
            documented = !line.starts_with("# --");
        } else if line.is_empty() {
            documented = false;
        }
    }
    keys
}

/// The keys of the structs, as `section.key`, without sections and without what is only inside lists.
fn known_keys(known: &Known) -> Vec<String> {
    let mut keys = Vec::new();
    for key in known.keys {
        match known.sections.iter().find(|(section, _)| section == key) {
            Some((section, inner)) if *section != "data_dir" => {
                keys.extend(inner.keys.iter().map(|key| format!("{section}.{key}")));
            }
            _ => keys.push((*key).to_owned()),
        }
    }
    keys
}

fn check_example(text: &str, known: &Known) {
    let shown = shown(text);
    for (key, documented) in &shown {
        assert!(documented, "`{key}` has no comment above it");
    }
    let mut shown: Vec<_> = shown.into_iter().map(|(key, _)| key).collect();
    shown.sort();
    shown.dedup();
    let mut known = known_keys(known);
    known.sort();
    assert_eq!(shown, known, "the example file shows exactly the keys that exist");
}

#[test]
fn the_examples_show_every_key_with_a_comment_and_no_other() {
    check_example(STORAGE_EXAMPLE, &StorageConfig::known());
    check_example(GATEWAY_EXAMPLE, &GatewayConfig::known());
}

#[test]
fn the_examples_show_the_defaults() {
    let config = storage(STORAGE_EXAMPLE).unwrap();
    let text = "metadata_dir = '/var/lib/hayloft/meta'\ndata_dir = '/var/lib/hayloft/data'\n\
                rpc_secret_file = '/etc/hayloft/rpc_secret'\n";
    assert_eq!(config, storage(text).unwrap());
    let config = gateway(GATEWAY_EXAMPLE).unwrap();
    let text = "storage_peers = ['home1.example.org:3901', 'home2.example.org:3901']\n\
                rpc_secret_file = '/etc/hayloft/rpc_secret'\n";
    assert_eq!(config, gateway(text).unwrap());
}

#[test]
fn the_defaults_are_written_out_not_commented_out() {
    // A key that has a default must be visible as such: commented lines are those that are `None`.
    for (text, unset) in [
        (STORAGE_EXAMPLE, vec!["rpc_public_addr", "rpc_secret", "otlp_endpoint"]),
        (
            GATEWAY_EXAMPLE,
            vec!["zone", "identity_file", "root_domain", "tls_cert", "otlp_endpoint", "rpc_secret"],
        ),
    ] {
        for key in unset {
            assert!(text.contains(&format!("\n#{key} = ")), "{key}");
            assert!(!text.contains(&format!("\n{key} = ")), "{key}");
        }
    }
}

#[test]
fn the_commented_lines_of_the_examples_are_valid() {
    let uncomment = |text: &str, drop: &[&str]| -> String {
        text.lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') || rest.starts_with("    {") => rest,
                _ => line,
            })
            .filter(|line| !drop.iter().any(|start| line.starts_with(start)))
            .fold(String::new(), |text, line| text + line + "\n")
    };
    // Alternatives exclude each other; the placeholders of secrets are no secrets.
    let text = uncomment(STORAGE_EXAMPLE, &["data_dir = \"", "metrics_token_file"]);
    let text = text.replace("rpc_secret_file = ", "#").replace("<64 hexadecimal digits>", SECRET);
    let config = parse::<StorageConfig>(&text, &|_| None).unwrap();
    assert_eq!(config.data_dir.len(), 3);
    assert_eq!(config.trace.otlp_endpoint.as_deref(), Some("http://127.0.0.1:4318"));
    let text = uncomment(GATEWAY_EXAMPLE, &["admin_token_file", "metrics_token_file", "rpc_secret_file"]);
    let text = text.replace("<64 hexadecimal digits>", SECRET);
    let config = parse::<GatewayConfig>(&text, &|_| None).unwrap();
    assert_eq!(config.zone.as_deref(), Some("paris"));
}
