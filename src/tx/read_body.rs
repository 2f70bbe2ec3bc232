//! A response body that holds a [`Read`](super::Read): how long it may wait for its client.
//!
//! A client that takes no bytes stops the body where it is: Rocket asks it for no more, so neither
//! the body nor Rocket can end the wait. A watch beside it closes the client's connection instead.
//! Then Rocket drops the body, and the session goes back to its pool.
//!
//! Nothing else would be honest either: Rocket ends a streamed body that fails in the same way as one
//! that is complete. So a body that fails has its connection closed too.

use std::borrow::Cow;
use std::io::{self, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rocket::response::Body;
use rocket::tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use rocket::{Request, Response};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::sleep;
use tracing::Instrument;

use super::context::RequestContext;
use super::outstanding::Outstanding;
use super::peer::Peer;

/// Bounds how long the body of `response` waits for its client, if a `Read` is open: then the body
/// may hold it. Other responses cost a look.
pub(super) async fn bound(
    limit: Duration,
    context: &RequestContext,
    request: &Request<'_>,
    response: &mut Response<'_>,
) {
    let Some(outstanding) = Outstanding::used_by(request) else {
        return;
    };
    if !outstanding.is_read_from() || response.body().is_none() {
        return;
    }
    // Without an address it is no connection, but a test's local client.
    let Some(address) = request.remote() else {
        return;
    };
    let peer = Peer {
        address,
        local_port: request.rocket().config().port,
    };
    let watch = Watch {
        client: Arc::default(),
        peer,
        limit,
        outstanding: Arc::clone(outstanding),
        is_missed: false,
        route: request.route().and_then(|route| route.name.clone()),
    };
    let size = response.body_mut().size().await;
    let max_chunk_size = response.body().max_chunk_size();
    let client = Arc::clone(&watch.client);
    let watching = tokio::spawn(watch.run().instrument(context.span.clone()));
    let body = ReadBody {
        body: response.body_mut().take(),
        client,
        peer,
        watching: watching.abort_handle(),
    };
    match size {
        Some(size) => response.set_sized_body(size, body),
        None => response.set_streamed_body(body),
    }
    response.set_max_chunk_size(max_chunk_size);
}

/// The body, and what it tells the watch.
struct ReadBody<'r> {
    body: Body<'r>,
    client: Arc<Mutex<Client>>,
    peer: Peer,
    watching: AbortHandle,
}

/// What the body waits for.
#[derive(Clone, Copy, PartialEq)]
enum Client {
    /// For the client, since then.
    Awaited(Instant),
    /// For itself: the client has taken everything before.
    Ready,
    /// For nothing: the body has ended, or the connection was closed.
    Gone,
}

impl Default for Client {
    fn default() -> Self {
        Self::Awaited(Instant::now())
    }
}

impl Drop for ReadBody<'_> {
    fn drop(&mut self) {
        *self.client.lock() = Client::Gone;
        self.watching.abort();
        if std::thread::panicking() {
            self.cut_short("it panicked");
        }
    }
}

impl ReadBody<'_> {
    /// The body ends here, and not as it should. Rocket would end the response like a complete one.
    fn cut_short(&self, error: &str) {
        let socket = self.peer.socket();
        let result = socket.and_then(|socket| match socket {
            Some(socket) => self.peer.cut(socket),
            None => Ok(()),
        });
        match result {
            Ok(()) => tracing::warn!(
                client = %self.peer.address, error,
                "the body of a response that holds a `Read` failed; its connection was closed, so that \
                 it does not look complete"
            ),
            Err(cannot) => tracing::error!(
                client = %self.peer.address, error, %cannot,
                "the body of a response that holds a `Read` failed, and its connection cannot be \
                 closed: the client takes it for complete"
            ),
        }
    }
}

impl AsyncRead for ReadBody<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        {
            let mut client = self.client.lock();
            if *client == Client::Gone {
                // What it says now reaches nobody.
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            *client = Client::Ready;
        }
        let read = Pin::new(&mut self.body).poll_read(context, buffer);
        if let Poll::Ready(Err(error)) = &read {
            self.cut_short(&error.to_string());
        }
        if read.is_ready() {
            *self.client.lock() = Client::Awaited(Instant::now());
        }
        read
    }
}

/// Never used: Rocket looks for the size by seeking, and the size is known.
impl AsyncSeek for ReadBody<'_> {
    fn start_seek(self: Pin<&mut Self>, _: SeekFrom) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// Ends with the body, or with the connection.
struct Watch {
    client: Arc<Mutex<Client>>,
    peer: Peer,
    limit: Duration,
    outstanding: Arc<Outstanding>,
    /// The connection was looked for once, and not found.
    is_missed: bool,
    route: Option<Cow<'static, str>>,
}

/// When the client was last seen to take bytes, and what it had not taken then.
#[derive(Clone, Copy)]
struct LastSeen {
    /// Since when the body waits.
    awaited: Instant,
    not_taken: Option<u64>,
    at: Instant,
}

impl Watch {
    async fn run(mut self) {
        const SHORTEST: Duration = Duration::from_millis(10);
        const LONGEST: Duration = Duration::from_secs(10);

        let pause = (self.limit / 4).clamp(SHORTEST, LONGEST);
        let mut last = None;
        loop {
            sleep(pause).await;
            let awaited = match *self.client.lock() {
                // The kernel is not asked about clients that take their bodies well.
                Client::Awaited(since) if since.elapsed() >= pause => since,
                Client::Awaited(_) | Client::Ready => continue,
                Client::Gone => return,
            };
            let peer = self.peer;
            let asked = spawn_blocking(move || peer.not_taken()).await;
            let not_taken = asked.ok().flatten();
            let is_same = |last: &LastSeen| (last.awaited, last.not_taken) == (awaited, not_taken);
            let seen = last.filter(is_same).unwrap_or_else(|| LastSeen {
                awaited,
                not_taken,
                // Where the kernel tells nothing, only that the body was asked for more.
                at: not_taken.map_or(awaited, |_| Instant::now()),
            });
            last = Some(seen);
            let idle = seen.at.elapsed();
            if idle >= self.limit && self.cut(awaited, idle).await {
                return;
            }
        }
    }

    /// Closes the connection, if the body still waits since then and a `Read` is still open. Returns
    /// whether the watch is over.
    async fn cut(&mut self, awaited: Instant, idle: Duration) -> bool {
        let databases = self.outstanding.read_from();
        if databases.is_empty() {
            return false;
        }
        let peer = self.peer;
        let found = spawn_blocking(move || peer.socket()).await;
        let found = found.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let result = match found {
            Ok(Some(socket)) => {
                // Locked: until the connection is closed the body does not go on, so it cannot come
                // to its end, and the connection not to its next request.
                let mut client = self.client.lock();
                if *client != Client::Awaited(awaited) {
                    return false;
                }
                let result = peer.cut(socket);
                if result.is_ok() {
                    *client = Client::Gone;
                }
                result
            }
            Ok(None) => Err(io::ErrorKind::NotConnected.into()),
            Err(error) => Err(error),
        };
        let route = self.route.as_deref().unwrap_or("-");
        let idle_ms = idle.as_millis();
        match result {
            Ok(()) => tracing::warn!(
                client = %peer.address, route, ?databases, idle_ms,
                "the client took nothing of a response that holds a `Read` for longer than \
                 `read_idle_timeout`; its connection was closed"
            ),
            // It may have ended by itself: then the body is about to.
            Err(error) if error.kind() == io::ErrorKind::NotConnected && !self.is_missed => {
                self.is_missed = true;
                return false;
            }
            Err(error) => tracing::error!(
                client = %peer.address, route, ?databases, idle_ms, %error,
                "the client takes nothing of a response that holds a `Read`, and its connection \
                 cannot be closed; the `Read` is held until the client goes on or leaves"
            ),
        }
        true
    }
}
