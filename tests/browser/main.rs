//! The page as a person meets it: a real manager, a real browser without a window. One at a time
//! (`cargo test --test browser -- --test-threads=1`). Needs no root, no engine, no Varnish.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod rig;

use std::time::{Duration, Instant};

use rig::{Browser, Manager, plan};

/// A page that is not told of a change within this time is one that does not move.
const SOON: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn the_page_moves_by_itself_and_never_by_reading_it_again() {
    let mut manager = Manager::start();
    let Some(browser) = Browser::open(&manager.page()).await else { return };
    browser.until("#overall", "No release yet", SOON).await;
    browser.until("#nodes", "matrix nodes admit node1", SOON).await;
    browser.run("window.mark = 1").await;

    let begun = Instant::now();
    manager.deploy(&plan("shop", 0), "the first").ok();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(4), "where nothing is routed a deploy waits for the heartbeat: {took:?}");
    browser.until("#top", "1\nby ", SOON).await;
    browser.until("#top", "the first", SOON).await;
    browser.until("#applications", "none wanted", SOON).await;
    browser.until("#routes", "/shop", SOON).await;
    browser.until("#events", "release 1 by ", SOON).await;

    // No node is admitted: the instance finds no place, and the page says why.
    manager.deploy(&plan("shop", 1), "one more");
    browser.until("#applications", "no place", SOON).await;
    browser.until("#overall", "Needs attention", SOON).await;
    assert_eq!(browser.run("return window.mark").await, 1, "the page was read again");
    assert!(browser.title().await.starts_with('✕'));
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    browser.photograph("page").await;
    browser.close().await;
    manager.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_says_when_the_manager_is_away_and_goes_on_when_it_is_back() {
    let mut manager = Manager::start();
    manager.deploy(&plan("shop", 0), "before").ok();
    let Some(browser) = Browser::open(&manager.page()).await else { return };
    browser.until("#applications", "shop", SOON).await;
    assert_eq!(browser.text("#away").await, "", "nothing is said while all is well");
    browser.run("window.mark = 1").await;

    manager.kill();
    browser.until("#away", "The manager does not answer. What is shown is from ", SOON).await;
    assert!(browser.text("#applications").await.contains("shop"), "what was known stays shown");
    assert!(browser.title().await.starts_with('?'));
    browser.photograph("away").await;

    manager.start_again();
    browser.gone("#away", SOON).await;
    // Moving again, not only answering again.
    manager.deploy(&plan("cart", 0), "after").ok();
    browser.until("#applications", "cart", SOON).await;
    assert_eq!(browser.run("return window.mark").await, 1, "the page was read again");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_is_shown_and_not_obeyed() {
    let manager = Manager::start();
    let hostile = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>\u{202e}";
    let Some(browser) = Browser::open(&manager.page()).await else { return };
    manager.deploy(&plan("shop", 0), hostile).ok();
    browser.until("#top", "<img src=x onerror='window.hacked=1'><script>", SOON).await;
    // The same where the whole page is read.
    browser.open_again(&manager.page()).await;
    browser.until("#top", "<img src=x onerror='window.hacked=1'><script>", SOON).await;
    assert!(browser.run("return window.hacked === undefined").await.as_bool().unwrap());
    // Even what got in would not run: the policy allows no script in the page.
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">')").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(browser.run("return window.hacked === undefined").await.as_bool().unwrap());
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_a_telephone() {
    let manager = Manager::start();
    manager.deploy(&plan("an-application-with-a-rather-long-name-for-a-small-screen", 1), "x");
    let Some(browser) = Browser::open(&manager.page()).await else { return };
    browser.until("#applications", "no place", SOON).await;
    browser.width(400).await;
    let wide = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth").await;
    assert_eq!(wide, 0, "the page has to be moved sideways");
    browser.photograph("telephone").await;
    browser.close().await;
}
