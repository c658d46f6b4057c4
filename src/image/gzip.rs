//! gzip on several threads with one result, however many there are.
//!
//! No option that could change the bytes by machine: the pieces are cut at fixed places, each is compressed by itself and
//! ends on a byte boundary (as pigz does), and together they are one ordinary gzip member.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, SyncSender, channel, sync_channel},
    },
    thread::JoinHandle,
};

use flate2::{Compress, Compression, Crc, FlushCompress};

/// Where the input is cut. Larger pieces save little space and cost memory: each thread holds about three.
const PIECE: usize = 512 << 10;
/// How much of a piece is tried before it is stored as it is.
const TRIAL: usize = 32 << 10;
/// No name, no time, unknown system: RFC 1952.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// An empty last block, then nothing.
const LAST_BLOCK: [u8; 2] = [3, 0];

type Job = (u64, Vec<u8>);

/// Compresses what is written to it. Call [`Gzip::finish`]: without it the output is cut off.
#[derive(Debug)]
pub struct Gzip<W: Write> {
    sink: W,
    piece: Vec<u8>,
    crc: Crc,
    jobs: Option<SyncSender<Job>>,
    results: Receiver<io::Result<Job>>,
    early: BTreeMap<u64, Vec<u8>>,
    sent: u64,
    written: u64,
    threads: u64,
    workers: Vec<JoinHandle<()>>,
}

impl<W: Write> Gzip<W> {
    /// Compresses into `sink` with this many threads.
    ///
    /// # Errors
    /// The sink's.
    pub fn new(mut sink: W, threads: usize) -> io::Result<Self> {
        sink.write_all(&HEADER)?;
        let threads = threads.clamp(1, 16);
        let (jobs, queue) = sync_channel::<Job>(threads);
        let (done, results) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let workers = (0..threads)
            .map(|_| {
                let (queue, done) = (Arc::clone(&queue), done.clone());
                std::thread::spawn(move || work(&queue, &done))
            })
            .collect();
        Ok(Self {
            sink,
            piece: Vec::with_capacity(PIECE),
            crc: Crc::new(),
            jobs: Some(jobs),
            results,
            early: BTreeMap::new(),
            sent: 0,
            written: 0,
            threads: threads as u64,
            workers,
        })
    }

    fn send(&mut self) -> io::Result<()> {
        while self.sent - self.written > self.threads * 2 {
            self.receive()?;
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        let job = (self.sent, piece);
        self.sent += 1;
        match &self.jobs {
            Some(jobs) => jobs.send(job).map_err(|_| io::Error::other("a compressing thread has ended")),
            None => Err(io::Error::other("written to after its end")),
        }
    }

    /// Takes one result and writes all that are next in order.
    fn receive(&mut self) -> io::Result<()> {
        let (number, bytes) =
            self.results.recv().map_err(|_| io::Error::other("the compressing threads have ended"))??;
        self.early.insert(number, bytes);
        while let Some(bytes) = self.early.remove(&self.written) {
            self.sink.write_all(&bytes)?;
            self.written += 1;
        }
        Ok(())
    }

    /// Writes what is left and gives back the sink.
    ///
    /// # Errors
    /// The sink's.
    pub fn finish(mut self) -> io::Result<W> {
        if !self.piece.is_empty() {
            self.send()?;
        }
        self.jobs = None;
        while self.written < self.sent {
            self.receive()?;
        }
        self.sink.write_all(&LAST_BLOCK)?;
        self.sink.write_all(&self.crc.sum().to_le_bytes())?;
        self.sink.write_all(&self.crc.amount().to_le_bytes())?;
        for worker in self.workers {
            worker.join().map_err(|_| io::Error::other("a compressing thread failed"))?;
        }
        Ok(self.sink)
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..n]);
        self.crc.update(&bytes[..n]);
        if self.piece.len() == PIECE {
            self.send()?;
        }
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        // A flush that cut a piece would make the bytes depend on who writes.
        Ok(())
    }
}

fn work(queue: &Mutex<Receiver<Job>>, done: &std::sync::mpsc::Sender<io::Result<Job>>) {
    let mut fast = Compress::new(Compression::fast(), false);
    let mut store = Compress::new(Compression::none(), false);
    loop {
        let Ok((number, piece)) = queue.lock().map_err(drop).and_then(|queue| queue.recv().map_err(drop)) else {
            return;
        };
        let result = deflate(&mut fast, &mut store, &piece).map(|bytes| (number, bytes));
        if done.send(result).is_err() {
            return;
        }
    }
}

/// One piece as deflate blocks that end on a byte boundary; stored where its beginning hardly shrinks.
fn deflate(fast: &mut Compress, store: &mut Compress, piece: &[u8]) -> io::Result<Vec<u8>> {
    if piece.len() > TRIAL {
        let trial = run(fast, &piece[..TRIAL])?;
        if trial.len() * 100 > TRIAL * 97 {
            return run(store, piece);
        }
    }
    run(fast, piece)
}

fn run(deflater: &mut Compress, piece: &[u8]) -> io::Result<Vec<u8>> {
    deflater.reset();
    let mut out = Vec::with_capacity(piece.len() / 2 + 1024);
    loop {
        let read = usize::try_from(deflater.total_in()).unwrap_or(usize::MAX);
        deflater.compress_vec(&piece[read..], &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
        // Room left over means that the flush is complete.
        if deflater.total_in() == piece.len() as u64 && out.len() < out.capacity() {
            return Ok(out);
        }
        out.reserve(out.capacity().max(1024));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn gzip(bytes: &[u8], threads: usize, step: usize) -> Vec<u8> {
        let mut gzip = Gzip::new(Vec::new(), threads).expect("a gzip");
        for part in bytes.chunks(step) {
            gzip.write_all(part).expect("written");
        }
        gzip.finish().expect("finished")
    }

    fn sample(len: usize) -> Vec<u8> {
        // text, then noise, so that both ways of a piece are taken
        let mut state = 1u64;
        (0..len)
            .map(|at| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if at < len / 2 { b"matrix\n"[at % 7] } else { state.to_be_bytes()[0] }
            })
            .collect()
    }

    #[test]
    fn one_result_for_any_number_of_threads() {
        for len in [0, 1, 1000, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 17] {
            let bytes = sample(len);
            let one = gzip(&bytes, 1, 1 << 20);
            assert_eq!(one, gzip(&bytes, 4, 4097), "{len}");
            let mut back = Vec::new();
            let mut reader = flate2::read::GzDecoder::new(one.as_slice());
            reader.read_to_end(&mut back).expect("a gzip member");
            assert_eq!(back, bytes, "{len}");
            assert!(reader.into_inner().is_empty(), "one member only");
        }
        assert!(gzip(&sample(4 << 20), 2, 4096).len() < 5 << 19, "the text half shrinks");
    }
}
