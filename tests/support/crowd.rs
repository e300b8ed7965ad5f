//! Many connections at once from several addresses of loopback, without a thread for each.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};

/// Nothing that is awaited takes longer, or the test fails.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The address 127.0.0.`host`, as one more client.
pub(crate) fn host(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, host)
}

/// Connects from an address of ours.
pub(crate) fn connect_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddrV4::new(from, 0))?;
    connect(&socket, &to)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

/// The same with a small window: the kernel takes little that nobody reads.
pub(crate) fn connect_narrow(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_recv_buffer_size(&socket, 8 * 1024)?;
    bind(&socket, &SocketAddrV4::new(from, 0))?;
    connect(&socket, &to)?;
    Ok(TcpStream::from(socket))
}

/// A connection that answers are read from as they come.
pub(crate) struct Talk {
    pub(crate) stream: TcpStream,
    to_send: Vec<u8>,
    sent: usize,
    pub(crate) answer: Vec<u8>,
    pub(crate) over: bool,
}

impl Talk {
    pub(crate) fn new(stream: TcpStream, to_send: Vec<u8>) -> Talk {
        stream.set_nonblocking(true).expect("non-blocking");
        Talk { stream, to_send, sent: 0, answer: Vec::new(), over: false }
    }

    /// The status of the answer; 0 where there is none.
    pub(crate) fn status(&self) -> u16 {
        let text = self.answer.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3));
        text.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.answer).into_owned()
    }

    fn go_on(&mut self) {
        while self.sent < self.to_send.len() {
            match self.stream.write(&self.to_send[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Refused while it sends: the answer counts.
                Err(_) => self.sent = self.to_send.len(),
            }
        }
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return self.over = true,
                Ok(len) => self.answer.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => return self.over = true,
            }
        }
    }
}

/// Sends and receives on all of them until each is over; panics if that takes too long.
pub(crate) fn until_over(talks: &mut [Talk]) {
    let begun = Instant::now();
    while talks.iter().any(|talk| !talk.over) {
        assert!(begun.elapsed() < TIMEOUT, "not all were answered");
        for talk in talks.iter_mut().filter(|talk| !talk.over) {
            talk.go_on();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether anything of this socket's is unread, or it has ended.
pub(crate) fn has_news(stream: &impl AsFd) -> bool {
    let mut byte = [0];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut byte, flags).is_ok()
}
