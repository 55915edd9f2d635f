//! Whose word is believed about where a request comes from: the X-Forwarded-For of trusted peers, and the PROXY protocol
//! of trusted addresses.

use std::net::{IpAddr, SocketAddr};

use control_client::snapshot::Mesh;
use http::HeaderMap;
use ipnet::IpNet;

use super::pattern::Values;

/// MeshSettings `trustedForwarders` and `proxyProtocol`, compiled.
#[derive(Debug)]
pub struct Forwarders {
    identities: Values,
    blocks: Box<[IpNet]>,
    /// Proxies in front of the trusted ones, whose addresses stand last in X-Forwarded-For.
    hops: usize,
    proxy_ports: Box<[u16]>,
    proxy_blocks: Box<[IpNet]>,
}

impl Forwarders {
    pub(super) fn compile(mesh: &Mesh) -> Self {
        Self {
            identities: Values::of_wildcards(&mesh.trusted_forwarders.identities),
            blocks: mesh.trusted_forwarders.ip_blocks.as_slice().into(),
            hops: usize::try_from(mesh.trusted_forwarders.num_trusted_proxies).unwrap_or(usize::MAX),
            proxy_ports: mesh.proxy_protocol.ports.as_slice().into(),
            proxy_blocks: mesh.proxy_protocol.ip_blocks.as_slice().into(),
        }
    }

    /// Whether a peer, by its verified identity or its address, may say for whom it asks.
    pub fn trusts(&self, identity: Option<&str>, address: IpAddr) -> bool {
        identity.is_some_and(|identity| self.identities.match_text(identity.as_bytes()))
            || contain(&self.blocks, address)
    }

    /// How the X-Forwarded-For of a peer is read: with so many proxies in front; `None`: not at all.
    pub fn reads(&self, identity: Option<&str>, address: IpAddr) -> Option<usize> {
        self.trusts(identity, address).then_some(self.hops)
    }

    /// The client that X-Forwarded-For names, read from its end: each proxy appends whom it saw. `None`: it names none, or
    /// what stands in that place is no address.
    pub fn client(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let lines = headers.get_all("x-forwarded-for").into_iter().rev();
        let mut entries = lines.flat_map(|line| line.as_bytes().rsplit(|&byte| byte == b','));
        address(entries.nth(self.hops)?)
    }

    /// Whether a connection to this port of the workload begins with a PROXY protocol header: one from these addresses must.
    pub fn expects_proxy_header(&self, port: u16, source: IpAddr) -> bool {
        self.proxy_ports.contains(&port) && contain(&self.proxy_blocks, source)
    }
}

fn contain(blocks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    blocks.iter().any(|block| block.contains(&address))
}

/// `192.0.2.1`, `2001:db8::1`, either with a port, the latter also in brackets.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let bare = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(with_port).or_else(bare).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use control_client::snapshot::{ProxyProtocol, TrustedForwarders};
    use http::HeaderValue;

    use super::*;

    fn forwarders(num_trusted_proxies: u32) -> Forwarders {
        Forwarders::compile(&Mesh {
            trusted_forwarders: TrustedForwarders {
                identities: vec!["spiffe://cluster.local/ns/edge/*".into()],
                ip_blocks: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()],
                num_trusted_proxies,
            },
            proxy_protocol: ProxyProtocol {
                ports: vec![9080],
                ip_blocks: vec!["192.0.2.0/24".parse().unwrap()],
            },
            ..Mesh::default()
        })
    }

    #[test]
    fn some_are_trusted() {
        let forwarders = forwarders(0);
        for (identity, address, trusted) in [
            (None, "10.1.2.3", true),
            (None, "::ffff:10.1.2.3", true),
            (None, "fd00::1", true),
            (None, "192.0.2.1", false),
            (Some("spiffe://cluster.local/ns/edge/sa/gateway"), "192.0.2.1", true),
            (Some("spiffe://cluster.local/ns/edgy/sa/gateway"), "192.0.2.1", false),
            (Some("spiffe://other/ns/edge/sa/gateway"), "192.0.2.1", false),
        ] {
            assert_eq!(
                forwarders.trusts(identity, address.parse().unwrap()),
                trusted,
                "{identity:?} {address}"
            );
        }
        assert!(
            !Forwarders::compile(&Mesh::default()).trusts(Some("spiffe://a/b"), "127.0.0.1".parse().unwrap())
        );
    }

    #[test]
    fn the_last_entry_counts_unless_there_are_proxies_in_front() {
        for (hops, lines, client) in [
            (0, &[][..], None),
            (0, &["192.0.2.1"], Some("192.0.2.1")),
            (0, &["203.0.113.9, 192.0.2.1"], Some("192.0.2.1")),
            (0, &["192.0.2.1", "192.0.2.2"], Some("192.0.2.2")),
            (1, &["203.0.113.9, 192.0.2.1"], Some("203.0.113.9")),
            (1, &["203.0.113.9", "192.0.2.1"], Some("203.0.113.9")),
            (1, &["192.0.2.1"], None),
            (2, &["a,203.0.113.9,192.0.2.1 , 192.0.2.2"], Some("203.0.113.9")),
            (0, &["192.0.2.1:443"], Some("192.0.2.1")),
            (0, &["2001:db8::1"], Some("2001:db8::1")),
            (0, &["[2001:db8::1]:443"], Some("2001:db8::1")),
            (0, &["[2001:db8::1]"], Some("2001:db8::1")),
            (0, &["::ffff:192.0.2.1"], Some("192.0.2.1")),
            (0, &["192.0.2.1, unknown"], None),
            (0, &["192.0.2.1,"], None),
            (0, &["192.0.2.01"], None),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", HeaderValue::from_str(line).unwrap());
            }
            let expected = client.map(|client: &str| client.parse().unwrap());
            assert_eq!(forwarders(hops).client(&headers), expected, "{hops} {lines:?}");
        }
    }

    #[test]
    fn a_proxy_header_is_expected_of_some_on_some_ports() {
        let expects = |port, source: &str| forwarders(0).expects_proxy_header(port, source.parse().unwrap());
        assert!(expects(9080, "192.0.2.7") && expects(9080, "::ffff:192.0.2.7"));
        assert!(!expects(9081, "192.0.2.7") && !expects(9080, "10.0.0.1"));
    }
}
