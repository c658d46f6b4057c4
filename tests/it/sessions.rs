//! Sessions to nodes over a real sshd on this machine.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use matrix::remote::{
    docker::EngineClient,
    ssh::{self, Session, SshError},
};

use crate::rig_sshd::{Sshd, fake_engine, free_port, keygen};

const SOON: Duration = Duration::from_secs(10);

/// How many masters have their control socket in `dir`.
fn masters(dir: &Path) -> usize {
    let found = std::process::Command::new("pgrep").args(["-fc", &format!("ssh -S {}/", dir.display())]).output();
    String::from_utf8(found.unwrap().stdout).unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_answers_through_a_session_until_it_is_closed() {
    let sshd = Sshd::start("");
    let target = sshd.target("node25");
    let _engine = fake_engine(&target.engine_socket, "a");
    let session = Session::open(&target, &sshd.run()).await.unwrap();
    let engine = EngineClient::open(target.node.clone(), session.socket()).unwrap();
    engine.ping(SOON).await.unwrap();
    let info = engine.info().await.unwrap();
    assert_eq!((info.version.as_str(), info.cpus, info.architecture.as_str()), ("20.10.24", 2, "amd64"));
    let (free, total) = session.disk("/").await.expect("df's figures");
    assert!(0 < free && free < total, "{free} of {total}");
    assert_eq!(masters(&sshd.run()), 1);
    session.close().await;
    assert_eq!(masters(&sshd.run()), 0);
    assert_eq!(fs::read_dir(sshd.run()).unwrap().count(), 0, "files are left");
    assert!(engine.ping(SOON).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_session_leaves_nothing() {
    let sshd = Sshd::start("");
    let session = Session::open(&sshd.target("node25"), &sshd.run()).await.unwrap();
    drop(session);
    let start = Instant::now();
    while masters(&sshd.run()) > 0 || fs::read_dir(sshd.run()).unwrap().count() > 0 {
        assert!(start.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_connection_is_seen_at_once() {
    let sshd = Sshd::start("");
    let session = Session::open(&sshd.target("node25"), &sshd.run()).await.unwrap();
    let closed = session.closed();
    assert!(tokio::time::timeout(Duration::from_millis(200), session.closed()).await.is_err());
    sshd.kill_connections();
    let words = tokio::time::timeout(SOON, closed).await.expect("it was not seen");
    assert!(words.contains("closed"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_key_is_refused_with_both_fingerprints() {
    let sshd = Sshd::start("");
    let mut target = sshd.target("node25");
    target.key = keygen(&sshd.dir.path().join("other"));
    let error = Session::open(&target, &sshd.run()).await.unwrap_err();
    assert!(error.is_changed_key());
    let text = error.to_string();
    assert!(text.contains(&sshd.key.fingerprint) && text.contains(&target.key.fingerprint), "{text}");
    assert!(error.hint().unwrap().contains("matrix nodes admit node25"));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_apart() {
    let sshd = Sshd::start("");
    let mut target = sshd.target("node25");
    keygen(&sshd.dir.path().join("stranger"));
    target.identity = sshd.dir.path().join("stranger");
    let error = Session::open(&target, &sshd.run()).await.unwrap_err();
    assert!(matches!(error, SshError::Denied { .. }), "{error}");
    let mut target = sshd.target("node25");
    target.port = matrix::model::Port::new(free_port()).unwrap();
    let error = Session::open(&target, &sshd.run()).await.unwrap_err();
    assert!(matches!(error, SshError::Refused { .. }), "{error}");
    let error = ssh::scan(&target.node, target.address, target.port).await.unwrap_err();
    assert!(matches!(error, SshError::Refused { .. }), "{error}");
    let long = sshd.run().join("x".repeat(80));
    let error = Session::open(&sshd.target("node25"), &long).await.unwrap_err();
    assert!(matches!(error, SshError::PathTooLong { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_offered_key_is_read() {
    let sshd = Sshd::start("");
    let target = sshd.target("node25");
    assert_eq!(ssh::scan(&target.node, target.address, target.port).await.unwrap(), sshd.key);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_manager_left_is_ended_at_the_start() {
    let sshd = Sshd::start("");
    let session = Session::open(&sshd.target("node25"), &sshd.run()).await.unwrap();
    assert_eq!(masters(&sshd.run()), 1);
    ssh::clean(&sshd.run()).unwrap();
    tokio::time::timeout(SOON, session.closed()).await.expect("the master lives on");
    assert_eq!(masters(&sshd.run()), 0);
    assert_eq!(fs::read_dir(sshd.run()).unwrap().count(), 0);
}

/// A stale socket of an earlier session must not stop the next.
#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_at_once_stay_below_what_sshd_drops() {
    let sshd = Sshd::start("MaxStartups 10:100:10");
    let open = (0..24).map(|n| {
        let (target, run) = (sshd.target(&format!("node{n}")), sshd.run());
        async move {
            fs::write(run.join(format!("node{n}.sock")), "stale").unwrap();
            Session::open(&target, &run).await
        }
    });
    let sessions = futures_util::future::join_all(open).await;
    let failed: Vec<_> = sessions.iter().filter_map(|s| s.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} failed: {failed:?}", failed.len());
    assert_eq!(masters(&sshd.run()), 24);
}
