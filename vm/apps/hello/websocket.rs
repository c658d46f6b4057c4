//! A websocket that says back what it hears. One frame a message, as browsers send small ones.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// How soon a server that ends says goodbye.
const GLANCE: Duration = Duration::from_millis(100);
/// A peer that says nothing for this long is gone.
const IDLE: Duration = Duration::from_secs(300);
const MAX_MESSAGE: u64 = 64 << 10;

/// The answer to the handshake's key.
pub fn accept(key: &str) -> String {
    base64(&sha1(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()))
}

/// Echoes until the peer says goodbye, or the server ends.
pub fn echo(reader: &mut impl Read, mut stream: &TcpStream, stopping: &AtomicBool) -> io::Result<()> {
    stream.set_read_timeout(Some(GLANCE))?;
    let mut heard = Instant::now();
    loop {
        let mut first = [0];
        match reader.read(&mut first) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if stopping.load(Ordering::SeqCst) || heard.elapsed() > IDLE {
                    // 1001: going away
                    return stream.write_all(&[0x88, 2, 0x03, 0xe9]);
                }
                continue;
            }
            Err(e) => return Err(e),
        }
        heard = Instant::now();
        stream.set_read_timeout(Some(IDLE))?;
        let message = read(reader)?;
        stream.set_read_timeout(Some(GLANCE))?;
        match first[0] & 0x0f {
            8 => return stream.write_all(&frame(0x88, &message)),
            9 => stream.write_all(&frame(0x8a, &message))?,
            10 => {}
            _ => stream.write_all(&frame(first[0], &message))?,
        }
    }
}

/// What follows a frame's first byte.
fn read(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut byte = [0];
    reader.read_exact(&mut byte)?;
    let masked = byte[0] & 0x80 != 0;
    let length = match byte[0] & 0x7f {
        126 => {
            let mut long = [0; 2];
            reader.read_exact(&mut long)?;
            u64::from(u16::from_be_bytes(long))
        }
        127 => {
            let mut long = [0; 8];
            reader.read_exact(&mut long)?;
            u64::from_be_bytes(long)
        }
        short => u64::from(short),
    };
    if length > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut mask = [0; 4];
    if masked {
        reader.read_exact(&mut mask)?;
    }
    let mut message = Vec::new();
    if reader.take(length).read_to_end(&mut message)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    message.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    Ok(message)
}

fn frame(first: u8, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match u8::try_from(message.len()) {
        Ok(short) if short < 126 => bytes.push(short),
        // At most 64 KiB: it fits, but for the very last length.
        _ => match u16::try_from(message.len()) {
            Ok(long) => {
                bytes.push(126);
                bytes.extend(long.to_be_bytes());
            }
            Err(_) => {
                bytes.push(127);
                bytes.extend((message.len() as u64).to_be_bytes());
            }
        },
    }
    bytes.extend(message);
    bytes
}

#[expect(clippy::many_single_char_names, reason = "as the standard calls them")]
/// RFC 3174. For the handshake only, which proves nothing: no reason to bring a library.
fn sha1(text: &[u8]) -> [u8; 20] {
    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut padded = text.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend((text.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks_exact(64) {
        let mut words = [0u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        for at in 16..80 {
            words[at] = (words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (at, word) in words.iter().enumerate() {
            let (f, k) = match at / 20 {
                0 => (b & c | !b & d, 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (sum, part) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let mut sum = [0; 20];
    for (bytes, word) in sum.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    sum
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let number = (0..3).fold(0usize, |n, at| n << 8 | usize::from(three.get(at).copied().unwrap_or(0)));
        for at in 0..4 {
            let letter = LETTERS[number >> (18 - 6 * at) & 63];
            text.push(if at <= three.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_handshake_of_the_standard() {
        assert_eq!(super::accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
