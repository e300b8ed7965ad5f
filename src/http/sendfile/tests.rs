//! Files on their way to a real socket.

use std::io::{self, IoSlice, Write};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn source_of(bytes: &[u8]) -> Arc<Source> {
    Arc::new(Source { file: file_of(bytes), path: PathBuf::from("a/blobs/sha256/0") })
}

async fn pair(windows: &Windows) -> (TcpStream, Outlet) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (client, server) = tokio::join!(client, listener.accept());
    (client.unwrap(), Outlet::new(server.unwrap().0, windows.clone()))
}

/// Writes slices as hyper does: all of what is left, until nothing is.
async fn write_all(outlet: &mut Outlet, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !slices.is_empty() {
        let sent = outlet.write_vectored(slices).await?;
        IoSlice::advance_slices(&mut slices, sent);
    }
    outlet.flush().await
}

async fn read_to_end(mut client: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    client.read_to_end(&mut all).await.unwrap();
    all
}

/// The addresses stand for another file than the one that is mapped: what arrives says who read.
#[tokio::test]
async fn the_kernel_sends_the_file_and_nobody_reads_the_slice() {
    let windows = Windows::default();
    let (client, mut outlet) = pair(&windows).await;
    let (mapped, sent) = (vec![b'm'; 100_000], vec![b's'; 100_000]);
    let map = Map::new(&file_of(&mapped), 0, mapped.len()).unwrap();
    let slice = windows.add(map, 0, source_of(&sent));
    assert_eq!(slice, mapped);
    let writing = async {
        let parts = [&b"head"[..], b"", &slice[..60_000], &slice[60_000..], b"tail", &slice[1..3]];
        write_all(&mut outlet, &mut parts.map(IoSlice::new)).await.unwrap();
        drop(outlet);
    };
    let ((), got) = tokio::join!(writing, read_to_end(client));
    assert_eq!(got, [b"head", &sent[..], b"tail", b"ss"].concat());
}

#[tokio::test]
async fn addresses_are_forgotten_before_they_are_given_back() {
    let windows = Windows::default();
    let bytes = vec![7; 10_000];
    let map = |first| Map::new(&file_of(&bytes), first, 5000).unwrap();
    let one = windows.add(map(0), 0, source_of(&bytes));
    let two = windows.add(map(4999), 4999, source_of(&bytes));
    let part = windows.find(&two[10..30]).unwrap();
    assert_eq!((part.at, part.len), (5009, 20));
    let rest = one.slice(4000..);
    let address = one.as_ptr();
    drop(one);
    assert_eq!(windows.find(&rest).unwrap().at, 4000, "a part of it is on its way");
    drop(rest);
    assert!(windows.entries().iter().all(|entry| entry.start != address.addr()));
    assert!(windows.find(&two).is_some());
    assert!(windows.find(&bytes).is_none());
    assert!(Windows::default().find(&two).is_none(), "another connection");
}

#[tokio::test]
async fn a_part_is_sent_from_any_place_on() {
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    for (first, len) in [(0, bytes.len()), (4095, 2), (4096, 4096), (70_001, 2_500_000)] {
        let windows = Windows::default();
        let (client, mut outlet) = pair(&windows).await;
        let blob = OpenBlob::sealed(file_of(&bytes), bytes.len() as u64);
        let body = windows.body(blob, first as u64, len as u64).unwrap();
        let writing = async {
            let mut pieces = body.into_data_stream();
            while let Some(piece) = pieces.next().await {
                let piece = piece.unwrap();
                assert!(windows.find(&piece).is_some(), "it is known as a part of the file");
                write_all(&mut outlet, &mut [IoSlice::new(&piece)]).await.unwrap();
            }
            drop(outlet);
        };
        let ((), got) = tokio::join!(writing, read_to_end(client));
        assert!(got == bytes[first..first + len], "{first} {len}");
        assert!(windows.entries().is_empty());
    }
}

/// Its length was promised, so the connection ends with an error; nobody reads behind the end.
#[tokio::test]
async fn a_file_that_was_cut_short_ends_the_connection() {
    let bytes = vec![7; 9 << 20];
    let windows = Windows::default();
    let file = file_of(&bytes);
    let cut = file.try_clone().unwrap();
    let (client, mut outlet) = pair(&windows).await;
    let blob = OpenBlob::sealed(file, bytes.len() as u64);
    let body = windows.body(blob, 0, bytes.len() as u64).unwrap();
    let mut pieces = body.into_data_stream();
    let piece = pieces.next().await.unwrap().unwrap();
    cut.set_len(1000).unwrap();
    let writing = async {
        let written = write_all(&mut outlet, &mut [IoSlice::new(&piece)]).await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        drop(outlet);
    };
    let ((), got) = tokio::join!(writing, read_to_end(client));
    assert_eq!(got.len(), 1000);
    // The piece after it was looked for before the file was cut; the last one is missed.
    let _ = pieces.next().await;
    assert!(pieces.next().await.unwrap().is_err());
}

#[tokio::test]
async fn what_is_not_in_memory_is_read_before_it_is_sent() {
    // A file system with a cache that can be emptied.
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("blob");
    let bytes: Vec<u8> = (0..9_000_000u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let file = File::open(&path).unwrap();
    rustix::fs::fsync(&file).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let source = Arc::new(Source { file, path });
    let part = |at| Part { source: Arc::clone(&source), at, len: 1000 };
    assert!(!part(5_000_000).has(5_000_000), "the cache was emptied");
    let windows = Windows::default();
    let blob = OpenBlob::sealed(source.file.try_clone().unwrap(), bytes.len() as u64);
    let body = windows.body(blob, 0, bytes.len() as u64).unwrap();
    let mut pieces = body.into_data_stream();
    let mut at = 0;
    while let Some(piece) = pieces.next().await {
        let len = piece.unwrap().len();
        for page in (at..at + len).step_by(4096) {
            assert!(part(page as u64).has(page as u64), "{page}");
        }
        at += len;
    }
    assert_eq!(at, bytes.len());
}

/// Others can change it: what is sent has to be looked at.
#[test]
fn only_what_is_sealed_is_mapped() {
    let windows = Windows::default();
    let open = OpenBlob::shared(file_of(b"abc"), 3);
    assert!(windows.body(open, 0, 3).is_err());
    let none = OpenBlob::sealed(file_of(b""), 0);
    assert!(windows.body(none, 0, 0).is_err(), "nothing cannot be mapped");
}

#[tokio::test]
async fn who_takes_nothing_makes_the_writer_wait() {
    let bytes = vec![7; 32 << 20];
    let windows = Windows::default();
    let (client, mut outlet) = pair(&windows).await;
    let blob = OpenBlob::sealed(file_of(&bytes), bytes.len() as u64);
    let mut pieces = windows.body(blob, 0, bytes.len() as u64).unwrap().into_data_stream();
    let writing = async {
        while let Some(piece) = pieces.next().await {
            write_all(&mut outlet, &mut [IoSlice::new(&piece.unwrap())]).await.unwrap();
        }
    };
    let waited = tokio::time::timeout(Duration::from_millis(300), writing).await;
    assert!(waited.is_err(), "32 MiB are more than the kernel takes");
    drop(client);
}
