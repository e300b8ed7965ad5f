//! Uploads of which a test follows head, body and answer itself.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use super::support::Registry;

/// A request whose body the server waits for.
pub(crate) struct Running(TcpStream);

impl Running {
    /// Sends the head of a POST, and comes back when the server asks for the body.
    pub(crate) fn begin(addr: SocketAddr, path: &str, len: usize) -> Running {
        let mut stream = TcpStream::connect(addr).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {len}\r\nExpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("send");
        let mut go_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
        stream.read_exact(&mut go_on).expect("an answer");
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        Running(stream)
    }

    pub(crate) fn finish(mut self, body: &[u8]) -> String {
        self.0.write_all(body).expect("send");
        let mut answer = String::new();
        self.0.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

/// Sends a body of zeros while it waits for the answer, as clients do that must not miss a refusal.
pub(crate) fn upload(registry: &Registry, method: &str, path: &str, len: usize) -> String {
    let mut stream = TcpStream::connect(registry.addr()).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Length: {len}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("send");
    let mut sending = stream.try_clone().expect("the same socket");
    thread::scope(|scope| {
        scope.spawn(move || {
            let piece = vec![0; 64 * 1024];
            (0..len / piece.len()).all(|_| sending.write_all(&piece).is_ok())
        });
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..read]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    })
}
