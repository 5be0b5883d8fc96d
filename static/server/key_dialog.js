/** The dialog that asks for the API key. Loaded when a server wants one. */

import { el } from "../shell/dom.js";
import { t } from "../words/words.js";

/**
 * @param {string} problem what the server said @param {boolean} wrong whether it has refused a key
 * @returns {Promise<{key: string, remember: boolean} | null>} null where the reader gives none
 */
export function askForKey(problem, wrong) {
  const input = el("input", {
    type: "password", id: "api-key", name: "key", required: true, autocomplete: "off", spellcheck: "false",
    autocapitalize: "off", "aria-describedby": "api-key-said",
  });
  const remember = el("input", { type: "checkbox", id: "remember-key" });
  const said = wrong ? t("server.keyDialog.wrong", { said: problem }) : t("server.keyDialog.help");
  const dialog = el(
    "dialog",
    { class: "dialog question key-dialog", "aria-labelledby": "key-title" },
    el(
      "form",
      { method: "dialog" },
      el("h2", { id: "key-title", text: t("server.keyDialog") }),
      el("p", { id: "api-key-said", class: wrong ? "said problem-words" : "said", text: said, dir: "auto" }),
      el("label", { for: "api-key", text: t("server.keyDialog.label") }),
      input,
      el("label", { class: "check", for: "remember-key" }, remember, t("server.keyDialog.remember")),
      el(
        "div",
        { class: "dialog-foot" },
        el("button", { type: "button", class: "quiet", text: t("server.keyDialog.cancel"), on: { click: () => dialog.close() } }),
        el("button", { type: "submit", class: "strong", value: "use", text: t("server.keyDialog.use") }),
      ),
    ),
  );
  input.addEventListener("input", () => {
    const fits = /^\s*[\x21-\x7e]*\s*$/.test(input.value);
    input.setCustomValidity(fits ? "" : t("server.keyDialog.characters"));
  });
  const before = document.activeElement;
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((answer) => {
    dialog.addEventListener("close", () => {
      const key = input.value.trim();
      input.value = "";
      const lost = dialog.contains(document.activeElement) || document.activeElement === document.body;
      dialog.remove();
      if (lost && before instanceof HTMLElement) before.focus();
      answer(dialog.returnValue === "use" && key !== "" ? { key, remember: remember.checked } : null);
    }, { once: true });
  });
}
