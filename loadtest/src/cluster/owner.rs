//! Which daemon of a cluster made a connection, from /proc: the socket's number, then who holds it.
//!
//! Daemons on loopback all come from 127.0.0.1, and dial from any port. Needs no rights beyond those over one's own
//! processes. A process that is gone by the time of the question has no answer.

use std::path::Path;

/// The name of the daemon under the cluster directory `dir` that holds the connection from port `from` to port
/// `to`, both on this machine. Blocking: some milliseconds.
pub(super) fn owner(dir: &Path, from: u16, to: u16) -> Option<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let socket = format!("socket:[{}]", inode(&table, from, to)?);
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let name = daemon(&std::fs::read(entry.path().join("cmdline")).ok()?, dir)?;
        let mut handles = std::fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        let holds =
            handles.any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == &*socket));
        holds.then_some(name)
    })
}

/// The number of the socket with these local and remote ports in the text of /proc/net/tcp.
fn inode(table: &str, local: u16, remote: u16) -> Option<u64> {
    let port = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ours = port(fields.get(1)?)? == local && port(fields.get(2)?)? == remote;
        // A socket that only waits to be forgotten has number 0.
        fields.get(9)?.parse().ok().filter(|number| ours && *number != 0)
    })
}

/// The name of the daemon whose command line this is: its directory under `dir`.
fn daemon(command_line: &[u8], dir: &Path) -> Option<String> {
    command_line.split(|byte| *byte == 0).find_map(|word| {
        let config = Path::new(std::str::from_utf8(word).ok()?);
        let home = config.parent()?;
        let ours = home.parent()? == dir && config.file_name()? == "config.toml";
        Some(home.file_name().filter(|_| ours)?.to_str()?.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 0100007F:C001 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0000000000000000
   1: 0100007F:C001 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000000000000000 20
   2: 0100007F:C002 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 77 1 0000000000000000 20";

    #[test]
    fn a_socket_is_found_by_both_its_ports() {
        assert_eq!(inode(TABLE, 0xC001, 0x1F90), Some(4242));
        assert_eq!(inode(TABLE, 0xC002, 0x1F90), Some(77));
        assert_eq!(inode(TABLE, 0xC003, 0x1F90), None);
        assert_eq!(inode(TABLE, 0x1F90, 0xC001), None, "forgotten soon");
    }

    #[test]
    fn a_daemon_is_known_by_its_configuration() {
        let dir = Path::new("/d/data");
        let line = |config: &str| format!("hayloft-storage\0--config\0{config}\0").into_bytes();
        assert_eq!(daemon(&line("/d/data/storage2/config.toml"), dir), Some("storage2".into()));
        assert_eq!(daemon(&line("/other/storage2/config.toml"), dir), None);
        assert_eq!(daemon(&line("/d/data/storage2/log"), dir), None);
    }
}
