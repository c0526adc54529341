//! The unix socket of the admin API. Who may open it is who may write to the file: its owner and its group (0660). The
//! kernel says which user that is, and the audit log keeps it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::audit::Who;
use crate::config::{Settings, state};

/// Connections at the same time: a few terminals that watch, and the verbs.
const CONNECTIONS: usize = 64;
const HEADERS: Duration = Duration::from_secs(10);

/// Where the socket may be, in the order in which a client looks; the server takes the first.
pub fn places(settings: &Settings) -> Vec<PathBuf> {
    if let Some(path) = &settings.admin_socket {
        return vec![path.clone()];
    }
    let runtime = std::env::var_os("RUNTIME_DIRECTORY").filter(|d| !d.is_empty()).map(PathBuf::from);
    let mut places: Vec<PathBuf> = runtime.into_iter().chain([settings.state_dir.clone()]).collect();
    // Where the unit's server has it, for a shell that does not have the unit's environment.
    places.push("/run/hearth".into());
    places.into_iter().map(|place| place.join("admin.sock")).collect()
}

/// The file is removed when the server ends in order.
pub struct Bound {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the socket. One that a killed server left is replaced; one that somebody answers at is not.
pub async fn bind(path: &Path) -> io::Result<Bound> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server answers there"));
    }
    if fs::symlink_metadata(path)
        .is_ok_and(|there| std::os::unix::fs::FileTypeExt::is_socket(&there.file_type()))
    {
        fs::remove_file(path)?;
    }
    if let Some(directory) = path.parent() {
        state::make_directory(directory)?;
    }
    // Until the next line only the owner can write to it, under any usual umask.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(Bound { listener, path: path.to_owned() })
}

/// Answers for as long as the runtime lives.
pub async fn serve(bound: Bound, router: Router) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = permits.clone().acquire_owned().await.expect("bug: the semaphore is never closed");
        let stream = match bound.listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!("a connection to the admin socket could not be accepted: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let who = stream.peer_cred().map_or(Who::Server, |peer| Who::user(peer.uid()));
        let routes = router.clone().map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(who.clone());
            request
        });
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
            // One that ends badly is the client's affair.
            let _ = connection.await;
            drop(permit);
        });
    }
}
