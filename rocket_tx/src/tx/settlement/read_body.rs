//! A response body that holds a [`Read`](crate::tx::Read): how long it may wait for its client.
//!
//! A client that takes no bytes stops the body where it is: Rocket asks it for no more, so neither
//! the body nor Rocket can end the wait. A watch beside it closes the client's connection instead.
//! Then Rocket drops the body, and the session goes back to its pool.
//!
//! Nothing else would be honest either: Rocket ends a streamed body that fails in the same way as one
//! that is complete. So a body that fails has its connection closed too.
//!
//! Nobody can look into a body. It counts as holding a `Read` once it has used it while it was read
//! from, and no longer when something else has used it since: a task that goes on with a `Read` of
//! its request is no concern of the client's.

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

use super::peer::{Ours, Peer, SocketEntry};
use super::settings::Settings;
use crate::db::Arrival;
use crate::tx::context::RequestContext;
use crate::tx::registry::Outstanding;
use crate::tx::request_id::RequestId;
use crate::tx::running_body::RunningBody;

/// Bounds how long the body of `response` waits for its client, if a `Read` is open: then the body
/// may hold it. Other responses cost a look.
pub(super) async fn bound(
    settings: &Settings,
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
    let Some(address) = Arrival::address(request) else {
        return;
    };
    let listening = request.rocket().config();
    let client = WhoseBody {
        peer: Peer {
            address,
            ours: Ours::listening(listening.address, listening.port),
        },
        is_known: settings.order.knows_clients(request.rocket()),
    };
    let watch = Watch {
        waits: Arc::default(),
        client,
        limit: settings.read_idle_timeout,
        outstanding: Arc::clone(outstanding),
        is_missed: false,
        is_told: false,
        route: request.route().and_then(|route| route.name.clone()),
    };
    let size = response.body_mut().size().await;
    let max_chunk_size = response.body().max_chunk_size();
    let waits = Arc::clone(&watch.waits);
    let watching = tokio::spawn(watch.run().instrument(context.span.clone()));
    let body = ReadBody {
        body: response.body_mut().take(),
        request: context.id,
        waits,
        client,
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
    request: RequestId,
    waits: Arc<Mutex<Waits>>,
    client: WhoseBody,
    watching: AbortHandle,
}

/// The client that a body is for.
#[derive(Clone, Copy)]
struct WhoseBody {
    peer: Peer,
    /// Its address is that of its connection, whatever fairings say.
    is_known: bool,
}

impl WhoseBody {
    /// The peer, or why nobody may be cut off.
    fn known(self) -> io::Result<Peer> {
        match self.is_known {
            true => Ok(self.peer),
            false => Err(io::Error::other(
                "a request fairing runs before those of `rocket_tx`, and may have changed its address",
            )),
        }
    }
}

/// What the body waits for.
#[derive(Clone, Copy, PartialEq)]
enum Waits {
    /// For the client, since then.
    Awaited(Instant),
    /// For itself: the client has taken everything before.
    Ready,
    /// For nothing: the body has ended, or the connection was closed.
    Gone,
}

impl Default for Waits {
    fn default() -> Self {
        Self::Awaited(Instant::now())
    }
}

impl Drop for ReadBody<'_> {
    fn drop(&mut self) {
        *self.waits.lock() = Waits::Gone;
        self.watching.abort();
        if std::thread::panicking() {
            self.cut_short("it panicked");
        }
    }
}

impl ReadBody<'_> {
    /// The body ends here, and not as it should. Rocket would end the response like a complete one.
    fn cut_short(&self, error: &str) {
        let peer = self.client.known();
        let result = peer.and_then(|peer| match peer.socket()? {
            Some(socket) => peer.cut(socket),
            None => Ok(()),
        });
        let client = self.client.peer.address;
        match result {
            Ok(()) => tracing::warn!(
                %client, error,
                "the body of a response that holds a `Read` failed; its connection was closed, so that \
                 it does not look complete"
            ),
            Err(cannot) => tracing::error!(
                %client, error, %cannot,
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
            let mut waits = self.waits.lock();
            if *waits == Waits::Gone {
                // What it says now reaches nobody.
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            *waits = Waits::Ready;
        }
        let reading_from = RunningBody::of(self.request);
        let read = Pin::new(&mut self.body).poll_read(context, buffer);
        drop(reading_from);
        if let Poll::Ready(Err(error)) = &read {
            self.cut_short(&error.to_string());
        }
        if read.is_ready() {
            *self.waits.lock() = Waits::Awaited(Instant::now());
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
    waits: Arc<Mutex<Waits>>,
    client: WhoseBody,
    limit: Duration,
    outstanding: Arc<Outstanding>,
    /// The connection was looked for once, and not found.
    is_missed: bool,
    /// It was said that the connection cannot be closed.
    is_told: bool,
    route: Option<Cow<'static, str>>,
}

/// What a client has not taken, and since when.
struct Stall {
    /// Since when the body waits.
    awaited: Instant,
    /// The connections that may be the client's, and when each was first seen as it is.
    listed: Vec<(SocketEntry, Instant)>,
}

impl Stall {
    /// What is seen now, after what was seen `before`.
    fn seen(before: Option<Self>, awaited: Instant, listed: Vec<SocketEntry>) -> Self {
        let before = before.filter(|before| before.awaited == awaited);
        let before = before.map_or_else(Vec::new, |before| before.listed);
        let since = |now: &SocketEntry| before.iter().find(|(then, _)| then == now);
        let with_time = listed.into_iter().map(|now| match since(&now) {
            Some((_, since)) => (now, *since),
            None => (now, Instant::now()),
        });
        let listed = with_time.collect();
        Self { awaited, listed }
    }

    /// Which of its connections the client takes nothing of, and for how long. `None`: it takes some,
    /// or it may be that one.
    fn idle(&self, peer: Peer, limit: Duration) -> Option<(Peer, Duration)> {
        let (peer, since) = match self.listed[..] {
            // The kernel tells nothing: only that the body was asked for more.
            [] => (peer, self.awaited),
            [(one, since)] => (peer.by(one.ours), since),
            // The body of none of them waits but of those that still have bytes to take.
            _ => {
                let mut full = self.listed.iter().filter(|(one, _)| one.not_taken > 0);
                let (one, since) = *full.next()?;
                match full.map(|(_, since)| *since).max() {
                    None => (peer.by(one.ours), since),
                    // Not told apart; but none goes on.
                    Some(latest) => (peer, since.max(latest)),
                }
            }
        };
        Some((peer, since.elapsed())).filter(|(_, idle)| *idle >= limit)
    }
}

impl Watch {
    async fn run(mut self) {
        const SHORTEST: Duration = Duration::from_millis(10);
        const LONGEST: Duration = Duration::from_secs(10);

        let pause = (self.limit / 4).clamp(SHORTEST, LONGEST);
        let mut before = None;
        loop {
            sleep(pause).await;
            let awaited = match *self.waits.lock() {
                // The kernel is not asked about clients that take their bodies well.
                Waits::Awaited(since) if since.elapsed() >= pause => since,
                Waits::Awaited(_) | Waits::Ready => continue,
                Waits::Gone => return,
            };
            let peer = self.client.peer;
            let listed = spawn_blocking(move || peer.listed()).await;
            let stall = Stall::seen(before, awaited, listed.unwrap_or_default());
            if let Some((peer, idle)) = stall.idle(peer, self.limit)
                && self.cut(peer, awaited, idle).await
            {
                return;
            }
            before = Some(stall);
        }
    }

    /// Closes the connection, if the body still waits since then and a `Read` is still open. Returns
    /// whether the watch is over.
    async fn cut(&mut self, peer: Peer, awaited: Instant, idle: Duration) -> bool {
        let databases = self.outstanding.read_from_by_body();
        if databases.is_empty() {
            return false;
        }
        let found = match self.client.known() {
            Ok(_) => spawn_blocking(move || peer.socket())
                .await
                .unwrap_or_else(|panic| Err(io::Error::other(panic))),
            Err(error) => Err(error),
        };
        let result = match found {
            Ok(Some(socket)) => {
                // Locked: until the connection is closed the body does not go on, so it cannot come
                // to its end, and the connection not to its next request.
                let mut waits = self.waits.lock();
                if *waits != Waits::Awaited(awaited) {
                    return false;
                }
                let result = peer.cut(socket);
                if result.is_ok() {
                    *waits = Waits::Gone;
                }
                result
            }
            Ok(None) => Err(io::ErrorKind::NotConnected.into()),
            Err(error) => Err(error),
        };
        let route = self.route.as_deref().unwrap_or("-");
        let idle_ms = idle.as_millis();
        match result {
            Ok(()) => {
                tracing::warn!(
                    client = %peer.address, route, ?databases, idle_ms,
                    "the client took nothing of a response that holds a `Read` for longer than \
                     `read_idle_timeout`; its connection was closed"
                );
                true
            }
            // It may have ended by itself: then the body is about to.
            Err(error) if error.kind() == io::ErrorKind::NotConnected && !self.is_missed => {
                self.is_missed = true;
                false
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_told, true) {
                    tracing::error!(
                        client = %peer.address, route, ?databases, idle_ms, %error,
                        "the client takes nothing of a response that holds a `Read`, and its connection \
                         cannot be closed; the `Read` is held until the client goes on or leaves"
                    );
                }
                false
            }
        }
    }
}
