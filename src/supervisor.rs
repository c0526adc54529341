//! What the service manager is told (systemd, or whoever speaks its protocol): that the server is loading, ready, reloading,
//! stopping, and that it is alive. Without `NOTIFY_SOCKET` nobody is told anything.

use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use sd_notify::NotifyState::{
    self, ExtendTimeoutUsec, FdName, FdStore, FdStoreRemove, Ready, Reloading, Status, Stopping, Watchdog,
};

use crate::server::Shared;

/// While something gets on, the service manager waits this much longer for it.
const PATIENCE: Duration = Duration::from_secs(300);

/// How often progress is told.
const OFTEN: Duration = Duration::from_secs(1);

/// Hands a message to the thread that sends them, in their order: a service manager that does not read must not hold the
/// server up. Where too many wait already the message is dropped.
fn tell(states: &[NotifyState<'_>]) {
    static MESSAGES: OnceLock<SyncSender<String>> = OnceLock::new();
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let messages = MESSAGES.get_or_init(|| {
        let (messages, waiting) = sync_channel(64);
        // Without the thread nobody is told anything, and nothing else is lost.
        let _ = std::thread::Builder::new().name("notify".to_owned()).spawn(move || send(&waiting));
        messages
    });
    let text: Vec<String> = states.iter().map(NotifyState::to_string).collect();
    let _ = messages.try_send(text.join("\n"));
}

fn send(waiting: &Receiver<String>) {
    for message in waiting {
        if let Err(e) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
            tracing::debug!("the service manager cannot be told: {e}");
        }
    }
}

fn longer(time: Duration) -> NotifyState<'static> {
    ExtendTimeoutUsec(time.as_micros().min(u128::from(u32::MAX)) as u32)
}

/// Bytes of a model have been read. A load that gets on is not killed however long it takes; one that hangs is.
pub fn loading(what: &str, done: u64, of: u64) {
    static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
    let now = Instant::now();
    match TOLD.lock() {
        Ok(mut told) if told.is_none_or(|told| now - told >= OFTEN) => *told = Some(now),
        _ => return,
    }
    let percent = (done * 100).checked_div(of).unwrap_or(100);
    tell(&[Status(&format!("loading {what}: {percent} %")), longer(PATIENCE)]);
}

pub fn ready(status: &str) {
    tell(&[Ready, Status(status)]);
}

/// Tells the beginning of a reload; [`ready`] tells its end. The time is for service managers that wait for it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[Reloading, now, Status("reloading")]),
        Err(_) => tell(&[Reloading, Status("reloading")]),
    }
}

/// The server drains, for at most `time`.
pub fn stopping(time: Duration) {
    tell(&[Stopping, Status("draining"), longer(time + Duration::from_secs(10))]);
}

/// Has a copy of a socket kept under a name until the next start, where it is passed. A service manager without a store for
/// this service ignores it.
pub fn keep(name: &str, socket: BorrowedFd<'_>) {
    if let Err(e) = sd_notify::notify_with_fds(&[FdStore, FdName(name)], &[socket]) {
        tracing::debug!("the service manager cannot be given {name}: {e}");
    }
}

/// Has the copy closed.
pub fn forget(name: &str) {
    tell(&[FdStoreRemove, FdName(name)]);
}

/// Feeds the watchdog for as long as every engine gets on; a step that hangs starves it. The async threads feed it, so they
/// must get on too. Returns at once where there is no watchdog.
pub async fn watchdog(shared: Shared) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut sick = false;
    loop {
        match shared.health.sick(&shared.models) {
            None => {
                tell(&[Watchdog]);
                sick = false;
            }
            Some(what) => {
                if !std::mem::replace(&mut sick, true) {
                    tracing::error!("{what}: the watchdog is not fed any more");
                    tell(&[Status(&what)]);
                }
            }
        }
        tokio::time::sleep(limit / 3).await;
    }
}
