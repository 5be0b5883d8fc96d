/**
 * Server-Sent Events out of a fetch body.
 *
 * The network cuts the stream anywhere: inside a line, inside an event, inside one character. So bytes go
 * through one streaming decoder, text is split into lines, and only a blank line completes an event.
 */

/** @typedef {{event: string, data: string}} ServerEvent */

const LINE_END = /\r\n|\r|\n/;

export class EventParser {
  /** Text of the line that has not ended yet. */
  #partial = "";
  /** A chunk ended in CR: an LF at the start of the next one belongs to the same line end. */
  #endedInReturn = false;
  /** @type {string[]} the data lines of the event that has not ended yet */
  #data = [];
  #name = "";

  /**
   * Takes the next piece of the stream and gives back the events that it completes. An event that is still
   * incomplete when the stream ends is never given back: it may be half of a JSON text.
   * @param {string} text
   * @returns {ServerEvent[]}
   */
  push(text) {
    /** @type {ServerEvent[]} */
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
   * @returns {ServerEvent | null} the event that this line completes
   */
  #take(line) {
    if (line === "") return this.#dispatch();
    if (line.startsWith(":")) return null; // a comment: the server's keep-alive
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#name = value;
    return null; // `id` and `retry` mean nothing to a request that cannot be resumed
  }

  /** @returns {ServerEvent | null} */
  #dispatch() {
    const data = this.#data.join("\n");
    const event = this.#data.length > 0 ? { event: this.#name || "message", data } : null;
    this.#data = [];
    this.#name = "";
    return event;
  }
}

/**
 * Reads a response body as events, until it ends. Leaving the loop early cancels the request.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<ServerEvent>}
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
