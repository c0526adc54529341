//! Models on disk, through the binary: what comes in, what is kept out, what a kill, a full disk or a flipped bit does.

mod archives;
mod bundles;
mod damage;
mod disks;
mod importing;
mod killed;
#[cfg(feature = "pull")]
mod pulling;
mod refused;
mod rig;
