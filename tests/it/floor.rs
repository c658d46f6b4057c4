//! The load that other tests measure with, measured itself: what it adds, and that it counts to the last request.

#[path = "../load/mod.rs"]
mod load;

use std::{net::SocketAddr, thread, time::Duration};

use load::{Kind, Load, Mix};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// A server of a few lines: says back what it gets; `flawed`, every tenth answer is a 503 and every 25th is none.
fn server(flawed: bool) -> SocketAddr {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        runtime.block_on(async {
            let count = std::rc::Rc::new(std::cell::Cell::new(0u32));
            let local = tokio::task::LocalSet::new();
            let accept = async {
                while let Ok((stream, _)) = listener.accept().await {
                    let count = std::rc::Rc::clone(&count);
                    tokio::task::spawn_local(async move { serve(stream, flawed, &count).await });
                }
            };
            local.run_until(accept).await;
        });
    });
    address
}

async fn serve(stream: TcpStream, flawed: bool, count: &std::cell::Cell<u32>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut line = String::new();
        while line.trim_end() != "" || line.is_empty() {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        count.set(count.get() + 1);
        if flawed && count.get().is_multiple_of(25) {
            return Ok(());
        }
        let status = if flawed && count.get().is_multiple_of(10) { 503 } else { 200 };
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &body].concat()).await?;
    }
}

fn mix(rate: u32) -> Mix {
    let paths = vec!["/a/".to_owned(), "/b/".to_owned(), "/c/".to_owned()];
    Mix { paths, rate, posts: 10, slow: 0, fresh: 30, sockets: Vec::new() }
}

#[test]
fn five_hundred_requests_a_second_are_sent_in_time() {
    let load = Load::with(server(false), mix(500));
    load.until(Duration::from_secs(3));
    let report = load.stop();
    report.none_lost();
    assert!((1480..=1510).contains(&report.total()), "{report}");
    let posts = report.asked.iter().filter(|a| a.kind == Kind::Post).count();
    assert!((140..=160).contains(&posts), "{posts} of {}", report.total());
    let fresh = report.asked.iter().filter(|a| a.fresh).count();
    assert!((430..=470).contains(&fresh), "{fresh}");
    // On a machine that is busy with other things too; alone it is 1 to 2 ms.
    assert!(report.percentile(50) < Duration::from_millis(10), "{report}");
}

#[test]
fn every_loss_is_counted_with_its_reason() {
    let load = Load::with(server(true), mix(200));
    load.until(Duration::from_secs(2));
    let report = load.stop();
    let total = report.total();
    let ends = report.by_end();
    assert_eq!(ends.values().sum::<usize>(), total);
    assert_eq!(ends.keys().map(String::as_str).collect::<Vec<_>>(), ["200", "503", "closed without an answer"]);
    // Every 10th but those that are also a 50th.
    assert_eq!((ends["closed without an answer"], ends["503"]), (total / 25, total / 10 - total / 50), "{report}");
    assert_eq!(report.lost(), total / 25 + total / 10 - total / 50);
    assert_eq!(report.series().values().sum::<usize>(), report.lost());
    let posts = report.losses().filter(|a| a.id.is_some()).count();
    assert!(posts > 0 && posts == report.lost_posts(), "{report}");
}
