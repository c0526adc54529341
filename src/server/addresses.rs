//! Who may call at all, by address (step 1 in the life of a request), and who it is behind a proxy.
//!
//! There is one space of addresses, that of IPv6: an IPv4 address and its spelling in IPv6 (`::ffff:10.0.0.1`) are the same
//! caller, whichever socket took the connection, and no list can be passed by changing the spelling.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use axum::http::HeaderMap;
use ipnet::{IpNet, Ipv6Net};

use crate::config::keys::list;

/// Networks and single addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<Ipv6Net>);

/// Why a text names no network; reads after "it must be".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworksError {
    #[error("networks or addresses like 10.0.0.0/8, 192.168.1.7 or fd00::/8, and {0:?} is none")]
    None(String),
    #[error("a network's first address: {given} lies in {network}, which is how to write it")]
    Inside { given: String, network: IpNet },
}

impl FromStr for Networks {
    type Err = NetworksError;

    fn from_str(text: &str) -> Result<Self, NetworksError> {
        list(text).map(network).collect::<Result<_, _>>().map(Self)
    }
}

fn network(text: &str) -> Result<Ipv6Net, NetworksError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Ipv6Net::from(spelt(address)));
    }
    let network: IpNet = text.parse().map_err(|_| NetworksError::None(text.to_owned()))?;
    // Most likely a slip, and which network was meant is not ours to guess.
    if network.addr() != network.network() {
        return Err(NetworksError::Inside { given: text.to_owned(), network: network.trunc() });
    }
    let prefix = match network {
        IpNet::V4(v4) => v4.prefix_len() + 96,
        IpNet::V6(v6) => v6.prefix_len(),
    };
    Ok(Ipv6Net::new(spelt(network.addr()), prefix).expect("bug: a prefix of IPv6 has at most 128 bits"))
}

/// The address in IPv6.
fn spelt(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

impl Networks {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = spelt(address);
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// As settings write it.
impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, network) in self.0.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { "," })?;
            match network.addr().to_ipv4_mapped().filter(|_| network.prefix_len() >= 96) {
                Some(v4) => write!(f, "{v4}/{}", network.prefix_len() - 96)?,
                None => write!(f, "{network}")?,
            }
        }
        Ok(())
    }
}

/// Whose connections are one caller's when they are counted: an address, or in IPv6 the /64 that a single host is given.
pub fn household(address: IpAddr) -> Ipv6Addr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)),
    }
}

/// The lists of one listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Empty: everybody.
    pub allow: Networks,
    /// Wins over `allow`.
    pub deny: Networks,
    /// Whose word on other addresses counts.
    pub proxies: Networks,
}

impl Addresses {
    /// Whether this client may call.
    pub fn admits(&self, client: IpAddr) -> bool {
        !self.deny.contains(client) && (self.allow.is_empty() || self.allow.contains(client))
    }

    /// Whether a connection from there may bring a request of an admitted client.
    pub fn hears(&self, peer: IpAddr) -> bool {
        self.admits(peer) || self.proxies.contains(peer)
    }

    /// Whose request it is that came over a connection from `peer`: the right-most address of `X-Forwarded-For` that is
    /// not itself a proxy's. What stands left of that one was written by the client, who may write what it likes.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if self.proxies.is_empty() {
            return client;
        }
        let said = headers.get_all("x-forwarded-for").iter().rev();
        for hop in said.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b',')) {
            if !self.proxies.contains(client) {
                break;
            }
            // A proxy that names nobody speaks for itself.
            let Some(address) = std::str::from_utf8(hop).ok().and_then(hop_address) else { break };
            client = address;
        }
        client
    }
}

/// `10.0.0.1`, `10.0.0.1:4711`, `fd00::1`, `[fd00::1]`, `[fd00::1]:4711`.
fn hop_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let plain = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse().map(|address: std::net::SocketAddr| address.ip()).ok();
    plain.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn addresses(allow: &str, deny: &str, proxies: &str) -> Addresses {
        let networks = |text: &str| text.parse().unwrap();
        Addresses { allow: networks(allow), deny: networks(deny), proxies: networks(proxies) }
    }

    /// The definition: the first bits are the same, in the one space of addresses.
    fn reference(networks: &[(IpAddr, u8)], address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => 0xffff_0000_0000 | u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        networks.iter().any(|(base, prefix)| {
            let length = u32::from(*prefix) + if base.is_ipv4() { 96 } else { 0 };
            (0..length).all(|bit| (bits(*base) ^ bits(address)) >> (127 - bit) & 1 == 0)
        })
    }

    /// Few bits vary, so that networks and addresses meet; IPv4 comes in both spellings.
    fn any_address() -> impl Strategy<Value = IpAddr> {
        let v4 = (0u32..8, 0u32..4).prop_map(|(a, d)| IpAddr::V4((10 << 24 | a << 20 | d).into()));
        let mapped = v4.clone().prop_map(|v4| IpAddr::V6(spelt(v4)));
        let v6 = (0u128..4, 0u128..4).prop_map(|(a, d)| IpAddr::V6((0xfd << 120 | a << 64 | d).into()));
        prop_oneof![v4, mapped, v6]
    }

    fn any_network() -> impl Strategy<Value = (IpAddr, u8)> {
        any_address().prop_flat_map(|address| {
            let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
            (Just(address), 0..=bits).prop_map(|(address, prefix)| {
                let network = IpNet::new(address, prefix).unwrap();
                (network.network(), prefix)
            })
        })
    }

    proptest! {
        #[test]
        fn lists_agree_with_the_definition_bit_by_bit(
            networks in prop::collection::vec(any_network(), 0..4),
            address in any_address(),
        ) {
            let text: Vec<String> = networks.iter().map(|(base, prefix)| format!("{base}/{prefix}")).collect();
            let read: Networks = text.join(", ").parse().unwrap();
            prop_assert_eq!(read.contains(address), reference(&networks, address));
            // Neither the other spelling of the caller nor writing the list anew makes a difference.
            prop_assert_eq!(read.contains(address.to_canonical()), read.contains(address));
            prop_assert_eq!(read.to_string().parse::<Networks>().unwrap(), read);
        }

        #[test]
        fn a_denied_address_stays_out_whatever_allows_it(
            allow in prop::collection::vec(any_network(), 0..3),
            deny in prop::collection::vec(any_network(), 0..3),
            address in any_address(),
        ) {
            let text = |list: &[(IpAddr, u8)]| {
                list.iter().map(|(base, prefix)| format!("{base}/{prefix}")).collect::<Vec<_>>().join(",")
            };
            let lists = addresses(&text(&allow), &text(&deny), "");
            let expected = !reference(&deny, address) && (allow.is_empty() || reference(&allow, address));
            prop_assert_eq!(lists.admits(address), expected);
        }

        #[test]
        fn what_a_client_writes_into_the_header_never_decides(written in "[0-9a-f.:, \\[\\]]{0,40}", client in any_address()) {
            let lists = addresses("", "", "192.168.0.0/16");
            prop_assume!(!lists.proxies.contains(client));
            let mut headers = HeaderMap::new();
            // The proxy adds the address that it saw to what the client sent.
            headers.insert("x-forwarded-for", format!("{written}, {client}").parse().unwrap());
            prop_assert_eq!(lists.client(ip("192.168.0.1"), &headers), client.to_canonical());
            // And without a proxy nothing in it counts.
            prop_assert_eq!(lists.client(client, &headers), client.to_canonical());
        }
    }

    #[test]
    fn the_client_is_found_behind_any_number_of_trusted_proxies() {
        let lists = addresses("", "", "192.168.0.0/16, fd00::/8");
        for (peer, said, client) in [
            ("192.168.0.1", &["10.0.0.1"][..], "10.0.0.1"),
            ("192.168.0.1", &["10.0.0.1, 192.168.0.7"], "10.0.0.1"),
            ("192.168.0.1", &["6.6.6.6, 10.0.0.1, 192.168.0.7"], "10.0.0.1"),
            ("192.168.0.1", &["6.6.6.6", "10.0.0.1", "192.168.0.7"], "10.0.0.1"),
            ("::ffff:192.168.0.1", &["::ffff:10.0.0.1"], "10.0.0.1"),
            ("fd00::1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("fd00::1", &["10.0.0.1:4711"], "10.0.0.1"),
            // Nobody but proxies: the one that is furthest away.
            ("192.168.0.1", &["192.168.0.9"], "192.168.0.9"),
            // A proxy that names nobody, and one whose word is no address.
            ("192.168.0.1", &[], "192.168.0.1"),
            ("192.168.0.1", &["10.0.0.1, unknown"], "192.168.0.1"),
            ("192.168.0.1", &["10.0.0.1, "], "192.168.0.1"),
            // Not a proxy at all.
            ("10.9.9.9", &["127.0.0.1"], "10.9.9.9"),
        ] {
            let mut headers = HeaderMap::new();
            for value in said {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            assert_eq!(lists.client(ip(peer), &headers), ip(client), "{peer} says {said:?}");
        }
    }

    #[test]
    fn slips_in_a_list_are_named() {
        let error = |text: &str| text.parse::<Networks>().unwrap_err().to_string();
        assert!(error("10.0.0.0/8, 10.1.2.3/16").contains("10.1.2.3/16 lies in 10.1.0.0/16"));
        for wrong in ["10.0.0.0/33", "10.0.0", "gitlab.example.com", "10.0.0.0/-1", "::/129"] {
            assert!(error(wrong).contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn hosts_of_one_site_are_counted_together_in_ipv6_and_apart_in_ipv4() {
        assert_eq!(household(ip("2001:db8::1")), household(ip("2001:db8::ffff:2")));
        assert_ne!(household(ip("2001:db8::1")), household(ip("2001:db8:0:1::1")));
        assert_ne!(household(ip("10.0.0.1")), household(ip("10.0.0.2")));
        assert_eq!(household(ip("10.0.0.1")), household(ip("::ffff:10.0.0.1")));
    }
}
