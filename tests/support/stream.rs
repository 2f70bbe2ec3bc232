//! Server-sent events, read as they arrive.

use std::pin::Pin;
use std::time::Duration;

use rocket::futures::{Stream, StreamExt};
use rocket::tokio::time::timeout;

use super::Http;

/// An open stream of events. Dropping it closes the connection.
pub struct Events {
    parts: Pin<Box<dyn Stream<Item = reqwest::Result<Vec<u8>>> + Send>>,
    /// Received text that has not been returned as events yet.
    text: String,
}

impl Events {
    /// Opens a stream and waits for its first part. The service has registered the listener by
    /// then.
    pub async fn of(http: &Http, path: &str) -> Self {
        let response = http.request(&format!("GET {path}")).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let parts = response.bytes_stream();
        let mut events = Self {
            parts: Box::pin(parts.map(|part| part.map(|part| part.to_vec()))),
            text: String::new(),
        };
        assert!(
            events.read().await,
            "the stream ended before its first part"
        );
        events
    }

    /// Reads the next part. Returns `false` at the end of the stream. A part may be only a
    /// heartbeat, so callers that wait for an event must limit the number of reads.
    async fn read(&mut self) -> bool {
        let part = timeout(Duration::from_secs(60), self.parts.next()).await;
        let Some(part) = part.expect("the stream was silent for a minute") else {
            return false;
        };
        self.text += std::str::from_utf8(&part.unwrap()).unwrap();
        true
    }

    /// Returns the next events, each as name and data, or `None` at the end of the stream.
    pub async fn more(&mut self) -> Option<Vec<(String, String)>> {
        if !self.read().await {
            return None;
        }
        let mut events = Vec::new();
        while let Some((event, rest)) = self.text.split_once("\n\n") {
            let field = |name| event.lines().find_map(|line| line.strip_prefix(name));
            if let (Some(name), Some(data)) = (field("event:"), field("data:")) {
                events.push((name.trim().to_owned(), data.trim().to_owned()));
            }
            self.text = rest.to_owned();
        }
        Some(events)
    }
}
