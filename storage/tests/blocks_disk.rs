//! The disk seam: both versions keep the same promises; the one in memory does what its fault model says.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

use hayloft_storage::disk::{Access, Disk, Entry, MemoryDisk, RealDisk};
use std::io::ErrorKind;

/// Runs a check on a real directory and on a disk in memory.
fn on_both(check: impl Fn(&dyn Disk)) {
    let dir = tempfile::tempdir().unwrap();
    check(&RealDisk::new(dir.path()));
    check(&MemoryDisk::new("memory"));
}

fn read(disk: &dyn Disk, path: &str) -> Vec<u8> {
    let file = disk.open(path, Access::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize + 10];
    let read = file.read_at(&mut bytes, 0).unwrap();
    bytes.truncate(read);
    bytes
}

fn write(disk: &dyn Disk, path: &str, bytes: &[u8]) {
    disk.create(path).unwrap().write_at(bytes, 0).unwrap();
}

#[test]
fn files_keep_what_is_written_and_gaps_are_zeros() {
    on_both(|disk| {
        let file = disk.create("a").unwrap();
        assert!(file.is_empty().unwrap());
        file.write_at(b"hello", 3).unwrap();
        file.write_at(b"J", 3).unwrap();
        file.sync().unwrap();
        assert_eq!(read(disk, "a"), b"\0\0\0Jello");
        let mut part = [9; 4];
        assert_eq!(file.read_at(&mut part, 6).unwrap(), 2);
        assert_eq!(part, [b'l', b'o', 9, 9]);
        assert_eq!(file.read_at(&mut part, 100).unwrap(), 0);
        if let Some(read) = file.read_cached_at(&mut part, 3) {
            assert_eq!((read, &part), (4, b"Jell"));
        }
        file.truncate(4).unwrap();
        file.truncate(6).unwrap();
        assert_eq!(read(disk, "a"), b"\0\0\0J\0\0");
        let reader = disk.open("a", Access::Read).unwrap();
        assert!(reader.write_at(b"x", 0).is_err());
    });
}

#[test]
fn names_are_created_once_renamed_over_and_removed() {
    on_both(|disk| {
        disk.create_dir("").unwrap();
        assert!(disk.create_dir("d").unwrap());
        assert!(!disk.create_dir("d").unwrap());
        write(disk, "d/a", b"1");
        assert_eq!(disk.create("d/a").err().unwrap().kind(), ErrorKind::AlreadyExists);
        write(disk, "b", b"2");
        disk.rename("b", "d/a").unwrap();
        assert_eq!(read(disk, "d/a"), b"2");
        assert!(!disk.exists("b").unwrap() && disk.exists("d/a").unwrap());
        write(disk, "c", b"3");
        let entry = |name: &str, is_dir| Entry { name: name.into(), is_dir };
        assert_eq!(disk.list("").unwrap(), [entry("c", false), entry("d", true)]);
        assert_eq!(disk.list("d").unwrap(), [entry("a", false)]);
        disk.sync_dir("d").unwrap();
        disk.sync_dir("").unwrap();
        disk.remove("d/a").unwrap();
        for missing in [
            disk.remove("d/a").unwrap_err(),
            disk.rename("d/a", "x").unwrap_err(),
            disk.open("d/a", Access::Write).err().unwrap(),
            disk.create("e/a").err().unwrap(),
            disk.list("e").unwrap_err(),
            disk.create_dir("e/f").unwrap_err(),
            disk.sync_dir("e").unwrap_err(),
        ] {
            assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
        }
        let space = disk.space().unwrap();
        assert!(space.available <= space.total && space.total > 0);
    });
}

#[test]
fn an_open_file_outlives_its_name() {
    on_both(|disk| {
        write(disk, "a", b"old");
        write(disk, "b", b"new");
        let old = disk.open("a", Access::Read).unwrap();
        disk.rename("b", "a").unwrap();
        let mut bytes = [0; 3];
        old.read_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes, read(disk, "a").as_slice()), (b"old", b"new".as_slice()));
    });
}

#[test]
fn after_a_kill_all_is_visible_and_no_more_durable() {
    let disk = MemoryDisk::new("memory");
    write(&disk, "a", b"1");
    disk.sync_dir("").unwrap();
    write(&disk, "b", b"2");
    disk.kill();
    assert_eq!((read(&disk, "a"), read(&disk, "b")), (b"1".to_vec(), b"2".to_vec()));
    disk.lose_power();
    assert_eq!(read(&disk, "a"), b"");
    assert!(!disk.exists("b").unwrap());
}

#[test]
fn a_data_directory_is_created_with_its_parents() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::new(dir.path().join("deep/er"));
    assert_eq!(disk.list("").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(disk.create_dir("").unwrap());
    assert!(!disk.create_dir("").unwrap());
    assert_eq!(disk.list("").unwrap(), []);
}

#[test]
fn a_crash_keeps_what_was_synced_and_tears_the_rest() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let disk = MemoryDisk::new("memory");
        write(&disk, "kept", b"synced");
        disk.open("kept", Access::Write).unwrap().sync().unwrap();
        write(&disk, "unnamed", b"synced");
        disk.open("unnamed", Access::Write).unwrap().sync().unwrap();
        disk.remove("unnamed").unwrap();
        disk.sync_dir("").unwrap();
        let file = disk.open("kept", Access::Write).unwrap();
        file.write_at(&[7; 10_000], 6).unwrap();
        write(&disk, "new", b"");
        disk.crash(seed);
        assert!(file.len().is_err(), "handles die with the machine");
        let bytes = read(&disk, "kept");
        assert_eq!(&bytes[..6], b"synced");
        assert!(bytes[6..].iter().all(|byte| [0, 7].contains(byte)));
        assert!(!disk.exists("unnamed").unwrap());
        outcomes.insert((bytes.len(), bytes.contains(&0), disk.exists("new").unwrap()));
    }
    assert!(outcomes.contains(&(6, false, false)), "all lost");
    assert!(outcomes.contains(&(10_006, false, true)), "all kept");
    assert!(outcomes.iter().any(|(_, holes, _)| *holes), "holes");
    assert!(outcomes.iter().any(|(len, ..)| (7..10_006).contains(len)), "torn");
}

#[test]
fn nothing_becomes_durable_by_a_sync_after_a_failed_one() {
    let mut lost = 0;
    for seed in 0..50 {
        let disk = MemoryDisk::new("memory");
        let file = disk.create("a").unwrap();
        disk.sync_dir("").unwrap();
        file.write_at(b"gone", 0).unwrap();
        disk.fail_syncs(1);
        assert!(file.sync().is_err());
        file.write_at(b"kept", 4).unwrap();
        file.sync().unwrap();
        assert_eq!(read(&disk, "a"), b"gonekept");
        disk.crash(seed);
        let bytes = read(&disk, "a");
        assert_eq!(&bytes[4..], b"kept");
        lost += u32::from(&bytes[..4] != b"gone");
    }
    assert!(lost > 0);
}

#[test]
fn a_full_disk_stops_part_way_and_a_planned_crash_stops_all() {
    let disk = MemoryDisk::new("memory");
    disk.set_capacity(10);
    let file = disk.create("a").unwrap();
    assert_eq!(file.write_at(&[1; 20], 0).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 10);
    file.write_at(&[2; 10], 0).unwrap();
    disk.set_read_only(true);
    assert_eq!(file.write_at(&[3; 1], 0).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    disk.crash_after(1);
    assert_eq!(file.len().unwrap(), 10);
    assert!(file.len().is_err() && disk.has_crashed());
}
