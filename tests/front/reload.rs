//! Reloads under load, good and bad ones in turn: a bad one changes nothing, a good one is seen by the next connection, and
//! no request fails for either.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;

use super::authority::{Authority, Secure};
use super::client::request;
use super::service::{Life, Manager, Over, quoted, times};
use super::site::KEY;

/// Reloads, and waits until the log has one more line that says how it went.
fn reload(life: &Life, word: &str) {
    let count = || life.said().matches(word).count();
    let before = count();
    life.signal("-HUP");
    let end = Instant::now() + Duration::from_secs(60);
    while count() == before {
        assert!(Instant::now() < end, "no {word:?} in {}", life.said());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn reloads_under_load_fail_no_request() {
    let authority = Authority::new();
    let manager = Manager::new();
    let file = manager.path("hearth.toml");
    let settings = |allow: &str| {
        format!(
            "[server]\ntls_cert = {}\ntls_key = {}\nallow = [{allow:?}]\n[log]\nlevel = \"info\"\n",
            quoted(&authority.path("server.pem")),
            quoted(&authority.path("server.key")),
        )
    };
    std::fs::write(&file, settings("127.0.0.0/8")).unwrap();
    let life = manager.start(&["--config", &file.display().to_string()]);
    manager.until("READY=1");
    let config = authority.trusting(&["http/1.1"], None);
    let (served, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let body =
        json!({"model": "ember-demo", "prompt": "def main(", "max_tokens": 4, "temperature": 0}).to_string();
    let headers = [("x-api-key", KEY), ("content-type", "application/json")];
    let ask = request("POST", "/v1/completions", &headers, &body);
    let address = manager.address();
    std::thread::scope(|scope| {
        let _over = Over(&over);
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Relaxed) {
                    let reply = Secure::open(address, &config).unwrap().ask(&ask).unwrap();
                    assert!(
                        reply.starts_with("HTTP/1.1 200 OK") && reply.contains("finish_reason"),
                        "{reply}"
                    );
                    served.fetch_add(1, Relaxed);
                }
            });
        }
        for round in 2..2 + times("HEARTH_RELOADS", 20) / 2 {
            let bad = authority.server(round);
            let half = &bad.certificate[..bad.certificate.len() / 2];
            let keep = |name: &str| std::fs::read_to_string(authority.path(name)).unwrap();
            let (certificate, key) = (keep("server.pem"), keep("server.key"));
            let wrong = match round % 5 {
                0 => (half, &*key, settings("127.0.0.0/8")),
                1 => (&*bad.certificate, &*key, settings("127.0.0.0/8")),
                2 => (&*certificate, &*key, settings("127.0.0.1/8")),
                3 => (&*certificate, &*key, settings("127.0.0.0/8").replace("allow", "alow")),
                _ => (&*certificate, &*key, settings("127.0.0.0/8") + "[server"),
            };
            std::fs::write(authority.path("server.pem"), wrong.0).unwrap();
            std::fs::write(authority.path("server.key"), wrong.1).unwrap();
            std::fs::write(&file, wrong.2).unwrap();
            reload(&life, "not reloaded, nothing has changed");
            let shown = Secure::open(manager.address(), &config).unwrap().serial();
            assert_eq!(shown, if round == 2 { 1 } else { round - 1 }, "after a bad reload");

            std::fs::write(&file, settings("127.0.0.0/8")).unwrap();
            authority.install(&authority.server(round));
            reload(&life, " reloaded: ");
            let shown = Secure::open(manager.address(), &config).unwrap().serial();
            assert_eq!(shown, round, "after a good reload");
        }
        let told = manager.until("RELOADING=1");
        assert!(told.contains("MONOTONIC_USEC="), "{told}");
        let before = served.load(Relaxed);
        while served.load(Relaxed) < before + 6 {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    // And what may not come any more does not.
    std::fs::write(&file, settings("10.0.0.0/8")).unwrap();
    reload(&life, " reloaded: ");
    assert!(Secure::open(manager.address(), &config).is_err());
    life.signal("-TERM");
    assert_eq!(life.ended(), Some(0));
}
