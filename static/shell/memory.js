/** What the page's frame remembers in this browser: small choices, by name. */

/** @param {string} name @returns {string | null} */
export function remembered(name) {
  try {
    return localStorage.getItem(`fastpath.${name}`);
  } catch {
    return null; // the browser forbids it
  }
}

/** @param {string} name @param {string} value */
export function remember(name, value) {
  try {
    localStorage.setItem(`fastpath.${name}`, value);
  } catch {
    // Full or forbidden: it holds until the page is closed.
  }
}
