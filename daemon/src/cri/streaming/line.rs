//! Noticing that a client has hung up while nobody reads from it: who waits for a process to take input must not
//! wait for a client that was killed.

use std::io;
use std::os::fd::AsFd as _;

use bytes::Bytes;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// A second descriptor of a client's connection, from which nothing is read.
#[derive(Debug)]
pub(super) struct Line(TcpStream);

impl Line {
    /// Watches a connection; it stays open as long as this.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(super) fn watch(stream: &TcpStream) -> io::Result<Self> {
        let twin = stream.as_fd().try_clone_to_owned()?;
        let twin = std::net::TcpStream::from(twin);
        Ok(Self(TcpStream::from_std(twin)?))
    }

    /// Returns when the client has ended its half of the connection or broken it off.
    pub(super) async fn ended(&self) {
        loop {
            // The reactor is told of each arrival, and of the end (`EPOLLRDHUP`), which it never forgets.
            match self.0.ready(Interest::READABLE).await {
                Ok(ready) if !ready.is_read_closed() => {}
                Ok(_) | Err(_) => return,
            }
            // Forgets the arrival, as a read that finds nothing does; what has arrived is for another to read.
            let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _forgotten = self.0.try_io(Interest::READABLE, nothing);
        }
    }

    /// Puts bytes into a queue once it has room; false when nobody takes them any more.
    ///
    /// # Errors
    /// The client is gone, and the queue is full.
    pub(super) async fn pass(&self, queue: &mpsc::Sender<Bytes>, bytes: Bytes) -> io::Result<bool> {
        let bytes = match queue.try_send(bytes) {
            Ok(()) => return Ok(true),
            Err(TrySendError::Closed(_)) => return Ok(false),
            Err(TrySendError::Full(bytes)) => bytes,
        };
        tokio::select! {
            biased;
            sent = queue.send(bytes) => Ok(sent.is_ok()),
            () = self.ended() => {
                let message = "the client hung up while its input was waited with";
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, message))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    pub(in super::super) async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_noticed_with_its_bytes_unread() {
        let (mut client, server) = pair().await;
        let line = Line::watch(&server).unwrap();
        let (queue, mut taken) = mpsc::channel(1);
        client.write_all(b"unread").await.unwrap();
        assert!(line.pass(&queue, Bytes::from_static(b"1")).await.unwrap());
        let mut waiting = Box::pin(line.pass(&queue, Bytes::from_static(b"2")));
        tokio::select! {
            biased;
            result = &mut waiting => panic!("{result:?} though the queue is full"),
            () = tokio::task::yield_now() => {}
        }
        drop(client);
        let error = waiting.await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        // Where there is room, what came before the end is passed on.
        assert_eq!(taken.recv().await.unwrap(), "1");
        assert!(line.pass(&queue, Bytes::from_static(b"3")).await.unwrap());
        drop(taken);
        assert!(!line.pass(&queue, Bytes::from_static(b"4")).await.unwrap());
    }

    #[tokio::test]
    async fn a_client_that_is_there_is_waited_for() {
        let (mut client, server) = pair().await;
        let line = Line::watch(&server).unwrap();
        let (queue, mut taken) = mpsc::channel(1);
        queue.try_send(Bytes::from_static(b"first")).unwrap();
        let passing = line.pass(&queue, Bytes::from_static(b"second"));
        let taking = async {
            client.write_all(b"more").await.unwrap();
            (taken.recv().await.unwrap(), taken.recv().await.unwrap())
        };
        let (passed, taken) = tokio::join!(passing, taking);
        assert!(passed.unwrap());
        assert_eq!(
            taken,
            (Bytes::from_static(b"first"), Bytes::from_static(b"second"))
        );
    }
}
