//! Reads a response before the commit, for resources that store it.

use std::io::Cursor;

use rocket::Response;
use rocket::tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout_at};

use crate::tx::failure::Error;
use crate::tx::final_response::{FinalBody, FinalResponse};

/// Returns the contents of `response`, which stays complete. A body of at most `limit` bytes is
/// read into memory and put back.
///
/// # Errors
///
/// The body cannot be read, or not until `deadline`. It is lost then, so the response cannot be
/// sent.
pub(super) async fn capture(
    response: &mut Response<'_>,
    limit: usize,
    deadline: Instant,
) -> Result<FinalResponse, Error> {
    let body = timeout_at(deadline, take_body(response, limit)).await;
    let unreadable = |reason: String| {
        tracing::error!(
            reason,
            "the body of a response could not be read; nothing is committed"
        );
        Error::UnreadableBody
    };
    let body = match body {
        Ok(Ok(body)) => body,
        Ok(Err(error)) => return Err(unreadable(error.to_string())),
        Err(_elapsed) => return Err(unreadable("it took too long".to_owned())),
    };
    let headers = response.headers().iter();
    Ok(FinalResponse {
        status: response.status(),
        headers: headers
            .map(|header| (header.name().to_string(), header.value().to_owned()))
            .collect(),
        body,
    })
}

async fn take_body(response: &mut Response<'_>, limit: usize) -> std::io::Result<FinalBody> {
    if response.body().is_none() {
        return Ok(FinalBody::Bytes(Vec::new()));
    }
    let Some(size) = response.body_mut().size().await else {
        return Ok(FinalBody::Streamed);
    };
    if size > limit {
        return Ok(FinalBody::TooLarge(size));
    }
    let max_chunk_size = response.body().max_chunk_size();
    let mut bytes = Vec::with_capacity(size);
    let mut body = response.body_mut().take();
    // The client receives `size` as the length, so bytes after that are never sent.
    let mut limited = AsyncReadExt::take(&mut body, size as u64);
    let read = limited.read_to_end(&mut bytes).await?;
    if read < size {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    response.set_sized_body(size, Cursor::new(bytes.clone()));
    response.set_max_chunk_size(max_chunk_size);
    Ok(FinalBody::Bytes(bytes))
}
