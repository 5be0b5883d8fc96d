/** The box at the bottom: the draft, and the one button that sends or stops. */

export class Composer {
  #draft;
  #button;
  #send;
  #stop;
  #busy = false;
  /** A draft that an edit has pushed aside. */
  #aside = "";

  /**
   * @param {{draft: HTMLTextAreaElement, button: HTMLButtonElement, form: HTMLFormElement}} elements
   * @param {{send: (text: string) => boolean, stop: () => void}} actions send tells whether it took the text
   */
  constructor({ draft, button, form }, { send, stop }) {
    this.#draft = draft;
    this.#button = button;
    this.#send = send;
    this.#stop = stop;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("mousedown", (event) => {
      if (event.target === form) setTimeout(() => this.focus());
    });
    draft.addEventListener("input", () => this.#changed());
    draft.addEventListener("keydown", (event) => this.#key(event));
    button.addEventListener("click", () => (this.#busy ? this.#stop() : this.submit()));
  }

  /** Sends what is written, if it may be sent now. */
  submit() {
    const text = this.#draft.value;
    const aside = this.#aside;
    if (text.trim() === "" || !this.#send(text)) return;
    this.#draft.value = aside;
    this.#aside = "";
    this.#changed();
    this.focus();
  }

  /** Puts a text up for editing; the draft so far comes back afterwards. @param {string} text */
  edit(text) {
    if (this.#aside === "") this.#aside = this.#draft.value;
    this.#put(text);
  }

  cancelEdit() {
    this.#put(this.#aside);
    this.#aside = "";
  }

  /** While an answer grows the button stops it. @param {boolean} busy */
  setBusy(busy) {
    this.#busy = busy;
    this.#button.classList.toggle("busy", busy);
    this.#button.setAttribute("aria-label", busy ? "Stop" : "Send");
    this.#button.title = busy ? "Stop (Escape)" : "Send";
    this.#changed();
  }

  /** Not on touch screens, where it would open the keyboard over the answer. */
  focus() {
    if (!touchOnly()) this.#draft.focus();
  }

  /** @param {string} text */
  #put(text) {
    this.#draft.value = text;
    this.#changed();
    this.#draft.focus();
    this.#draft.setSelectionRange(text.length, text.length);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    // keyCode 229: Safari ends a composition before the key that ended it is reported.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    if (touchOnly()) return; // a phone's Enter is the only way to a new line
    event.preventDefault();
    this.submit();
  }

  #changed() {
    this.#button.disabled = !this.#busy && this.#draft.value.trim() === "";
    this.#draft.style.height = "auto";
    this.#draft.style.height = `${this.#draft.scrollHeight}px`; // the stylesheet sets the limit
  }
}

function touchOnly() {
  return matchMedia("(hover: none) and (pointer: coarse)").matches;
}
