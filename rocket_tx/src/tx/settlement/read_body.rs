//! Limits how long a response body that holds a [`Read`](crate::tx::Read) waits for its client.
//!
//! While a client does not read, Rocket does not poll the body. So neither the body nor Rocket can
//! end the wait. A separate task, the watch, closes the client's connection instead. Then Rocket
//! drops the body, and the database session of the `Read` returns to its pool.
//!
//! If such a body fails, its connection is closed too. Otherwise the client could not detect the
//! failure, because Rocket ends a streamed body that fails in the same way as a complete one.
//!
//! The contents of a body cannot be inspected. A body counts as holding a `Read` if the `Read` was
//! last used while the body was polled. If a task of the request uses the `Read` later, the body no
//! longer counts as holding it, because that task does not wait for the client.

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

use super::peer::{LocalEnd, Peer, SocketEntry};
use super::settings::Settings;
use crate::db::Arrival;
use crate::tx::context::RequestContext;
use crate::tx::registry::Outstanding;
use crate::tx::request_id::RequestId;
use crate::tx::running_body::RunningBody;

/// Limits how long the body of `response` waits for its client, if the request has an open `Read`:
/// the body may hold it. For other requests, this only checks the registry.
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
    // A request of Rocket's local client, in tests, has no address and no connection.
    let Some(address) = Arrival::address(request) else {
        return;
    };
    let listening = request.rocket().config();
    let client = BodyClient {
        peer: Peer {
            address,
            local: LocalEnd::listening(listening.address, listening.port),
        },
        is_certain: settings.order.knows_clients(request.rocket()),
    };
    let watch = Watch {
        state: Arc::default(),
        client,
        limit: settings.read_idle_timeout,
        outstanding: Arc::clone(outstanding),
        was_not_found: false,
        is_reported: false,
        route: request.route().and_then(|route| route.name.clone()),
    };
    let size = response.body_mut().size().await;
    let max_chunk_size = response.body().max_chunk_size();
    let state = Arc::clone(&watch.state);
    let watch_task = tokio::spawn(watch.run().instrument(context.span.clone()));
    let body = ReadBody {
        body: response.body_mut().take(),
        request: context.id,
        state,
        client,
        watch_task: watch_task.abort_handle(),
    };
    match size {
        Some(size) => response.set_sized_body(size, body),
        None => response.set_streamed_body(body),
    }
    response.set_max_chunk_size(max_chunk_size);
}

/// The body, with the state that it shares with the watch.
struct ReadBody<'r> {
    body: Body<'r>,
    request: RequestId,
    state: Arc<Mutex<BodyState>>,
    client: BodyClient,
    watch_task: AbortHandle,
}

/// The client that receives a body.
#[derive(Clone, Copy)]
struct BodyClient {
    peer: Peer,
    /// The address is certainly that of the connection: no fairing could have changed it before
    /// this library recorded it.
    is_certain: bool,
}

impl BodyClient {
    /// Returns the peer, or an error if its address is not certain. Then no connection may be
    /// closed.
    fn certain_peer(self) -> io::Result<Peer> {
        match self.is_certain {
            true => Ok(self.peer),
            false => Err(io::Error::other(
                "the address of the client is not certain, because a request fairing may have changed \
                 it; see the warning at launch",
            )),
        }
    }

    /// Closes the connection of a body that failed, so that the response does not look complete.
    fn close_after_failure(self, error: &str) {
        let peer = self.certain_peer();
        let result = peer.and_then(|peer| match peer.socket()? {
            Some(socket) => peer.shut_down(socket),
            None => Ok(()),
        });
        let client = self.peer.address;
        match result {
            Ok(()) => tracing::warn!(
                %client, error,
                "a response body that holds a `Read` failed; the client's connection was closed, so that \
                 the response does not look complete"
            ),
            Err(cannot) => tracing::error!(
                %client, error, %cannot,
                "a response body that holds a `Read` failed, and the client's connection cannot be \
                 closed: the incomplete response looks complete to the client"
            ),
        }
    }
}

/// Closes the connection if the body panics. Rocket would otherwise drop its sender first, while the
/// panic unwinds, and the client would receive the end of a complete response.
struct CloseOnPanic(BodyClient);

impl Drop for CloseOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.close_after_failure("the body panicked");
        }
    }
}

/// The state of a body.
#[derive(Clone, Copy, PartialEq)]
enum BodyState {
    /// The body waits for the client since this time: Rocket polls the body again when it can send
    /// more bytes.
    WaitsForClient(Instant),
    /// Rocket polls the body for its next bytes: the body does not wait for the client.
    Runs,
    /// The body has ended, or the watch has closed the connection.
    Ended,
}

impl Default for BodyState {
    fn default() -> Self {
        Self::WaitsForClient(Instant::now())
    }
}

impl Drop for ReadBody<'_> {
    fn drop(&mut self) {
        *self.state.lock() = BodyState::Ended;
        self.watch_task.abort();
    }
}

impl AsyncRead for ReadBody<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        {
            let mut state = self.state.lock();
            if *state == BodyState::Ended {
                // The connection is closed, so the client would not receive more bytes.
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
            *state = BodyState::Runs;
        }
        let running = RunningBody::of(self.request);
        let shield = CloseOnPanic(self.client);
        let read = Pin::new(&mut self.body).poll_read(context, buffer);
        drop((running, shield));
        if let Poll::Ready(Err(error)) = &read {
            self.client.close_after_failure(&error.to_string());
        }
        if read.is_ready() {
            *self.state.lock() = BodyState::WaitsForClient(Instant::now());
        }
        read
    }
}

/// Never used: Rocket seeks only to find the size of a sized body, and `bound` sets that size.
impl AsyncSeek for ReadBody<'_> {
    fn start_seek(self: Pin<&mut Self>, _: SeekFrom) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// The task that watches one body. It ends with the body, or when it has closed the connection.
struct Watch {
    state: Arc<Mutex<BodyState>>,
    client: BodyClient,
    limit: Duration,
    outstanding: Arc<Outstanding>,
    /// An earlier attempt to close the connection did not find the connection.
    was_not_found: bool,
    /// It was logged that the connection cannot be closed.
    is_reported: bool,
    route: Option<Cow<'static, str>>,
}

/// The progress of a client, as seen at one check of the watch.
struct Stall {
    /// When the body began to wait for the client.
    waiting_since: Instant,
    /// The connections that may be the client's, each with the time since which it is unchanged.
    connections: Vec<(SocketEntry, Instant)>,
}

impl Stall {
    /// Combines the `connections` of this check with the result of the check `before`.
    fn seen(before: Option<Self>, waiting_since: Instant, connections: Vec<SocketEntry>) -> Self {
        let before = before.filter(|before| before.waiting_since == waiting_since);
        let before = before.map_or_else(Vec::new, |before| before.connections);
        let since = |now: &SocketEntry| before.iter().find(|(then, _)| then == now);
        let with_time = connections.into_iter().map(|now| match since(&now) {
            Some((_, since)) => (now, *since),
            None => (now, Instant::now()),
        });
        let connections = with_time.collect();
        Self {
            waiting_since,
            connections,
        }
    }

    /// Returns the connection on which the client has read nothing for at least `limit`, and for
    /// how long. Returns `None` if the client makes progress, or may make progress on the
    /// connection of this body.
    fn idle(&self, peer: Peer, limit: Duration) -> Option<(Peer, Duration)> {
        let (peer, since) = match self.connections[..] {
            // The kernel lists no connection, so only the time since the last poll of the body is
            // known.
            [] => (peer, self.waiting_since),
            [(one, since)] => (peer.with_local_end(one.local), since),
            // A client may use one port for several connections. The body can only be waiting on
            // one with unacknowledged bytes.
            _ => {
                let mut full = self
                    .connections
                    .iter()
                    .filter(|(one, _)| one.unacknowledged > 0);
                let (one, since) = *full.next()?;
                match full.map(|(_, since)| *since).max() {
                    None => (peer.with_local_end(one.local), since),
                    // It is unknown which one is the body's, but all of them are idle since
                    // `latest`.
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
            let waiting_since = match *self.state.lock() {
                // The kernel's table is read only if the body has waited for a whole pause.
                BodyState::WaitsForClient(since) if since.elapsed() >= pause => since,
                BodyState::WaitsForClient(_) | BodyState::Runs => continue,
                BodyState::Ended => return,
            };
            let peer = self.client.peer;
            let connections = spawn_blocking(move || peer.connections()).await;
            let stall = Stall::seen(before, waiting_since, connections.unwrap_or_default());
            if let Some((peer, idle)) = stall.idle(peer, self.limit)
                && self.close(peer, waiting_since, idle).await
            {
                return;
            }
            before = Some(stall);
        }
    }

    /// Closes the connection if the body holds a `Read` and has been waiting for the client since
    /// `waiting_since`. Returns `true` if the connection was closed; then the watch ends.
    async fn close(&mut self, peer: Peer, waiting_since: Instant, idle: Duration) -> bool {
        let databases = self.outstanding.read_from_by_body();
        if databases.is_empty() {
            return false;
        }
        let found = match self.client.certain_peer() {
            Ok(_) => spawn_blocking(move || peer.socket())
                .await
                .unwrap_or_else(|panic| Err(io::Error::other(panic))),
            Err(error) => Err(error),
        };
        let result = match found {
            Ok(Some(socket)) => {
                // While the lock is held, the body cannot be polled. So the body cannot end before
                // the connection is closed, and the connection cannot proceed to its next request.
                let mut state = self.state.lock();
                if *state != BodyState::WaitsForClient(waiting_since) {
                    return false;
                }
                let result = peer.shut_down(socket);
                if result.is_ok() {
                    *state = BodyState::Ended;
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
                    "the client read nothing for longer than `read_idle_timeout` from a response body \
                     that holds a `Read`; its connection was closed"
                );
                true
            }
            // The connection may have been closed just now. Then Rocket drops the body soon.
            Err(error) if error.kind() == io::ErrorKind::NotConnected && !self.was_not_found => {
                self.was_not_found = true;
                false
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_reported, true) {
                    tracing::error!(
                        client = %peer.address, route, ?databases, idle_ms, %error,
                        "the client reads nothing from a response body that holds a `Read`, and its \
                         connection cannot be closed; the `Read` is held until the client continues \
                         or disconnects"
                    );
                }
                false
            }
        }
    }
}
