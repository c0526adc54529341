//! TLS: both protocols, certificates that change under way, clients that must show their own.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use hearth::server::tls::{Material, Tls};
use hearth::server::{Door, Limits};
use serde_json::json;

use super::authority::{Authority, Secure};
use super::client::{Line, request};
use super::hostile::counted;
use super::site::{KEY, Options, Site};

fn site(tls: &Tls) -> Site {
    let door = Door { tls: Some(tls.clone()), ..Door::default() };
    Site::with(Options { door, ..Options::default() })
}

fn tls(authority: &Authority, clients: bool) -> Tls {
    Tls::new(Material::read(&authority.files(clients)).unwrap())
}

fn live() -> Vec<u8> {
    request("GET", "/health/live", &[], "")
}

#[test]
fn a_request_is_answered_over_tls_and_cleartext_is_told_so() {
    let authority = Authority::new();
    let site = site(&tls(&authority, false));
    for protocols in [&["http/1.1"][..], &[]] {
        let secure = Secure::open(site.address, &authority.trusting(protocols, None)).unwrap();
        assert_eq!(secure.protocol(), protocols.first().map(|protocol| protocol.as_bytes()));
        let reply = secure.ask(&live()).unwrap();
        assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
    }
    let reply = Line::open(site.address, &live()).reply();
    assert_eq!((reply.status, reply.body.contains("https://")), (400, true), "{reply:?}");
    // Another authority's clients do not speak to it, nor it to them.
    assert!(Secure::open(site.address, &Authority::new().trusting(&[], None)).is_err());
    counted(&site, "cleartext", 1);
    counted(&site, "tls", 1);
}

#[test]
fn who_has_just_connected_when_the_server_stops_is_answered() {
    let authority = Authority::new();
    let mut site = site(&tls(&authority, false));
    let secure = Secure::open(site.address, &authority.trusting(&["http/1.1"], None)).unwrap();
    // Keeps the server for longer than the request takes to come.
    let _other = Secure::open(site.address, &authority.trusting(&["http/1.1"], None)).unwrap();
    site.stop();
    // The request comes a moment after the server has closed its doors.
    std::thread::sleep(Duration::from_millis(200));
    let reply = secure.ask(&live()).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
    assert!(reply.to_lowercase().contains("connection: close"), "{reply}");
}

#[test]
fn http2_carries_a_stream_and_many_requests_side_by_side() {
    let authority = Authority::new();
    let mut site = site(&tls(&authority, false));
    let address = site.address;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = authority.trusting(&["h2", "http/1.1"], None);
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        let stream = connector.connect("hearth.test".try_into().unwrap(), stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        let body =
            json!({"model": "ember", "prompt": "a@", "temperature": 0, "max_tokens": 100, "stream": true});
        let ask = |method: &str, path: &str| {
            let url = format!("https://hearth.test{path}");
            let request = axum::http::Request::builder().method(method).uri(url);
            request.header("x-api-key", KEY).header("content-type", "application/json").body(()).unwrap()
        };
        let (answer, mut upload) = client.send_request(ask("POST", "/v1/completions"), false).unwrap();
        upload.send_data(body.to_string().into(), true).unwrap();
        let mut others = Vec::new();
        for _ in 0..50 {
            client = client.ready().await.unwrap();
            others.push(client.send_request(ask("GET", "//v1/models"), true).unwrap().0);
        }
        for other in others {
            let answer = other.await.unwrap();
            assert_eq!(answer.status(), 200);
            assert!(!answer.headers().contains_key("connection"));
        }
        let mut body = answer.await.unwrap().into_body();
        let mut text = String::new();
        while let Some(piece) = body.data().await {
            let piece = piece.unwrap();
            body.flow_control().release_capacity(piece.len()).unwrap();
            text += std::str::from_utf8(&piece).unwrap();
        }
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    });
    site.stop();
    site.ended();
}

#[test]
fn an_http2_client_that_reads_nothing_is_closed_however_often_it_pings() {
    let authority = Authority::new();
    let limits = Limits { unread: Duration::from_millis(300), ..Limits::default() };
    let door = Door { tls: Some(tls(&authority, false)), ..Door::default() };
    let site = Site::with(Options { limits, door, ..Options::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = authority.trusting(&["h2"], None);
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(site.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        let stream = connector.connect("hearth.test".try_into().unwrap(), stream).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(0);
        let (client, mut connection) = builder.handshake::<_, bytes::Bytes>(stream).await.unwrap();
        let mut pings = connection.ping_pong().unwrap();
        let ended = tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        // Without a credential, and without a byte of room for the answer that says so.
        let ask = axum::http::Request::builder().uri("https://hearth.test/v1/models").body(()).unwrap();
        let answer = client.send_request(ask, true).unwrap().0.await.unwrap();
        assert_eq!(answer.status(), 401);
        tokio::spawn(async move {
            while pings.ping(h2::Ping::opaque()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        // Left alone it would have been there for good.
        let closed = tokio::time::timeout(Duration::from_secs(60), ended).await;
        assert!(closed.is_ok(), "it held its connection for a minute");
        drop((answer, client));
    });
    counted(&site, "unread", 1);
}

#[test]
fn a_new_certificate_is_shown_to_new_connections_and_old_ones_go_on() {
    let authority = Authority::new();
    let tls = tls(&authority, false);
    let site = site(&tls);
    let config = authority.trusting(&["http/1.1"], None);
    let before = Secure::open(site.address, &config).unwrap();
    assert_eq!(before.serial(), 1);
    authority.install(&authority.server(2));
    tls.swap(Material::read(&authority.files(false)).unwrap());
    assert_eq!(Secure::open(site.address, &config).unwrap().serial(), 2);
    assert!(before.ask(&live()).unwrap().starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_to_do() {
    let authority = Authority::new();
    let whole = authority.server(3);
    let refused = |certificate: &str, key: &str| {
        std::fs::write(authority.path("server.pem"), certificate).unwrap();
        std::fs::write(authority.path("server.key"), key).unwrap();
        let error = Material::read(&authority.files(true)).unwrap_err();
        format!("{} | {} | {}", error.origin, error.what, error.fix)
    };
    let half = &whole.certificate[..whole.certificate.len() / 2];
    let half_key = &whole.key[..whole.key.len() / 2];
    for (certificate, key, words) in [
        (half, &*whole.key, &["server.pem", "not in PEM form", "-----BEGIN"][..]),
        ("", &whole.key, &["server.pem", "no certificate in it"]),
        (&whole.certificate, "", &["server.key", "no private key", "passphrase"]),
        (&whole.certificate, half_key, &["server.key", "cut or damaged"]),
        (&whole.certificate, &authority.server(4).key, &["server.key", "does not belong"]),
    ] {
        let said = refused(certificate, key);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        let secret = key.lines().nth(1).unwrap_or("nothing");
        assert!(!said.contains(secret), "a line of the key is in {said}");
    }
    authority.install(&whole);
    std::fs::remove_file(authority.path("ca.pem")).unwrap();
    let error = Material::read(&authority.files(true)).unwrap_err();
    assert!(error.origin.contains("ca.pem") && error.what.contains("cannot be read"), "{error:?}");
}

#[test]
fn where_clients_must_have_a_certificate_nobody_comes_in_without_one() {
    let authority = Authority::new();
    let site = site(&tls(&authority, true));
    let ask = |config| Secure::open(site.address, &config).and_then(|secure| secure.ask(&live()));
    let good = authority.client();
    let reply = ask(authority.trusting(&["http/1.1"], Some(&good))).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
    // With TLS 1.3 the client learns of it when it reads.
    for (who, own) in [("without", None), ("of somebody else", Some(Authority::new().client()))] {
        let reply = ask(authority.trusting(&["http/1.1"], own.as_ref()));
        assert!(reply.as_ref().is_err() || reply.as_ref().is_ok_and(String::is_empty), "{who}: {reply:?}");
    }
}

#[test]
fn half_a_preface_and_half_a_handshake_are_closed() {
    let authority = Authority::new();
    let short = Duration::from_millis(200);
    let limits = Limits { first_byte: short, headers: short, idle: short, ..Limits::default() };
    let door = Door { tls: Some(tls(&authority, false)), ..Door::default() };
    let site = Site::with(Options { limits, door, ..Options::default() });
    let h2 = authority.trusting(&["h2"], None);
    // Each of them would wait for a minute and fail; the server ends it.
    let closes = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(
            ended.as_ref().map_or_else(|e| e.kind() == std::io::ErrorKind::ConnectionReset, |_| true),
            "{ended:?}"
        );
    };
    for sent in [&b"PRI * HTTP/2.0\r\n"[..], b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        use std::io::Write;
        let mut secure = Secure::open(site.address, &h2).unwrap();
        secure.0.write_all(sent).unwrap();
        secure.0.flush().unwrap();
        closes(secure.0.sock);
    }
    // TLS itself: its first byte and no more.
    let mut stream = TcpStream::connect(site.address).unwrap();
    std::io::Write::write_all(&mut stream, &[0x16, 3, 1]).unwrap();
    closes(stream);
    counted(&site, "headers", 3);
    counted(&site, "tls_timeout", 1);
    let good = Secure::open(site.address, &authority.trusting(&["http/1.1"], None)).unwrap();
    assert!(good.ask(&live()).unwrap().starts_with("HTTP/1.1 200 OK"));
}
