// What pages gain with a script: times that follow the clock, a dialog instead of a page to confirm, the state of the
// live connection, and logs that go on. Pages work without any of it.
"use strict";

(() => {
  const one = (selector) => document.querySelector(selector);

  // Times. The server writes UTC; people read their own clock.
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
  const dated = new Intl.DateTimeFormat(undefined, { dateStyle: "short", timeStyle: "medium" });
  const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

  const localise = (root) => {
    for (const time of root.querySelectorAll("time")) {
      const at = new Date(time.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      time.title = full.format(at);
      if ("clock" in time.dataset) time.textContent = clock.format(at);
      if ("dated" in time.dataset) time.textContent = dated.format(at);
    }
    countDown(root);
  };

  const countDown = (root) => {
    for (const time of root.querySelectorAll("time[data-until]")) {
      const seconds = Math.ceil((new Date(time.dateTime) - Date.now()) / 1000);
      time.textContent = seconds > 0 ? `in ${seconds} s` : "now";
    }
  };

  // What a reader opened stays open when the server sends the part anew.
  if (window.Idiomorph) {
    Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) => !(name === "open" && node.matches("details"));
  }

  // The live connection.
  const tell = (state, words) => {
    const live = one("[data-live]");
    if (!live) return;
    live.dataset.live = state;
    live.textContent = words;
    live.hidden = false;
  };

  document.addEventListener("htmx:sseOpen", () => tell("on", "Live"));
  document.addEventListener("htmx:sseError", () => tell("off", "Reconnecting"));
  document.addEventListener("htmx:afterSwap", (event) => localise(event.target));
  document.addEventListener("htmx:sseMessage", (event) => localise(event.target));
  document.addEventListener("htmx:sendError", () => {
    const banner = document.createElement("div");
    banner.className = "banner bad";
    const words = document.createElement("p");
    words.textContent = "toft did not answer. Nothing is known to have changed; try again.";
    banner.append(words);
    one("#notices").replaceChildren(banner);
  });
  document.addEventListener("htmx:beforeRequest", () => one("#notices").replaceChildren());

  // A button that was pressed may be replaced by another; the keyboard stays in its row.
  document.addEventListener("htmx:afterSettle", (event) => {
    const row = event.detail.requestConfig?.elt?.dataset.row;
    if (row && document.activeElement === document.body) document.getElementById(row)?.querySelector("button, a")?.focus();
  });

  // Confirming in a dialog.
  const dialog = one("#dialog");
  document.addEventListener("htmx:afterSwap", (event) => {
    if (event.target === dialog && dialog.childElementCount > 0) dialog.showModal();
  });
  document.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
    if (event.target.closest("[data-close]") && dialog.open) {
      event.preventDefault();
      dialog.close();
    }
  });

  // Logs.
  const log = one("#log");
  const KEEP = 5000;

  const follow = () => {
    const pause = one("#pause");
    const address = new URL(log.dataset.follow, location.href);
    let source = null;

    const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const toEnd = () => { log.scrollTop = log.scrollHeight; };

    const take = (event) => {
      const stay = atEnd();
      const lines = document.createElement("template");
      lines.innerHTML = event.data;
      localise(lines.content);
      log.append(lines.content);
      for (let extra = log.childElementCount - KEEP; extra > 0; extra -= 1) log.firstElementChild.remove();
      if (event.lastEventId) address.searchParams.set("since", event.lastEventId);
      if (stay) toEnd();
    };

    const open = () => {
      source = new EventSource(address);
      source.addEventListener("open", () => tell("on", "Live"));
      source.addEventListener("lines", take);
      source.addEventListener("error", () => {
        tell("off", "Reconnecting");
        if (source.readyState === EventSource.CLOSED) setTimeout(() => source && open(), 5000);
      });
    };

    const close = () => {
      source.close();
      source = null;
    };

    pause.hidden = false;
    pause.addEventListener("click", () => {
      if (source) {
        close();
        tell("off", "Paused");
      } else {
        open();
        toEnd();
      }
      pause.textContent = source ? "Pause" : "Go on";
    });
    addEventListener("pagehide", () => source && close());
    addEventListener("pageshow", (event) => event.persisted && !source && open());
    toEnd();
    open();
  };

  // What instances use now: asked for while the page is seen, and not a moment longer.
  const measured = one("[data-usage-from]");

  const measure = () => {
    let source = null;

    const take = (event) => {
      const used = JSON.parse(event.data);
      for (const cell of document.querySelectorAll("[data-usage]")) {
        cell.textContent = used[cell.dataset.usage]?.[cell.dataset.of] ?? "-";
      }
    };

    const see = () => {
      if (document.hidden) {
        source?.close();
        source = null;
      } else if (!source) {
        source = new EventSource(measured.dataset.usageFrom);
        source.addEventListener("usage", take);
      }
    };

    document.addEventListener("visibilitychange", see);
    addEventListener("pagehide", () => {
      source?.close();
      source = null;
    });
    addEventListener("pageshow", (event) => event.persisted && see());
    see();
  };

  localise(document);
  setInterval(() => countDown(document), 1000);
  if (log?.dataset.follow) follow();
  else if (log) log.scrollTop = log.scrollHeight;
  if (measured) measure();
})();
