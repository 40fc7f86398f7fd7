//! Secrets of the configuration: where they come from, and that they do not leak.
//!
//! A secret comes from the environment (`NAME`, or a file named by `NAME_FILE`) or from the configuration
//! file (`key`, or a file named by `key_file`), the environment first. A file that other users of the
//! machine can read is refused, unless `allow_world_readable_secrets` says otherwise. Secrets never show
//! in `Debug`, and are compared in constant time.

use std::fmt;
use std::path::{Path, PathBuf};

/// Reads a variable of the environment; replaced in tests.
pub type EnvVars<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A secret text, such as a bearer token. Never printed.
#[derive(Clone, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for those who must send it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `text` is this secret, in a time that tells nothing of where they differ.
    pub fn matches(&self, text: &str) -> bool {
        // blake3's equality is constant-time, and hashing hides the length.
        blake3::hash(self.0.as_bytes()) == blake3::hash(text.as_bytes())
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// The cluster's shared secret: 32 bytes. Never printed.
#[derive(Clone)]
pub struct RpcSecret([u8; 32]);

impl RpcSecret {
    /// Wraps the bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From 64 hexadecimal digits; the error does not repeat the text.
    pub fn from_hex(text: &str) -> Result<Self, SecretError> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes)
            .map_err(|_| SecretError::NotHex { length: text.trim().len() })?;
        Ok(Self(bytes))
    }

    /// The bytes, for the handshake.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for RpcSecret {
    fn eq(&self, other: &Self) -> bool {
        blake3::Hash::from(self.0) == blake3::Hash::from(other.0)
    }
}

impl fmt::Debug for RpcSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error(
        "the secret must be 64 hexadecimal digits (32 bytes), but has {length} characters; make one with `openssl rand -hex 32`"
    )]
    NotHex { length: usize },
    #[error("cannot read secret file {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(
        "{path} holds a secret but other users of this machine can read it (mode {mode:04o}): run `chmod 600 {path}`, or set allow_world_readable_secrets = true",
        path = path.display()
    )]
    WorldReadable { path: PathBuf, mode: u32 },
    #[error("secret file {path} is empty", path = path.display())]
    Empty { path: PathBuf },
    #[error("`{key}` and `{key}_file` are both set: leave one out")]
    Both { key: &'static str },
}

/// Refuses a file that users other than its owner and group can read or write.
pub(super) fn check_mode(path: &Path) -> Result<(), SecretError> {
    use std::os::unix::fs::PermissionsExt as _;
    let meta = std::fs::metadata(path).map_err(|source| SecretError::Read { path: path.into(), source })?;
    let mode = meta.permissions().mode() & 0o7777;
    // Group access stays allowed: container platforms hand secrets to a service's group.
    if mode & 0o007 != 0 { Err(SecretError::WorldReadable { path: path.into(), mode }) } else { Ok(()) }
}

/// The trimmed content of a secret's file.
pub fn read_file(path: &Path, allow_world_readable: bool) -> Result<String, SecretError> {
    if !allow_world_readable {
        check_mode(path)?;
    }
    let text =
        std::fs::read_to_string(path).map_err(|source| SecretError::Read { path: path.into(), source })?;
    let text = text.trim();
    if text.is_empty() { Err(SecretError::Empty { path: path.into() }) } else { Ok(text.to_owned()) }
}

/// Where one secret may come from.
pub(super) struct Source<'a> {
    /// The key in the file, such as `rpc_secret`; `{key}_file` names a file instead.
    pub(super) key: &'static str,
    /// The variable, such as `HAYLOFT_RPC_SECRET`; `{env}_FILE` names a file instead.
    pub(super) env: &'static str,
    pub(super) inline: Option<&'a Secret>,
    pub(super) file: Option<&'a Path>,
}

impl Source<'_> {
    /// The secret, or `None` if it is set nowhere.
    pub(super) fn resolve(
        &self,
        env: EnvVars<'_>,
        allow_world_readable: bool,
    ) -> Result<Option<String>, SecretError> {
        if let Some(text) = env(self.env).filter(|text| !text.trim().is_empty()) {
            return Ok(Some(text.trim().to_owned()));
        }
        if let Some(path) = env(&format!("{}_FILE", self.env)).filter(|path| !path.is_empty()) {
            return read_file(Path::new(&path), allow_world_readable).map(Some);
        }
        match (self.inline, self.file) {
            (Some(_), Some(_)) => Err(SecretError::Both { key: self.key }),
            (Some(secret), None) => Ok(Some(secret.expose().trim().to_owned())),
            (None, Some(path)) => read_file(path, allow_world_readable).map(Some),
            (None, None) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn file(dir: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn secrets_do_not_show_in_debug() {
        let secret = RpcSecret::from_hex(&"ab".repeat(32)).unwrap();
        assert_eq!(format!("{secret:?} {:?}", Secret::new("abab")), "(secret) (secret)");
        let error = RpcSecret::from_hex("not the secret").unwrap_err().to_string();
        assert!(error.contains("14 characters") && !error.contains("not the secret"), "{error}");
    }

    #[test]
    fn the_environment_comes_before_the_file_and_a_text_before_a_path() {
        let dir = tempfile::tempdir().unwrap();
        let from_file = file(dir.path(), "a", " in-file\n", 0o600);
        let from_env_file = file(dir.path(), "b", "in-env-file", 0o640);
        let inline = Secret::new("inline");
        let mut source = Source { key: "k", env: "E", inline: None, file: None };
        let none = |_: &str| None;
        assert_eq!(source.resolve(&none, false).unwrap(), None);
        source.file = Some(&from_file);
        assert_eq!(source.resolve(&none, false).unwrap().as_deref(), Some("in-file"));
        let env_file = |name: &str| (name == "E_FILE").then(|| from_env_file.display().to_string());
        assert_eq!(source.resolve(&env_file, false).unwrap().as_deref(), Some("in-env-file"));
        let env = |name: &str| (name == "E").then(|| "in-env".to_owned());
        assert_eq!(source.resolve(&env, false).unwrap().as_deref(), Some("in-env"));
        source.inline = Some(&inline);
        let error = source.resolve(&none, false).unwrap_err();
        assert_eq!(error.to_string(), "`k` and `k_file` are both set: leave one out");
    }

    #[test]
    fn a_world_readable_file_is_refused_unless_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path(), "secret", "x", 0o644);
        let error = read_file(&path, false).unwrap_err().to_string();
        assert!(error.contains("mode 0644") && error.contains("chmod 600"), "{error}");
        assert_eq!(read_file(&path, true).unwrap(), "x");
        let empty = file(dir.path(), "empty", "\n", 0o600);
        assert!(matches!(read_file(&empty, false), Err(SecretError::Empty { .. })));
        assert!(matches!(read_file(&dir.path().join("gone"), false), Err(SecretError::Read { .. })));
    }
}
