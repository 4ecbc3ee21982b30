// What pages gain with a script: parts that follow the state, times that follow the clock, a dialog instead of a page to
// confirm, logs that go on, and a palette to find things. Pages work without any of it. Words come from the page.
"use strict";

(() => {
  const one = (selector) => document.querySelector(selector);
  const words = one("#words").dataset;

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
      time.textContent = seconds > 0 ? words.in.replace("%s", seconds) : words.now;
    }
  };

  // What a reader opened stays open, and what is being typed or chosen stays, when the server sends a part anew.
  if (window.Idiomorph) {
    Idiomorph.defaults.ignoreActiveValue = true;
    Idiomorph.defaults.callbacks.beforeAttributeUpdated = (name, node) => !(name === "open" && node.matches("details"));
    // What a script drew is the script's; what is the same needs no look at what is in it.
    Idiomorph.defaults.callbacks.beforeNodeMorphed = (node, fresh) => !(node.matches?.("[data-drawn]") || node.isEqualNode(fresh));
  }

  const toast = (text) => {
    const told = document.createElement("p");
    told.className = "toast";
    told.textContent = text;
    one("#toasts").replaceChildren(told);
    setTimeout(() => told.remove(), 4000);
  };

  // A stream of events, open only while the page is seen.
  const whileSeen = (address, events, opened) => {
    let source = null;
    const close = () => { source?.close(); source = null; };
    const open = () => {
      source = new EventSource(address());
      source.addEventListener("open", () => opened?.(true));
      for (const [name, take] of Object.entries(events)) source.addEventListener(name, take);
      source.addEventListener("error", () => {
        opened?.(false);
        if (source?.readyState === EventSource.CLOSED) setTimeout(() => source && !document.hidden && open(), 5000);
      });
    };
    const see = () => { if (document.hidden) close(); else if (!source) open(); };
    document.addEventListener("visibilitychange", see);
    addEventListener("pagehide", close);
    addEventListener("pageshow", (event) => event.persisted && see());
    see();
    return { open: () => source || open(), close, isOpen: () => source !== null };
  };

  const tell = (state, text) => {
    const live = one("[data-live]:not(template)");
    if (!live) return;
    live.dataset.live = state;
    live.textContent = text;
    live.hidden = false;
  };
  const connected = (is) => tell(is ? "on" : "off", is ? words.live : words.reconnecting);

  // The part of the page that follows the state.
  const live = one("[data-live-from]");

  const parse = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html;
    localise(template.content);
    return template.content;
  };

  const follow = () => {
    let lines = [];
    const show = () => {
      Idiomorph.morph(live, parse(lines.join("\n")), { morphStyle: "innerHTML" });
      htmx.process(live);
      live.dispatchEvent(new CustomEvent("toft:changed", { bubbles: true }));
    };
    whileSeen(() => live.dataset.liveFrom, {
      fragment: (event) => {
        lines = event.data.split("\n");
        show();
      },
      // From the end on: what comes first stays in its place.
      changes: (event) => {
        for (const [at, gone, come] of JSON.parse(event.data).reverse()) lines.splice(at, gone, ...come);
        show();
      },
    }, connected);
  };

  document.addEventListener("htmx:afterSwap", (event) => localise(event.target));
  document.addEventListener("htmx:sendError", () => {
    const banner = document.createElement("div");
    banner.className = "banner bad";
    const told = document.createElement("p");
    told.textContent = words.silent;
    banner.append(told);
    one("#notices").replaceChildren(banner);
  });
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (!event.target.closest("#palette")) one("#notices").replaceChildren();
  });

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
    if (event.target === dialog || event.target === palette) event.target.close();
    if (event.target.closest("[data-close]") && dialog.open) {
      event.preventDefault();
      dialog.close();
    }
  });

  // The palette.
  const palette = one("#palette");

  const openPalette = async () => {
    if (palette.open || !one("[data-palette]")) return;
    const answer = await fetch("/find", { headers: { "hx-request": "true" } });
    if (!answer.ok) return;
    palette.replaceChildren(parse(await answer.text()).querySelector("#find"));
    palette.showModal();
    palette.querySelector("input").focus();
  };

  // What is found follows what is typed, on the page of the same name too.
  let soon;
  document.addEventListener("input", ({ target }) => {
    const form = target.closest("#find");
    if (!form) return;
    clearTimeout(soon);
    soon = setTimeout(async () => {
      const typed = target.value;
      const answer = await fetch(`/find?${new URLSearchParams({ q: typed })}`, { headers: { "hx-request": "true" } }).catch(() => null);
      if (!answer?.ok || typed !== target.value) return;
      form.querySelector(".found").replaceWith(parse(await answer.text()).querySelector(".found"));
    }, 120);
  });

  const move = (by) => {
    const found = [...palette.querySelectorAll(".found a")];
    const at = found.findIndex((link) => link.classList.contains("at"));
    found[at]?.classList.remove("at");
    const next = found[(at + by + found.length) % found.length];
    next?.classList.add("at");
    next?.scrollIntoView({ block: "nearest" });
  };

  palette.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      move(event.key === "ArrowDown" ? 1 : -1);
    }
    if (event.key === "Enter") {
      event.preventDefault();
      (palette.querySelector(".found a.at") ?? palette.querySelector(".found a"))?.click();
    }
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable], #shell");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey && !dialog.open) {
      event.preventDefault();
      openPalette();
    }
  });

  document.addEventListener("click", async (event) => {
    if (event.target.closest("[data-palette]") && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      openPalette();
    }
    const copy = event.target.closest("[data-copy]");
    if (copy?.matches("button")) {
      try {
        await navigator.clipboard.writeText(document.getElementById(copy.dataset.copy).textContent);
        toast(words.copied);
      } catch {
        toast(words.uncopied);
      }
    }
  });

  // Logs.
  const log = one("#log");
  const KEEP = 5000;
  const KEEP_LETTERS = 4_000_000;
  let letters = log?.textContent.length ?? 0;

  const followLog = () => {
    const pause = one("#pause");
    const address = new URL(log.dataset.follow, location.href);
    const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const toEnd = () => { log.scrollTop = log.scrollHeight; };

    const take = (event) => {
      const stay = atEnd();
      const fresh = parse(event.data);
      letters += fresh.textContent.length;
      log.append(fresh);
      while (log.childElementCount > KEEP || (letters > KEEP_LETTERS && log.childElementCount > 1)) {
        letters -= log.firstElementChild.textContent.length;
        log.firstElementChild.remove();
      }
      if (event.lastEventId) address.searchParams.set("since", event.lastEventId);
      if (stay) toEnd();
    };

    const stream = whileSeen(() => address, { lines: take }, connected);
    pause.hidden = false;
    pause.addEventListener("click", () => {
      if (stream.isOpen()) {
        stream.close();
        tell("off", words.paused);
      } else {
        stream.open();
        toEnd();
      }
      pause.textContent = stream.isOpen() ? words.pause : words.goOn;
    });
    toEnd();
  };

  // What instances use now: asked for while the page is seen, and not a moment longer.
  const measured = one("[data-usage-from]");

  const measure = () => whileSeen(() => measured.dataset.usageFrom, {
    usage: (event) => {
      const used = JSON.parse(event.data);
      for (const cell of document.querySelectorAll("[data-usage]")) {
        cell.textContent = used[cell.dataset.usage]?.[cell.dataset.of] ?? "-";
      }
    },
  });

  localise(document);
  for (const button of document.querySelectorAll("button[data-copy]")) button.hidden = false;
  setInterval(() => countDown(document), 1000);
  if (live) follow();
  if (log?.dataset.follow) followLog();
  else if (log) log.scrollTop = log.scrollHeight;
  if (measured) measure();
})();
