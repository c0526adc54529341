//! What an HTTP/2 connection may send beside its requests (step 1 in the life of a request): pings, settings, window updates
//! and resets cost the server work and their sender nothing, so that they are a budget of bytes which requests earn.

/// What a client may send before it is read, for a stream and for all of a connection's.
pub const STREAM_WINDOW: u32 = 256 * 1024;
pub const CONNECTION_WINDOW: u32 = 1 << 20;

/// Bytes for nothing to begin with, and at most. 64 KiB are 4,000 pings, a few milliseconds.
const FIRST: u64 = 64 * 1024;
const MOST: u64 = 4 << 20;
/// The frames about a piece of a body or an answer.
const A_PIECE: u64 = 64;

/// Bytes that a connection may still send for nothing. Whoever keeps to the protocol never runs out; whoever sends frames
/// without end does, before they are a load.
pub struct Frames {
    left: u64,
    /// What a request earns: its headers and the window of its stream, which may fill before the client hears that it is
    /// refused.
    a_request: u64,
}

impl Frames {
    /// To begin with there is also room for the headers of a first request.
    pub fn new(header_bytes: usize) -> Self {
        let headers = header_bytes as u64;
        Self { left: FIRST + headers, a_request: u64::from(STREAM_WINDOW) + headers }
    }

    /// Whether these bytes were still free.
    pub fn spent(&mut self, bytes: usize) -> bool {
        let left = self.left.checked_sub(bytes as u64);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    pub fn is_out(&self) -> bool {
        self.left == 0
    }

    /// A request's headers are there.
    pub fn request(&mut self) {
        self.earned(self.a_request);
    }

    /// So many bytes of a body or an answer.
    pub fn piece(&mut self, bytes: usize) {
        self.earned(bytes as u64 + A_PIECE);
    }

    fn earned(&mut self, bytes: u64) {
        self.left = (self.left + bytes).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADERS: usize = 16 * 1024;

    #[test]
    fn frames_for_nothing_run_out() {
        let mut frames = Frames::new(HEADERS);
        let all = FIRST as usize + HEADERS;
        assert!(frames.spent(all - 1) && !frames.is_out());
        assert!(!frames.spent(2) && frames.is_out());
    }

    #[test]
    fn frames_of_requests_never_run_out_and_what_they_earn_is_not_hoarded() {
        let mut frames = Frames::new(HEADERS);
        for _ in 0..1000 {
            // A whole window of a body that is refused unread, and a whole window of one that is read.
            frames.request();
            assert!(frames.spent(STREAM_WINDOW as usize + 1000));
            frames.piece(STREAM_WINDOW as usize);
            assert!(frames.spent(STREAM_WINDOW as usize + 9));
        }
        assert!(!frames.spent(MOST as usize + 1));
    }
}
