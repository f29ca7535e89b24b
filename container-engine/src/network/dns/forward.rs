//! Asking the host's resolvers: each in turn, over the protocol the asker used.

use std::{net::IpAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::server_address;

/// How long one server has.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest answer over UDP: more than any server sends without fragments.
const MAX_UDP: usize = 8 << 10;

/// Asks; the answer has the question's id. None where no server answers.
pub(super) async fn ask(query: &[u8], servers: &[IpAddr], tcp: bool) -> Option<Vec<u8>> {
    let asked_as = query.get(..2)?;
    // An id of our own, as the source port is: who did not see the question cannot forge the answer.
    let mut id = [0; 2];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut id).ok()?;
    let question = [&id, query.get(2..)?].concat();
    for server in servers {
        let asked = if tcp {
            timeout(PATIENCE, over_tcp(&question, *server)).await
        } else {
            timeout(PATIENCE, over_udp(&question, *server)).await
        };
        if let Ok(Ok(mut answer)) = asked {
            answer.splice(..2, asked_as.iter().copied());
            return Some(answer);
        }
    }
    None
}

async fn over_udp(question: &[u8], server: IpAddr) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server_address(server)).await?; // Answers of others never arrive.
    socket.send(question).await?;
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = buffer.get(..length).filter(|answer| belongs(answer, question)) {
            return Ok(answer.to_vec());
        }
    }
}

async fn over_tcp(question: &[u8], server: IpAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server_address(server)).await?;
    let length = u16::try_from(question.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if belongs(&answer, question) { Ok(answer) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

/// An answer with the same id; and the same question, byte for byte, where it repeats one.
fn belongs(answer: &[u8], question: &[u8]) -> bool {
    let (Some(head), Some(asked)) = (answer.get(..12), question.get(..12)) else { return false };
    let same_question = head[4..6] == [0, 0] || question_of(answer) == question_of(question);
    head[..2] == asked[..2] && head[2] & 0x80 != 0 && same_question
}

/// Name, type and class of the first question, which is never compressed, with letters in lower case.
fn question_of(packet: &[u8]) -> Option<Vec<u8>> {
    let mut at = 12;
    loop {
        match *packet.get(at)? {
            0 => break,
            length if length < 64 => at += usize::from(length) + 1,
            _ => return None,
        }
    }
    packet.get(12..at + 5).map(<[u8]>::to_ascii_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_belong_to_their_question() {
        let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03Web\x00\x00\x01\x00\x01";
        let with = |at: usize, byte: u8| {
            let mut answer = question.to_vec();
            answer[2] |= 0x80;
            answer[at] = byte;
            answer
        };
        assert!(belongs(&with(13, b'w'), question), "letters may differ in case");
        assert!(!belongs(&with(0, 0), question), "another id");
        assert!(!belongs(&with(13, b'x'), question), "another name");
        assert!(!belongs(&with(18, 28), question), "another type");
        assert!(!belongs(&with(2, 1), question), "no answer");
        assert!(!belongs(&question[..11], question) && !belongs(&[], question));
    }
}
