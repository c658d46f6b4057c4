//! The page from values: whole, and whatever the values say.

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use http::Request;
use matrix::{
    api::{
        nodes::{NodeView, NodesView, StateView},
        views::{ApplicationView, InstanceState, InstanceView, NodeBrief, OnItsWayView, ReleaseView, StatusView},
    },
    dashboard::{Links, Shown, page, parts},
    inventory::{Engine, Intake},
    manager::{
        Manager,
        config::Config,
        events::{Event, Kind},
    },
    model::{Memory, Port, Timestamp},
};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

fn brief(said: &str, state: &str) -> NodeBrief {
    NodeBrief {
        address: "10.10.10.25".parse().unwrap(),
        state: state.to_owned(),
        instances: 1,
        foreign: 2,
        trouble: Some(said.to_owned()),
        intake: Intake::Open,
        disk_full: false,
    }
}

/// The cloud of this test: two applications, a node that serves, a lost one, a candidate. `said` is what others wrote.
fn shown(said: &str) -> Shown {
    let at: Timestamp = "2026-11-20T12:03:04Z".parse().unwrap();
    let instance = |id: &str, state, why: Option<&str>| InstanceView {
        instance: id.parse().unwrap(),
        state,
        why: why.map(str::to_owned),
        node: Some("node1".parse().unwrap()),
        address: Some("10.10.10.25".parse().unwrap()),
        port: Port::new(20000),
        container: Some(said.to_owned()),
        image: Some(said.to_owned()),
        created: Some(at),
        release: Some(7),
    };
    let app = |image: &str, routes: &[&str], wanted, instances: Vec<InstanceView>| ApplicationView {
        image: image.to_owned(),
        routes: routes.iter().map(|route| (*route).to_owned()).collect(),
        wanted,
        serving: u32::try_from(instances.iter().filter(|i| i.state == InstanceState::Serving).count()).unwrap(),
        instances,
    };
    let pinned = format!("matrix-manager.matrix:5000/cloud/shop@sha256:{}", "ab".repeat(32));
    let node = |name: &str, state, trouble: Option<&str>| NodeView {
        name: name.parse().unwrap(),
        address: "10.10.10.25".parse().unwrap(),
        mac: "02:42:0a:0a:0a:19".parse().ok(),
        state,
        since: at,
        lease_expires: Some(at),
        key: None,
        offered: None,
        engine: (state == StateView::Ready).then(|| Engine {
            version: said.to_owned(),
            cpus: 2,
            memory: Memory(4 << 30),
            disk_free: Some(15 << 30),
            disk_total: Some(60 << 30),
            id: said.to_owned(),
            os: said.to_owned(),
            architecture: said.to_owned(),
        }),
        instances: 1,
        foreign: 2,
        trouble: trouble.map(str::to_owned),
        intake: Intake::Open,
        disk_full: false,
    };
    Shown {
        at,
        status: StatusView {
            cloud: "lab".parse().unwrap(),
            release: Some(ReleaseView { number: 7, created: at, by: said.to_owned(), message: Some(said.to_owned()) }),
            on_its_way: None,
            settled: true,
            problems: vec![said.to_owned()],
            gateway_up: Some(true),
            applications: [
                (
                    "shop".parse().unwrap(),
                    app(
                        &pinned,
                        &["/shop", "shop.example/", "*.shop.example/a", said],
                        2,
                        vec![
                            instance("shop.1", InstanceState::Serving, None),
                            instance("shop.2", InstanceState::Failed, Some(said)),
                        ],
                    ),
                ),
                ("web".parse().unwrap(), app(said, &["/"], 1, vec![instance("web.1", InstanceState::Unplaced, None)])),
            ]
            .into(),
            nodes: [("node1".parse().unwrap(), brief(said, "ready")), ("node2".parse().unwrap(), brief(said, "lost"))]
                .into(),
        },
        nodes: NodesView {
            nodes: vec![
                node("node1", StateView::Ready, None),
                node("node2", StateView::Lost, Some(said)),
                node("node3", StateView::Candidate, None),
            ],
            problems: vec![said.to_owned()],
        },
        events: [Kind::Begin, Kind::Failed]
            .into_iter()
            .map(|kind| Event {
                number: 1,
                at,
                kind,
                subject: said.to_owned(),
                node: "node1".parse().ok(),
                text: said.to_owned(),
            })
            .collect(),
        links: Links::new("10.10.9.2:8080", Port::new(6081).unwrap()),
    }
}

/// What a browser would take for tags and their attributes: all that stands between `<` and `>`.
fn tags(html: &str) -> Vec<&str> {
    html.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()).collect()
}

const HOSTILE: &[&str] = &[
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "</td></tr></table><h1>mine",
    "javascript:alert(1)",
    "{{ version }}{% include \"page.html\" %}{# #}",
    "&lt;script&gt;&#60;b&#62;",
    "a\r\n\r\ndata: {\"parts\":{}}\r\n\r\n",
    "\u{1b}[2J\u{0}\u{7}",
    "\u{202e}txt.exe",
    "<!-- -->]]>",
    "http://10.0.0.1/\" /evil",
];

#[test]
fn a_page_shows_all_of_it() {
    let html = page(&shown("line one\nline two"), "v1").unwrap();
    insta::assert_snapshot!(html);
}

/// With other words the page has the same tags: none more, none with other attributes, but for what is quoted.
#[test]
fn what_others_wrote_never_becomes_markup() {
    // Sorted: routes stand in the order of their text.
    let names = |html: &str| -> Vec<String> {
        let mut names: Vec<_> =
            tags(html).iter().map(|tag| tag.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")).collect();
        names.sort();
        names
    };
    let plain = names(&page(&shown("plain"), "v1").unwrap());
    for said in HOSTILE {
        let html = page(&shown(said), "v1").unwrap();
        assert!(names(&html) == plain, "{said:?} gives other markup:\n{html}");
        assert!(!html.chars().any(|c| c.is_control() && c != '\n'), "{said:?}");
        assert!(!html.contains('\u{202e}'));
        assert!(!html.contains("href=\"javascript:"), "{said:?}");
    }
}

#[test]
fn a_reason_keeps_its_lines() {
    let html = &parts(&shown("exit code 1:\n  cannot open /etc/app.conf\n  at main()")).unwrap()["applications"];
    assert!(html.contains("exit code 1:\n  cannot open /etc/app.conf\n  at main()</td>"), "{html}");
}

#[test]
fn a_canary_is_shown_with_its_share_until_it_ends() {
    let mut shown = shown("x");
    assert!(!parts(&shown).unwrap()["top"].contains("on its way"));
    let step = "canary: 20% of shop's requests go to release 8 <b>".to_owned();
    shown.status.on_its_way = Some(OnItsWayView { number: 8, step });
    let html = &parts(&shown).unwrap()["top"];
    assert!(html.contains("8 is on its way: canary: 20% of shop"), "{html}");
    assert!(html.contains("&lt;b&gt;") && !html.contains("<b>"), "{html}");
}

#[test]
fn links_lead_to_the_gateway_under_the_name_the_page_has() {
    let port = Port::new(6081).unwrap();
    let html = |host: &str| {
        let links = Links::new(host, port);
        parts(&Shown { links, ..shown("x") }).unwrap()["routes"].clone()
    };
    for (host, href) in [
        ("10.10.9.2:8080", "http://10.10.9.2:6081/shop/"),
        ("gateway.example", "http://gateway.example:6081/shop/"),
        ("[fd00::1]:8080", "http://[fd00::1]:6081/shop/"),
    ] {
        let html = html(host);
        assert!(html.contains(&format!("href=\"{href}\"")), "{html}");
        assert!(html.contains("href=\"http://shop.example:6081/\""), "{html}");
        assert!(!html.contains("href=\"http://*"), "{html}");
    }
    for hostile in ["user@evil.example", "a b", "\"><script>", "", "a/b", "*.example", "evil.example/x", "a:b:c", "-a"]
    {
        let html = html(hostile);
        assert!(!html.contains("<a "), "{hostile:?}: {html}");
        assert!(html.contains("<code>/shop</code>"), "{html}");
    }
}

/// The pages of a manager that watches nobody.
async fn answers(requests: &[(&str, &[(&str, &str)])]) -> Vec<(http::response::Parts, String)> {
    let folder = tempfile::tempdir().unwrap();
    let config =
        Config { state: folder.path().join("s"), run: folder.path().join("r"), leases: None, ..Config::default() };
    let stop = CancellationToken::new();
    let pages = matrix::dashboard::router(Manager::start(config, stop.clone()).await.unwrap());
    let mut all = Vec::new();
    for (path, headers) in requests {
        let mut request = Request::get(*path);
        for (name, value) in *headers {
            request = request.header(*name, *value);
        }
        let response = pages.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        // A stream that is followed has no end: its first piece is looked at.
        let piece = body.into_data_stream().next().await.unwrap_or_else(|| Ok(Bytes::new())).unwrap();
        all.push((parts, String::from_utf8(piece.to_vec()).unwrap()));
    }
    stop.cancel();
    all
}

#[tokio::test]
async fn pages_run_only_their_own_script_and_stand_in_no_frame() {
    for (parts, body) in answers(&[("/", &[]), ("/live", &[]), ("/assets/page.css", &[]), ("/assets/none", &[])]).await
    {
        let policy = parts.headers["content-security-policy"].to_str().unwrap();
        for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(rule), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(parts.headers["x-content-type-options"], "nosniff");
        assert_eq!(parts.headers["referrer-policy"], "no-referrer");
        for inline in [" style=", " onclick=", "<style", "<script>"] {
            assert!(!body.contains(inline), "{inline} in {body}");
        }
    }
}

#[tokio::test]
async fn files_are_sent_once() {
    let first = &answers(&[("/assets/page.js", &[]), ("/assets/page.css", &[]), ("/assets/icon.svg", &[])]).await;
    let kinds: Vec<_> = first.iter().map(|(parts, _)| parts.headers["content-type"].to_str().unwrap()).collect();
    assert_eq!(kinds, ["text/javascript; charset=utf-8", "text/css; charset=utf-8", "image/svg+xml"]);
    let tag = first[0].0.headers["etag"].to_str().unwrap();
    let known = [("if-none-match", tag)];
    let list = format!("\"other\", W/{tag}");
    let known_in_list = [("if-none-match", list.as_str())];
    let again = answers(&[
        ("/assets/page.js", &known),
        ("/assets/page.js", &known_in_list),
        ("/assets/page.css", &known),
        ("/assets/%2e%2e%2fpage.html", &[]),
    ])
    .await;
    let statuses: Vec<_> = again.iter().map(|(parts, body)| (parts.status.as_u16(), body.is_empty())).collect();
    assert_eq!(statuses, [(304, true), (304, true), (200, false), (404, false)]);
}

#[tokio::test]
async fn the_first_message_has_every_part() {
    let (parts, body) = answers(&[("/live", &[])]).await.remove(0);
    assert_eq!(parts.headers["content-type"], "text/event-stream");
    let message: serde_json::Value = serde_json::from_str(body.trim().strip_prefix("data: ").unwrap()).unwrap();
    let page = &answers(&[("/", &[])]).await.remove(0).1;
    let parts = message["parts"].as_object().unwrap();
    assert_eq!(parts.len(), 7);
    for (id, html) in parts {
        assert!(page.contains(&format!(" id=\"{id}\"")), "{id}");
        assert!(page.contains(html.as_str().unwrap()), "{id} differs from the whole page");
    }
    assert!(page.contains(&format!("data-version={}", message["version"])), "another version");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_words_give_a_page(said in ".{0,40}") {
        let html = page(&shown(&said), "v1").unwrap();
        prop_assert!(html.ends_with("</html>\n"));
        prop_assert_eq!(tags(&html).iter().filter(|tag| tag.starts_with("script")).count(), 1);
    }
}
