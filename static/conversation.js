/** The conversation as data. Knows nothing of the document, of settings or of the network. */

/**
 * @typedef {"streaming" | "done" | "stopped" | "failed"} AnswerState
 * @typedef {{id: number, role: "user" | "assistant", content: string, state: AnswerState}} Message
 */

export class Conversation {
  /** @type {Message[]} */
  messages = [];
  #nextId = 1;

  /** @param {string} content @returns {Message} */
  addUser(content) {
    return this.#add("user", content, "done");
  }

  /** An answer without text yet. @returns {Message} */
  addAnswer() {
    return this.#add("assistant", "", "streaming");
  }

  /** @param {number} id @returns {Message | undefined} */
  find(id) {
    return this.messages.find((message) => message.id === id);
  }

  /** Removes a message and all that follow it. @param {number} id */
  truncate(id) {
    const at = this.messages.findIndex((message) => message.id === id);
    if (at >= 0) this.messages.length = at;
  }

  /** The last message, if it is an answer. @returns {Message | undefined} */
  lastAnswer() {
    const last = this.messages.at(-1);
    return last?.role === "assistant" ? last : undefined;
  }

  clear() {
    this.messages = [];
  }

  /**
   * What the server is sent: everything that was said, in order. An answer without text (it failed or was
   * stopped before its first token) was not said.
   * @param {string} systemPrompt empty for none
   * @returns {{role: string, content: string}[]}
   */
  wire(systemPrompt) {
    const said = this.messages.filter((message) => message.content !== "");
    const turns = said.map(({ role, content }) => ({ role, content }));
    return systemPrompt.trim() === "" ? turns : [{ role: "system", content: systemPrompt }, ...turns];
  }

  /** @param {"user" | "assistant"} role @param {string} content @param {AnswerState} state */
  #add(role, content, state) {
    const message = { id: this.#nextId++, role, content, state };
    this.messages.push(message);
    return message;
  }
}
