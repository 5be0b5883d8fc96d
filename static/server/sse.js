/**
 * Server-Sent Events out of a fetch body.
 *
 * The network cuts the stream anywhere: inside a line, inside an event, inside one character. So bytes go
 * through one streaming decoder, text is split into lines, and only a blank line completes an event.
 */

/**
 * @typedef {{event: string, data: string, id: string | null, comment: null}} ServerEvent id: only where the
 *   event itself has one
 * @typedef {{event: "", data: "", id: null, comment: string}} Comment a line that is no part of an event
 */

const LINE_END = /\r\n|\r|\n/;

class EventParser {
  /** Text of the line that has not ended yet. */
  #partial = "";
  /** A chunk ended in CR: an LF at the start of the next one belongs to the same line end. */
  #endedInReturn = false;
  /** @type {string[]} the data lines of the event that has not ended yet */
  #data = [];
  #name = "";
  /** @type {string | null} */
  #id = null;

  /**
   * Takes the next piece of the stream and gives back the events and comments that it completes. An event
   * that is still incomplete when the stream ends is never given back: it may be half of a JSON text.
   * @param {string} text
   * @returns {(ServerEvent | Comment)[]}
   */
  push(text) {
    /** @type {(ServerEvent | Comment)[]} */
    const events = [];
    if (text === "") return events;
    if (this.#endedInReturn && text.startsWith("\n")) text = text.slice(1);
    this.#endedInReturn = text === "" ? false : text.endsWith("\r");
    const lines = text.split(LINE_END);
    lines[0] = this.#partial + lines[0];
    this.#partial = lines.pop() ?? "";
    for (const line of lines) {
      const event = this.#take(line);
      if (event !== null) events.push(event);
    }
    return events;
  }

  /**
   * @param {string} line without its end
   * @returns {ServerEvent | Comment | null} what this line completes
   */
  #take(line) {
    if (line === "") return this.#dispatch();
    if (line.startsWith(":")) return { event: "", data: "", id: null, comment: line.slice(1).trim() };
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#name = value;
    else if (field === "id") this.#id = value;
    return null; // `retry` is the reader's own business
  }

  /** @returns {ServerEvent | null} */
  #dispatch() {
    const event = {
      event: this.#name || "message", data: this.#data.join("\n"), id: this.#id, comment: null,
    };
    const empty = this.#data.length === 0;
    this.#data = [];
    this.#name = "";
    this.#id = null;
    return empty ? null : event;
  }
}

/**
 * Reads a response body as events and comments, until it ends. Leaving the loop early cancels the request.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<ServerEvent | Comment>}
 */
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // already broken or already ended: nothing is left to cancel
  }
}
