
"use strict";
(() => {
  const PERIOD = 5000;
  const alarm = document.getElementById("alarm");
  let timer = 0;
  let asking = null;

  // The place of a part on the screen stays, whatever grows or shrinks above it.
  function keepingPlace(change) {
    const seen = [...document.querySelectorAll("main section")].find((part) => part.getBoundingClientRect().bottom > 0);
    const before = seen ? seen.getBoundingClientRect().top : 0;
    change();
    const now = seen && document.getElementById(seen.id);
    if (now && window.scrollY > 0) window.scrollBy(0, now.getBoundingClientRect().top - before);
  }

  // Exchange a part for its successor, with what is unfolded in it and the focus.
  function exchange(old, fresh) {
    for (const details of old.querySelectorAll("details[open]")) {
      const next = fresh.querySelector("#" + details.id);
      if (next) next.open = true;
    }
    if (old.isEqualNode(fresh)) return;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    old.replaceWith(document.adoptNode(fresh));
    const next = focused && document.getElementById(focused);
    if (next) next.focus({preventScroll: true});
  }

  function show(page) {
    const main = document.querySelector("main");
    const names = (within) => [...within.querySelectorAll("main section")].map((part) => part.id);
    keepingPlace(() => {
      document.title = page.title;
      exchange(document.getElementById("head"), page.getElementById("head"));
      if (names(document).join() === names(page).join()) {
        for (const name of names(page)) exchange(document.getElementById(name), page.getElementById(name));
      } else {
        exchange(main, page.querySelector("main"));
      }
    });
  }

  function answered(page) {
    alarm.hidden = true;
    document.body.classList.remove("stale");
    // Nobody loses what is being copied.
    if (document.getSelection().isCollapsed) show(page);
  }

  function failed(how) {
    const since = document.querySelector("#head time").textContent;
    alarm.textContent = "The guard does not answer (" + how + "). What is shown is of " + since + ".";
    alarm.hidden = false;
    document.body.classList.add("stale");
  }

  function ask() {
    if (asking || document.hidden) return;
    clearTimeout(timer);
    // Not fetch(): this makes a document of the answer, in which nothing is run, by itself.
    const request = asking = new XMLHttpRequest();
    request.open("GET", location.pathname);
    request.responseType = "document";
    request.timeout = PERIOD;
    request.onload = () => {
      const page = request.response;
      if (request.status === 200 && page && page.getElementById("head")) answered(page);
      else failed("status " + request.status);
    };
    request.onerror = () => failed("no connection");
    request.ontimeout = () => failed("no answer in " + PERIOD / 1000 + " s");
    request.onloadend = () => {
      asking = null;
      timer = setTimeout(ask, PERIOD);
    };
    request.send();
  }

  document.addEventListener("visibilitychange", ask);
  timer = setTimeout(ask, PERIOD);
})();
