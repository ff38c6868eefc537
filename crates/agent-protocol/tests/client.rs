//! The host's side against an agent that is played by the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use sandbank_agent_protocol::{
    AgentError, ClientError, Connection, DATA_MAX, ErrorKind, Frame, FrameError, FrameReader, Reply, Request, write_frame,
};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

async fn connected() -> (Connection, UnixStream) {
    let (host, agent) = UnixStream::pair().unwrap();
    (Connection::begin(host, &Request::Ping).await.unwrap(), agent)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(future)
}

async fn answered(bytes: &[u8]) -> Result<Reply, ClientError> {
    let (mut connection, mut agent) = connected().await;
    agent.write_all(bytes).await.unwrap();
    drop(agent);
    connection.reply("a pong").await
}

async fn answered_with(frame: &Frame) -> Result<Reply, ClientError> {
    let mut bytes = bytes::BytesMut::new();
    sandbank_agent_protocol::encode_frame(frame, &mut bytes);
    answered(&bytes).await
}

#[test]
fn a_refusal_is_an_error_of_its_own() {
    block_on(async {
        let refusal = AgentError::new(ErrorKind::Denied, "not you");
        let error = answered_with(&Frame::message(&Reply::Error(refusal.clone())).unwrap()).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused(said) if said == refusal));
    });
}

#[test]
fn what_is_not_a_reply_is_out_of_turn_and_silence_is_truncated() {
    block_on(async {
        let data = answered_with(&Frame::Data(Bytes::from_static(b"x"))).await;
        assert!(matches!(data, Err(ClientError::OutOfTurn { expected: "a pong" })));
        assert!(matches!(answered(b"").await, Err(ClientError::Frame(FrameError::Truncated | FrameError::Io(_)))));
        let garbage = answered_with(&Frame::Message(Bytes::from_static(b"{}"))).await;
        assert!(matches!(garbage, Err(ClientError::Frame(FrameError::Malformed { .. }))));
        let long = answered(&[0xff, 0xff, 0xff, 0xff, 0]).await;
        assert!(matches!(long, Err(ClientError::Frame(FrameError::TooLong { .. }))));
    });
}

#[test]
fn bulk_data_is_cut_into_frames_that_a_receiver_accepts() {
    block_on(async {
        let (mut connection, agent) = connected().await;
        let sending = async {
            connection.send_data(vec![3; DATA_MAX * 2 + 5].into()).await.unwrap();
            connection.send_end().await.unwrap();
        };
        let receiving = async {
            let mut reader = FrameReader::new(agent);
            assert!(matches!(reader.next().await.unwrap(), Some(Frame::Message(_))));
            let mut sizes = Vec::new();
            while let Some(Frame::Data(data)) = reader.next().await.unwrap() {
                sizes.push(data.len());
            }
            sizes
        };
        let (sizes, ()) = tokio::join!(receiving, sending);
        assert_eq!(sizes, [DATA_MAX, DATA_MAX, 5]);
    });
}

#[test]
fn a_frame_over_a_socket_is_read_back() {
    block_on(async {
        let (mut connection, mut agent) = connected().await;
        write_frame(&mut agent, &Frame::message(&Reply::Done).unwrap()).await.unwrap();
        assert_eq!(connection.reply("done").await.unwrap(), Reply::Done);
    });
}
