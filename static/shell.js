// A terminal over a WebSocket. The shell outlives the page: its number and how much of it was shown are kept for the tab.
"use strict";

// The policy of these pages allows no style that is written into them. The terminal makes style sheets and attributes as
// texts; both are put into place by way of objects, which the policy allows.
(() => {
  const create = document.createElement.bind(document);
  document.createElement = (name, ...rest) => {
    const isStyle = String(name).toLowerCase() === "style";
    const made = create(isStyle ? "span" : name, ...rest);
    if (isStyle) {
      made.hidden = true;
      const sheet = new CSSStyleSheet();
      document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
      Object.defineProperty(made, "textContent", { get: () => "", set: (text) => sheet.replaceSync(text) });
    }
    return made;
  };
  const set = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (name, value) {
    if (name === "style") this.style.cssText = value;
    else set.call(this, name, value);
  };
})();

(() => {
  const place = document.querySelector("#shell");
  if (!place || !window.Terminal) return;
  const words = document.querySelector("#words").dataset;
  const live = document.querySelector("[data-live]:not(template)");
  const key = `shell ${place.dataset.instance}`;
  const known = JSON.parse(sessionStorage.getItem(key) ?? "{}");
  let { id = null } = known;
  let total = 0;
  let socket = null;
  let tries = 0;

  const terminal = new Terminal({
    cursorBlink: true,
    fontSize: 13,
    fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"),
    theme: { background: "#0d100e", foreground: "#e9eeea", cursor: "#6ad2a5" },
    scrollback: 5000,
    screenReaderMode: true,
  });
  terminal.open(place);

  const tell = (state, text) => {
    live.dataset.live = state;
    live.textContent = text;
    live.hidden = false;
  };

  // As many characters as fit: the terminal says how large one is.
  const fit = () => {
    const cell = terminal._core._renderService.dimensions.css.cell;
    if (!cell.width || !cell.height) return;
    const columns = Math.max(20, Math.floor((place.clientWidth - 24) / cell.width));
    const rows = Math.max(5, Math.floor((place.clientHeight - 16) / cell.height));
    if (columns !== terminal.cols || rows !== terminal.rows) terminal.resize(columns, rows);
  };

  const say = (message) => socket?.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));
  const end = (text) => {
    sessionStorage.removeItem(key);
    id = null;
    terminal.write(`\r\n\x1b[2m${text}\x1b[0m\r\n`);
    tell("off", text);
    socket.onclose = null;
    socket.close();
  };

  const open = () => {
    const address = new URL(place.dataset.socket, location.href);
    address.protocol = address.protocol.replace("http", "ws");
    socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      tries = 0;
      // A page that was loaded anew has shown nothing.
      say({ type: "begin", id, seen: total, columns: terminal.cols, rows: terminal.rows });
    };
    socket.onmessage = ({ data }) => {
      if (typeof data !== "string") {
        terminal.write(new Uint8Array(data));
        return;
      }
      const told = JSON.parse(data);
      if (told.type === "started") {
        if (!told.again) { terminal.reset(); total = 0; }
        id = told.id;
        sessionStorage.setItem(key, JSON.stringify({ id }));
        tell("on", words.live);
        terminal.focus();
      }
      if (told.type === "seen") total = told.total;
      if (told.type === "ended") end(told.why ?? words.ended.replace("%s", told.code));
      if (told.type === "refused") end(words.noShell.replace("%s", told.message));
    };
    socket.onclose = () => {
      tell("off", words.reconnecting);
      tries += 1;
      if (tries < 20) setTimeout(open, Math.min(500 * tries, 5000));
      else tell("off", words.lost);
    };
  };

  const typed = new TextEncoder();
  terminal.onData((text) => socket?.readyState === WebSocket.OPEN && socket.send(typed.encode(text)));
  terminal.onResize(({ cols, rows }) => say({ type: "resize", columns: cols, rows }));
  new ResizeObserver(fit).observe(place);
  fit();
  open();
})();
