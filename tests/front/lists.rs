//! Who may come, by address, directly and behind proxies.

use std::sync::Arc;

use hearth::server::addresses::Addresses;
use hearth::server::{Door, Limits};
use serde_json::json;

use super::client::{Line, Reply, request};
use super::hostile::{counted, refused};
use super::site::{KEY, Options, Site};

fn lists(allow: &str, deny: &str, proxies: &str) -> Addresses {
    let networks = |text: &str| text.parse().unwrap();
    Addresses { allow: networks(allow), deny: networks(deny), proxies: networks(proxies) }
}

fn site(addresses: Addresses) -> (Site, Door) {
    let door = Door::new(addresses, None);
    (Site::with(Options { door: door.clone(), ..Options::default() }), door)
}

fn from(site: &Site, forwarded: &str) -> Option<Reply> {
    let headers = [("x-api-key", KEY), ("x-forwarded-for", forwarded)];
    Line::open(site.address, &request("GET", "/v1/models", &headers, "")).reply_or_end()
}

#[test]
fn who_is_not_on_the_list_gets_not_a_byte() {
    let (site, door) = site(lists("10.0.0.0/8", "", ""));
    assert!(from(&site, "10.1.1.1").is_none(), "what a stranger says of itself does not count");
    // A reload counts for the next connection.
    door.addresses.store(Arc::new(lists("10.0.0.0/8, 127.0.0.0/8", "", "")));
    assert_eq!(from(&site, "10.1.1.1").unwrap().status, 200);
    door.addresses.store(Arc::new(lists("", "127.0.0.1", "")));
    assert!(from(&site, "10.1.1.1").is_none());
    // The metrics have a list of their own.
    counted(&site, "address", 2);
    assert_eq!(refused(&site, ""), 2);
}

#[test]
fn behind_a_trusted_proxy_it_is_the_client_that_counts() {
    let (site, _) = site(lists("10.0.0.0/8", "10.6.6.0/24", "127.0.0.0/8"));
    assert_eq!(from(&site, "10.1.1.1").unwrap().status, 200);
    assert_eq!(from(&site, "6.6.6.6, 10.1.1.1").unwrap().status, 200, "the client wrote the first one");
    for refused in ["10.6.6.1", "192.168.0.1", "10.1.1.1, 192.168.0.1", "not an address", ""] {
        let reply = from(&site, refused).unwrap();
        assert_eq!(reply.status, 403, "{refused}");
        assert_eq!(reply.json()["error"]["code"], "address_not_allowed");
        assert_eq!(reply.json()["detail"], json!("This address may not call here."));
    }
}

#[test]
fn a_denied_caller_is_refused_on_the_connection_that_it_has() {
    let (site, door) = site(lists("", "", ""));
    let two = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut line = Line::open(site.address, two);
    assert_eq!(line.next_reply().status, 200);
    door.addresses.store(Arc::new(lists("", "127.0.0.0/8", "")));
    line.send(two);
    assert_eq!(line.next_reply().status, 403);
}

#[test]
fn one_address_cannot_take_every_place() {
    let limits = Limits { per_address: 3, ..Limits::default() };
    let door = Door::new(lists("", "", ""), None);
    let site = Site::with(Options { limits, door: door.clone(), ..Options::default() });
    let held: Vec<Line> = (0..3).map(|_| Line::open(site.address, b"GET ")).collect();
    // The fourth is closed, as soon as the first three have their places.
    while from(&site, "").is_some() {}
    counted(&site, "per_address", 1);
    drop(held);
    while from(&site, "").is_none() {}
    // A trusted proxy speaks for many.
    door.addresses.store(Arc::new(lists("", "", "127.0.0.1")));
    let _held: Vec<Line> = (0..6).map(|_| Line::open(site.address, b"GET ")).collect();
    assert_eq!(from(&site, "10.0.0.1").unwrap().status, 200);
}
