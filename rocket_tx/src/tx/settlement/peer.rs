//! The connection of one client: whether its bytes arrive, and closing it.
//!
//! Rocket hands its sockets to nobody. So the socket is found among those of the process, by the
//! address of the client.

use std::io;
use std::net::{IpAddr, SocketAddr};

/// One client of the service, by both ends of its connection.
#[derive(Clone, Copy)]
pub(super) struct Peer {
    pub(in crate::tx) address: SocketAddr,
    pub(in crate::tx) ours: Ours,
}

/// The service's end. Without it a client could pass for a server that the service is connected to:
/// clients choose their own port.
#[derive(Clone, Copy)]
pub(super) struct Ours {
    /// `None` where the service listens on all addresses of its machine.
    ip: Option<IpAddr>,
    port: u16,
}

impl Ours {
    /// Where a service listens.
    pub(super) fn listening(ip: IpAddr, port: u16) -> Self {
        let ip = Some(ip).filter(|ip| !ip.is_unspecified());
        Self { ip, port }
    }

    fn is_at(self, address: SocketAddr) -> bool {
        self.port == address.port() && self.ip.is_none_or(|ip| ip == address.ip())
    }
}

/// A connection that may be the client's, as the kernel lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketEntry {
    /// The service's end.
    pub(in crate::tx) ours: SocketAddr,
    /// How many bytes the client's machine has not taken yet.
    pub(super) not_taken: u64,
}

/// The socket of a client, as the process numbers it.
#[derive(Clone, Copy)]
#[cfg_attr(not(unix), allow(dead_code))]
pub(super) struct Socket(i32);

#[cfg(unix)]
impl Peer {
    /// The socket, if the connection still stands. Reads a folder of the kernel's: it may take
    /// milliseconds where a process has thousands of connections.
    ///
    /// # Errors
    ///
    /// Two connections look the same: a client may use one port for two addresses of the service, and
    /// Rocket does not say which of them was asked.
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
                    "two connections of this client look the same",
                ));
            }
            found = found.or(socket);
        }
        Ok(found)
    }

    /// Closes the connection for both sides. What was sent before it still arrives.
    ///
    /// By now the number may be that of another connection, so it is looked at once more. No await
    /// and no lock stands between this look and the call: only a connection that is opened within
    /// microseconds could be closed in its place, as by a network that fails. Files are safe: the
    /// number is never duplicated or closed, which would drop SQLite's locks.
    pub(super) fn cut(self, socket: Socket) -> io::Result<()> {
        use nix::sys::socket::{Shutdown, shutdown};

        if !self.is_at(socket) {
            return Err(io::ErrorKind::NotConnected.into());
        }
        shutdown(socket.0, Shutdown::Both).map_err(io::Error::from)
    }

    /// Whether `socket` is the connection. It asks and changes nothing: any number may be asked.
    fn is_at(self, socket: Socket) -> bool {
        use nix::sys::socket::{SockaddrStorage, getpeername, getsockname};

        let peer = getpeername::<SockaddrStorage>(socket.0);
        let is_peer = peer.ok().and_then(|peer| internet(&peer)).is_some_and(
            // IPv6 addresses may have a flow label beside.
            |peer| (peer.ip(), peer.port()) == (self.address.ip(), self.address.port()),
        );
        let is_ours = || {
            let ours = getsockname::<SockaddrStorage>(socket.0);
            let ours = ours.ok().and_then(|ours| internet(&ours));
            ours.is_some_and(|ours| self.ours.is_at(ours))
        };
        is_peer && is_ours()
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

    pub(super) fn cut(self, _: Socket) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Peer {
    /// The same client, by the one of its connections that has this end.
    pub(in crate::tx) fn by(self, ours: SocketAddr) -> Self {
        let (ip, port) = (Some(ours.ip()), ours.port());
        let ours = Ours { ip, port };
        Self { ours, ..self }
    }

    /// The connections that may be this client's, where the kernel tells: as a rule one.
    #[cfg(target_os = "linux")]
    pub(super) fn listed(self) -> Vec<SocketEntry> {
        let table = match self.address {
            SocketAddr::V4(_) => "/proc/self/net/tcp",
            SocketAddr::V6(_) => "/proc/self/net/tcp6",
        };
        let table = std::fs::read_to_string(table).unwrap_or_default();
        let remote = (self.address.ip(), self.address.port());
        let port = format!(":{:04X}", self.ours.port);
        // "sl local_address rem_address st tx_queue:rx_queue ..."
        let connection = |line: &str| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let ours = fields.next().filter(|ours| ours.ends_with(&port))?;
            let theirs = address(fields.next()?)?;
            let ours = address(ours).filter(|ours| self.ours.is_at(*ours))?;
            let queues = (fields.nth(1)).filter(|_| (theirs.ip(), theirs.port()) == remote)?;
            let not_taken = u64::from_str_radix(queues.split(':').next()?, 16).ok()?;
            Some(SocketEntry { ours, not_taken })
        };
        table.lines().filter_map(connection).collect()
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn listed(self) -> Vec<SocketEntry> {
        Vec::new()
    }
}

/// An address out of Linux's tables of connections: words of four bytes, in the byte order of the
/// machine, and the port.
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

    use super::{Ours, Peer, SocketEntry};

    /// A connection within the process, which has both ends: its client, the service's end, and what
    /// the service knows of it.
    fn connection(host: &str) -> io::Result<(TcpStream, TcpStream, Peer)> {
        let listener = TcpListener::bind((host, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        let (service, address) = listener.accept()?;
        let listening = listener.local_addr()?;
        let ours = Ours::listening(listening.ip(), listening.port());
        Ok((client, service, Peer { address, ours }))
    }

    fn not_taken(peer: Peer) -> u64 {
        match peer.listed()[..] {
            [SocketEntry { not_taken, .. }] => not_taken,
            ref other => panic!("one connection, and not {other:?}"),
        }
    }

    /// One port of the client leads to two addresses of the service.
    #[rocket::async_test]
    async fn of_two_connections_that_look_the_same_one_is_found_by_the_end_of_the_service()
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
        let ours = Ours::listening(listening.ip(), listening.port());
        let peer = Peer { address, ours };
        let _accepted = listener.accept()?;
        assert!(peer.socket()?.is_some());
        let _other = connect(address.port(), [127, 0, 0, 1]).await?;
        let _accepted_too = listener.accept()?;
        assert!(peer.socket().is_err());
        let listed = peer.listed();
        assert_eq!(listed.len(), 2);
        for SocketEntry { ours, .. } in listed {
            assert!(peer.by(ours).socket()?.is_some(), "{ours}");
        }
        Ok(())
    }

    #[test]
    fn the_end_of_the_service_is_found_and_cut_and_what_was_sent_arrives() {
        for host in ["127.0.0.1", "::1"] {
            let (mut client, mut service, peer) = connection(host).unwrap();
            let (_other, mut untouched, _) = connection(host).unwrap();
            service.write_all(b"half an answ").unwrap();
            let socket = peer.socket().unwrap().unwrap();
            peer.cut(socket).unwrap();
            let mut received = String::new();
            client.read_to_string(&mut received).unwrap();
            assert_eq!(received, "half an answ");
            assert!(service.write_all(b"er").is_err());
            untouched.write_all(b"an answer").unwrap();
        }
    }

    #[test]
    fn a_number_that_is_not_the_connection_is_left_alone() {
        let (client, service, peer) = connection("127.0.0.1").unwrap();
        let (_other_client, mut other, other_peer) = connection("127.0.0.1").unwrap();
        let socket = other_peer.socket().unwrap().unwrap();
        assert!(peer.cut(socket).is_err());
        other.write_all(b"an answer").unwrap();
        drop((client, service));
        assert!(peer.socket().unwrap().is_none(), "nobody has it any more");
    }

    #[test]
    fn the_kernel_tells_how_much_the_client_has_not_taken() {
        for host in ["127.0.0.1", "::1"] {
            let (mut client, mut service, peer) = connection(host).unwrap();
            assert_eq!(not_taken(peer), 0, "{host}");
            service.set_nonblocking(true).unwrap();
            let mut sent = 0;
            while let Ok(length) = service.write(&[0; 64 * 1024]) {
                sent += length;
            }
            assert!(not_taken(peer) > 0, "{host}");
            let mut received = vec![0; sent];
            client.read_exact(&mut received).unwrap();
            while not_taken(peer) != 0 {
                std::thread::yield_now();
            }
        }
    }
}
