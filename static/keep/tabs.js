/** Tells this site's other tabs what has changed, and hears it from them. */

/** @typedef {{id: string, removed?: boolean}} Change */

export class Tabs {
  /** @type {BroadcastChannel | null} */
  #channel = null;

  /** @param {string} name @param {(change: Change) => void} heard */
  constructor(name, heard) {
    if (!("BroadcastChannel" in globalThis)) return;
    this.#channel = new BroadcastChannel(`${name}.conversations`);
    this.#channel.onmessage = ({ data }) => {
      // Another version of the page may speak here.
      if (typeof data?.id === "string") heard({ id: data.id, removed: data.removed === true });
    };
  }

  /** @param {Change} change */
  tell(change) {
    this.#channel?.postMessage(change);
  }

  close() {
    this.#channel?.close();
  }
}
