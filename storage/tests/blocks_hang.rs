//! A disk that hangs holds up its own blocks and a bounded number of threads, however many callers give up.
#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod blocks_support;

use blocks_support::{IDENTITY, block, small};
use hayloft_common::env::Env;
use hayloft_storage::blocks::{BlockConfig, BlockStore, DiskConfig, MemoryIndex};
use hayloft_storage::disk::{Access, Disk, DiskFile, Entry, MemoryDisk, Space};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::sync::Arc;

/// How many threads hang, and whether they have to.
#[derive(Default)]
struct Hang {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Hang {
    fn pass(&self) {
        let mut state = self.state.lock();
        if state.0 {
            state.1 += 1;
            self.changed.notify_all();
        }
        while state.0 {
            self.changed.wait(&mut state);
        }
    }
}

/// A disk that hangs when a file is opened or created.
struct Hanging(MemoryDisk, Arc<Hang>);

impl Disk for Hanging {
    fn name(&self) -> String {
        self.0.name()
    }
    fn open(&self, path: &str, access: Access) -> io::Result<Arc<dyn DiskFile>> {
        self.1.pass();
        self.0.open(path, access)
    }
    fn create(&self, path: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.1.pass();
        self.0.create(path)
    }
    fn create_dir(&self, path: &str) -> io::Result<bool> {
        self.0.create_dir(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.0.remove(path)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<Entry>> {
        self.0.list(dir)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.0.sync_dir(dir)
    }
    fn exists(&self, path: &str) -> io::Result<bool> {
        self.0.exists(path)
    }
    fn space(&self) -> io::Result<Space> {
        self.0.space()
    }
}

#[tokio::test]
async fn callers_that_give_up_on_a_hanging_disk_do_not_pile_up_threads() {
    let hang = Arc::new(Hang::default());
    let disk = DiskConfig::disk(Arc::new(Hanging(MemoryDisk::new("disk"), hang.clone())));
    let config = BlockConfig { reads_per_disk: 2, writes_per_disk: 2, ..small() };
    let index = MemoryIndex::default();
    let store = BlockStore::open(vec![disk], IDENTITY, config, Env::real(), &index).unwrap();
    let (hash, envelope) = block(1, 2000);
    let location = store.put(hash, envelope).await.unwrap();
    hang.state.lock().0 = true;
    for _ in 0..20 {
        let get = store.get(&hash, &location);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(10), get).await;
    }
    assert!(hang.state.lock().1 <= 2, "{} reads hang", hang.state.lock().1);
    for seed in 2..22 {
        let (hash, envelope) = block(seed, 2000);
        let put = store.put(hash, envelope);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(10), put).await;
    }
    assert!(hang.state.lock().1 <= 4, "{} reads and writes hang", hang.state.lock().1);
    *hang.state.lock() = (false, 0);
    hang.changed.notify_all();
    assert!(store.get(&hash, &location).await.is_ok());
}
