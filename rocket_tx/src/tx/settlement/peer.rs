//! The connection of one client: finds its socket, reads its progress, and closes it.
//!
//! Rocket gives no access to its sockets. So this module searches the sockets of the process for
//! the one that is connected to the client's address.

use std::io;
use std::net::{IpAddr, SocketAddr};

/// A client of the service, identified by both ends of its connection.
#[derive(Clone, Copy)]
pub(super) struct Peer {
    pub(in crate::tx) address: SocketAddr,
    pub(in crate::tx) local: LocalEnd,
}

/// The service's end of a connection.
///
/// The client's end is not enough to identify a connection. A client chooses its own port, so its
/// address may equal that of a server to which the service is connected.
#[derive(Clone, Copy)]
pub(super) struct LocalEnd {
    /// `None` if the service listens on all addresses of its machine.
    ip: Option<IpAddr>,
    port: u16,
}

impl LocalEnd {
    /// Creates the local end from the address on which a service listens.
    pub(super) fn listening(ip: IpAddr, port: u16) -> Self {
        let ip = Some(ip).filter(|ip| !ip.is_unspecified());
        Self { ip, port }
    }

    fn is_at(self, address: SocketAddr) -> bool {
        self.port == address.port() && self.ip.is_none_or(|ip| ip == address.ip())
    }
}

/// A connection in the kernel's table that may be the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketEntry {
    /// The service's end.
    pub(in crate::tx) local: SocketAddr,
    /// The number of sent bytes that the client's machine has not acknowledged yet.
    pub(super) unacknowledged: u64,
}

/// The file descriptor of a client's socket.
#[derive(Clone, Copy)]
#[cfg_attr(not(unix), allow(dead_code))]
pub(super) struct Socket(i32);

#[cfg(unix)]
impl Peer {
    /// Finds the socket of the connection. Returns `None` if the connection is closed.
    ///
    /// This reads a directory of the kernel. It may take milliseconds in a process with thousands
    /// of connections.
    ///
    /// # Errors
    ///
    /// Fails if two connections cannot be told apart. A client may use one port for connections to
    /// two addresses of the service, and Rocket does not report which address received the request.
    pub(super) fn socket(self) -> io::Result<Option<Socket>> {
        #[cfg(target_os = "linux")]
        const DESCRIPTORS: &str = "/proc/self/fd";
        #[cfg(not(target_os = "linux"))]
        const DESCRIPTORS: &str = "/dev/fd";

        let mut found = None;
        for entry in std::fs::read_dir(DESCRIPTORS)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            let socket = number.map(Socket).filter(|socket| self.is_at(*socket));
            if socket.is_some() && found.is_some() {
                return Err(io::Error::other(
                    "two connections of this client cannot be told apart; let the service listen \
                     on one address",
                ));
            }
            found = found.or(socket);
        }
        Ok(found)
    }

    /// Shuts the connection down in both directions. Bytes that were sent before still arrive.
    ///
    /// By now the descriptor may belong to another connection, so its addresses are checked again.
    /// There is no await and no lock between this check and the shutdown. If the descriptor is
    /// reused within these microseconds, the wrong connection is shut down, and its client sees a
    /// network failure. Files are safe even then: this module never duplicates or closes a
    /// descriptor. (Closing a descriptor of a SQLite file would drop SQLite's locks.)
    pub(super) fn shut_down(self, socket: Socket) -> io::Result<()> {
        use nix::sys::socket::{Shutdown, shutdown};

        if !self.is_at(socket) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        shutdown(socket.0, Shutdown::Both).map_err(io::Error::from)
    }

    /// Returns `true` if `socket` is the connection. This only queries the descriptor, so `socket`
    /// may be any number.
    fn is_at(self, socket: Socket) -> bool {
        use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};

        let peer = getpeername::<SockaddrStorage>(socket.0);
        let is_peer = peer.ok().and_then(|peer| internet(&peer)).is_some_and(
            // The flow label and the scope of an IPv6 address are not compared.
            |peer| (peer.ip(), peer.port()) == (self.address.ip(), self.address.port()),
        );
        let is_local = || {
            let local = getsockname::<SockaddrStorage>(socket.0);
            let local = local.ok().and_then(|local| internet(&local));
            local.is_some_and(|local| self.local.is_at(local))
        };
        is_peer && is_local()
    }
}

#[cfg(unix)]
fn internet(address: &nix::sys::socket::SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6)))
}

#[cfg(not(unix))]
impl Peer {
    pub(super) fn socket(self) -> io::Result<Option<Socket>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn shut_down(self, _: Socket) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Peer {
    /// Returns the same client, restricted to the connection with this local end.
    pub(in crate::tx) fn with_local_end(self, local: SocketAddr) -> Self {
        let (ip, port) = (Some(local.ip()), local.port());
        let local = LocalEnd { ip, port };
        Self { local, ..self }
    }

    /// Returns the connections that may be this client's, usually one. Only Linux lists them; on
    /// other systems the result is empty.
    #[cfg(target_os = "linux")]
    pub(super) fn connections(self) -> Vec<SocketEntry> {
        let table = match self.address {
            SocketAddr::V4(_) => "/proc/self/net/tcp",
            SocketAddr::V6(_) => "/proc/self/net/tcp6",
        };
        let table = std::fs::read_to_string(table).unwrap_or_default();
        let remote = (self.address.ip(), self.address.port());
        let port = format!(":{:04X}", self.local.port);
        // "sl local_address rem_address st tx_queue:rx_queue ..."
        let connection = |line: &str| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let local = fields.next().filter(|local| local.ends_with(&port))?;
            let peer = address(fields.next()?)?;
            let local = address(local).filter(|local| self.local.is_at(*local))?;
            let queues = (fields.nth(1)).filter(|_| (peer.ip(), peer.port()) == remote)?;
            let unacknowledged = u64::from_str_radix(queues.split(':').next()?, 16).ok()?;
            Some(SocketEntry {
                local,
                unacknowledged,
            })
        };
        let mut connections: Vec<SocketEntry> = table.lines().filter_map(connection).collect();
        // The kernel may list a connection again if others are opened while the table is read.
        connections.reverse();
        connections.sort_by_key(|connection| connection.local);
        connections.dedup_by_key(|connection| connection.local);
        connections
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn connections(self) -> Vec<SocketEntry> {
        Vec::new()
    }
}

/// Parses an address from Linux's tables of connections: words of four bytes in the byte order of
/// the machine, and the port.
#[cfg(target_os = "linux")]
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let word = words.get(index * 8..(index + 1) * 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    let ip = match words.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut octets = [0; 16];
            for (index, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index)?);
            }
            IpAddr::from(octets)
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::{self, Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::{LocalEnd, Peer, SocketEntry};

    /// Opens a connection within this process. Returns the client's end, the service's end, and the
    /// client as the service identifies it.
    fn connection(host: &str) -> io::Result<(TcpStream, TcpStream, Peer)> {
        let listener = TcpListener::bind((host, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (service, address) = listener.accept()?;
        let listening = listener.local_addr()?;
        let local = LocalEnd::listening(listening.ip(), listening.port());
        Ok((client, service, Peer { address, local }))
    }

    fn unacknowledged(peer: Peer) -> u64 {
        match peer.connections()[..] {
            [SocketEntry { unacknowledged, .. }] => unacknowledged,
            ref other => panic!("expected one connection, found {other:?}"),
        }
    }

    /// The client uses one port for connections to two addresses of the service.
    #[rocket::async_test]
    async fn two_connections_from_one_client_port_are_told_apart_by_their_local_end()
    -> io::Result<()> {
        use rocket::tokio::net::TcpSocket;

        let listener = TcpListener::bind("0.0.0.0:0")?;
        let listening = listener.local_addr()?;
        let connect = async |from: u16, to: [u8; 4]| {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(([127, 0, 0, 1], from).into())?;
            socket.connect((to, listening.port()).into()).await
        };
        let one = connect(0, [127, 0, 0, 2]).await?;
        let address = one.local_addr()?;
        let local = LocalEnd::listening(listening.ip(), listening.port());
        let peer = Peer { address, local };
        let _accepted = listener.accept()?;
        assert!(peer.socket()?.is_some());
        let _other = connect(address.port(), [127, 0, 0, 1]).await?;
        let _accepted_too = listener.accept()?;
        assert!(peer.socket().is_err());
        let connections = peer.connections();
        assert_eq!(connections.len(), 2);
        for SocketEntry { local, .. } in connections {
            assert!(peer.with_local_end(local).socket()?.is_some(), "{local}");
        }
        Ok(())
    }

    #[test]
    fn a_connection_is_found_and_shut_down_after_its_bytes_arrive() {
        for host in ["127.0.0.1", "::1"] {
            let (mut client, mut service, peer) = connection(host).unwrap();
            let (_other, mut untouched, _) = connection(host).unwrap();
            service.write_all(b"half a resp").unwrap();
            let socket = peer.socket().unwrap().unwrap();
            peer.shut_down(socket).unwrap();
            let mut received = String::new();
            client.read_to_string(&mut received).unwrap();
            assert_eq!(received, "half a resp");
            assert!(service.write_all(b"onse").is_err());
            untouched.write_all(b"a response").unwrap();
        }
    }

    #[test]
    fn the_descriptor_of_another_connection_is_not_shut_down() {
        let (client, service, peer) = connection("127.0.0.1").unwrap();
        let (_other_client, mut other, other_peer) = connection("127.0.0.1").unwrap();
        let socket = other_peer.socket().unwrap().unwrap();
        assert!(peer.shut_down(socket).is_err());
        other.write_all(b"a response").unwrap();
        drop((client, service));
        assert!(peer.socket().unwrap().is_none(), "it is closed");
    }

    #[test]
    fn the_kernel_reports_the_bytes_that_the_client_has_not_acknowledged() {
        for host in ["127.0.0.1", "::1"] {
            let (mut client, mut service, peer) = connection(host).unwrap();
            assert_eq!(unacknowledged(peer), 0, "{host}");
            service.set_nonblocking(true).unwrap();
            let mut sent = 0;
            while let Ok(length) = service.write(&[0; 64 * 1024]) {
                sent += length;
            }
            assert!(unacknowledged(peer) > 0, "{host}");
            let mut received = vec![0; sent];
            client.read_exact(&mut received).unwrap();
            while unacknowledged(peer) != 0 {
                std::thread::yield_now();
            }
        }
    }
}
