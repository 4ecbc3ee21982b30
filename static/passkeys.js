// Passkeys: asks the browser for one, and sends what it gives with the form that the button stands in. Without this script, and
// where browsers offer none, such buttons are not shown.
(() => {
  "use strict";
  const TRANSPORTS = ["ble", "hybrid", "internal", "nfc", "smart-card", "usb"];
  const PARTS = ["clientDataJSON", "attestationObject", "authenticatorData", "signature", "userHandle"];

  const bytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const base64url = (buffer) =>
    btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  const named = (list) => (list || []).map((one) => ({ ...one, id: bytes(one.id) }));

  // What the node asks, as the browser wants it.
  const asked = (options) => {
    const key = { ...options, challenge: bytes(options.challenge) };
    if (options.user) key.user = { ...options.user, id: bytes(options.user.id) };
    if (options.excludeCredentials) key.excludeCredentials = named(options.excludeCredentials);
    if (options.allowCredentials) key.allowCredentials = named(options.allowCredentials);
    return { publicKey: key };
  };

  // What the browser gave, as the node wants it.
  const answer = (given) => {
    const response = {};
    for (const part of PARTS) if (given.response[part]) response[part] = base64url(given.response[part]);
    const transports = given.response.getTransports ? given.response.getTransports() : null;
    if (transports) response.transports = TRANSPORTS.filter((one) => transports.includes(one));
    return JSON.stringify({
      id: given.id,
      rawId: base64url(given.rawId),
      type: given.type,
      response,
      authenticatorAttachment: given.authenticatorAttachment || null,
      clientExtensionResults: {},
    });
  };

  const use = async (button, form, tell) => {
    const create = button.dataset.passkey === "create";
    const body = create ? new URLSearchParams(new FormData(form)) : null;
    const said = await fetch(button.dataset.options, { method: "POST", body });
    const options = await said.json().catch(() => null);
    if (!said.ok || !options) {
      const error = options && options.error;
      return tell(error ? `${error.message} ${error.hint || ""}` : button.dataset.failed);
    }
    const given = await (create ? navigator.credentials.create(asked(options)) : navigator.credentials.get(asked(options)));
    form.elements.answer.value = answer(given);
    form.elements.password.value = "";
    form.action = button.dataset.to;
    form.submit();
  };

  const offered = window.isSecureContext && window.PublicKeyCredential && navigator.credentials;
  for (const one of document.querySelectorAll("[data-lacks]")) one.hidden = !!offered;
  if (!offered) return;
  for (const button of document.querySelectorAll("[data-passkey]")) {
    const form = button.form;
    const wrong = form.querySelector("[data-wrong]");
    const tell = (text) => {
      wrong.textContent = text;
      wrong.hidden = !text;
    };
    button.closest("[hidden]").hidden = false;
    button.addEventListener("click", async (event) => {
      event.preventDefault();
      tell("");
      if (button.dataset.passkey === "create" && !form.reportValidity()) return;
      button.disabled = true;
      try {
        await use(button, form, tell);
      } catch (error) {
        const network = error instanceof TypeError;
        tell(button.dataset[network ? "failed" : error.name === "InvalidStateError" ? "known" : "none"]);
      } finally {
        button.disabled = false;
      }
    });
  }
})();
