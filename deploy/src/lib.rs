//! Operating Hayloft: the command `hayloft`.
//!
//! [`ctl`] speaks to the admin interface of any gateway through [`client`]; [`dev`] runs a whole cluster on
//! this machine as separate processes. Neither links a daemon.

pub mod client;
pub mod cluster_file;
pub mod ctl;
pub mod dev;
