/** Stylesheets that come with the first need of them. */

/** @type {Map<string, Promise<void>>} */
const asked = new Map();

/**
 * @param {string | URL} address
 * @returns {Promise<void>} when it counts; also when it cannot be had: then things look plainer
 */
export function loadStyle(address) {
  const href = String(address);
  let loaded = asked.get(href);
  if (loaded === undefined) {
    loaded = new Promise((done) => {
      const link = document.createElement("link");
      link.rel = "stylesheet";
      link.href = href;
      link.onload = () => done();
      link.onerror = () => {
        asked.delete(href); // the network may be back the next time
        link.remove();
        done();
      };
      document.head.append(link);
    });
    asked.set(href, loaded);
  }
  return loaded;
}
