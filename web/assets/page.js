// Keeps the page as the manager last told it, and says so when the manager does not answer. Sends nothing.
"use strict";
(() => {
  // The manager says something at least every 5 s.
  const SILENCE = 12000;
  const RETRY = 1000;
  const HIDDEN = 60000;
  const away = document.getElementById("away");
  const root = document.documentElement;
  let shown = Date.parse(root.dataset.at); // the manager's time of what is shown
  let ahead = shown - Date.now(); // how far its clock is ahead of this one
  let heard = Date.now();
  let source = null;
  let timer = 0;
  let title = document.title;

  const two = (n) => String(n).padStart(2, "0");
  const clock = (d) => [d.getHours(), d.getMinutes(), d.getSeconds()].map(two).join(":");
  const date = (d) => [d.getFullYear(), two(d.getMonth() + 1), two(d.getDate())].join("-");
  const moment = (d) => (date(d) === date(new Date()) ? clock(d) : `${date(d)} ${clock(d)}`);

  function age(seconds) {
    const s = Math.max(0, Math.floor(seconds));
    if (s < 120) return `${s} s`;
    if (s < 7200) return `${Math.floor(s / 60)} min`;
    if (s < 172800) return `${Math.floor(s / 3600)} h`;
    return `${Math.floor(s / 86400)} d`;
  }

  function times() {
    const now = Date.now() + ahead;
    for (const time of document.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      let text = moment(at);
      if (time.dataset.age !== undefined) {
        text = age((now - at) / 1000) + (time.dataset.age ? ` ${time.dataset.age}` : "");
      }
      if (time.textContent !== text) time.textContent = text;
      time.title = `${date(at)} ${clock(at)}`;
    }
  }

  // What has the focus or is unfolded stays so: the new part has the same links in the same place.
  function replace(part, html) {
    const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const open = part.querySelector("details[open]") !== null;
    part.innerHTML = html;
    if (open) part.querySelector("details")?.setAttribute("open", "");
    if (focused !== null) [...part.querySelectorAll("a")].find((a) => a.getAttribute("href") === focused)?.focus();
  }

  function take(message) {
    const told = JSON.parse(message.data);
    // The manager is another one now, and so is this file.
    if (told.version !== root.dataset.version) return location.reload();
    heard = Date.now();
    shown = Date.parse(told.at);
    ahead = shown - heard;
    away.hidden = true;
    root.classList.remove("stale");
    title = told.title;
    if (document.title !== title) document.title = title;
    for (const [id, html] of Object.entries(told.parts)) {
      const part = document.getElementById(id);
      if (part) replace(part, html);
    }
    times();
  }

  function close() {
    clearTimeout(timer);
    source?.close();
    source = null;
  }

  function lost() {
    close();
    if (away.hidden) {
      away.textContent = `The manager does not answer. What is shown is from ${moment(new Date(shown - ahead))}. Applications may well go on.`;
      away.hidden = false;
      root.classList.add("stale");
      document.title = `? ${title.slice(2)}`;
    }
    timer = setTimeout(connect, RETRY);
  }

  function connect() {
    close();
    heard = Date.now();
    source = new EventSource("live");
    source.onmessage = take;
    source.onerror = lost;
  }

  setInterval(() => {
    times();
    if (source && Date.now() - heard > SILENCE) lost();
  }, 1000);
  // A browser keeps six connections to one place: a tab nobody looks at gives its own back.
  let hidden = 0;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hidden);
    if (!document.hidden) return source || connect();
    hidden = setTimeout(() => {
      close();
      document.title = title.slice(2);
    }, HIDDEN);
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", (event) => { if (event.persisted) connect(); });
  times();
  connect();
})();
