/** Texts without their case and accents: "Été" and "ete" are the same. */

const PLAIN = /^[\x00-\x7f]*$/;

/** @param {string} text */
export function fold(text) {
  if (PLAIN.test(text)) return text.toLowerCase();
  return text.normalize("NFKD").replace(/\p{M}+/gu, "").toLowerCase().replaceAll("ß", "ss");
}

/** A folded text that knows where in the text its characters came from. */
export class Folded {
  #text;
  /** @type {number[]} for each folded character the place of its own */
  #from = [];
  #folded = "";

  /** @param {string} text */
  constructor(text) {
    this.#text = text;
    let at = 0;
    for (const character of text) {
      const folded = fold(character);
      this.#folded += folded;
      for (let k = 0; k < folded.length; k++) this.#from.push(at);
      at += character.length;
    }
  }

  /** @param {string} word folded @returns {[number, number] | null} where it begins and ends in the text */
  find(word, from = 0) {
    const at = this.#folded.indexOf(word, from);
    return at < 0 ? null : this.#place(at, at + word.length);
  }

  /** @param {string} word folded @returns {[number, number][]} */
  findAll(word) {
    /** @type {[number, number][]} */
    const found = [];
    for (let at = this.#folded.indexOf(word); at >= 0; at = this.#folded.indexOf(word, at + word.length)) {
      found.push(this.#place(at, at + word.length));
    }
    return found;
  }

  /** @param {number} start @param {number} end @returns {[number, number]} */
  #place(start, end) {
    // The last character's own accents, which have no folded character, belong to it.
    return [this.#from[start], this.#from[end] ?? this.#text.length];
  }
}
