/**
 * What may become part of the page. Elements are made from an answer's tokens, never from its markup; they are gone
 * over nevertheless before they are shown, so that one mistake is not enough: every element by the lists below, and
 * what leads somewhere by DOMPurify too. (DOMPurify takes some 25 microseconds for an element, the lists less than
 * one; an element of these names without an address is text with a shape.)
 */

import "../vendor/dompurify/purify.min.js";

const TAGS = (
  "div p h3 h4 h5 h6 ul ol li blockquote hr pre code table thead tbody tr th td strong em del br a img span"
).split(" ");
const ATTRIBUTES = "href title target rel class start src alt loading dir data-language data-formula data-display data-align".split(" ");
const PICTURE = /^data:image\/(?:png|jpe?g|gif|webp|avif|bmp);base64,[a-z0-9+/=\s]*$/i;

/** @typedef {{sanitize(dirty: Node | string, options?: object): any, setConfig(options: object): void, addHook(name: string, hook: (node: Node, attribute: any) => void): void}} Purify */
/** @type {Purify & ((view: Window) => Purify)} */
const purify = /** @type {any} */ (globalThis).DOMPurify;
const OPTIONS = {
  ALLOWED_TAGS: TAGS,
  ALLOWED_ATTR: ATTRIBUTES,
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  SAFE_FOR_XML: false, // what is cleaned is never written out as markup and read again
  IN_PLACE: true,
  TRUSTED_TYPES_POLICY: null, // it reads no markup
};
/** One of our own, which reads its options once and not for every block. */
const cleaner = purify(window);
cleaner.setConfig(OPTIONS);

// DOMPurify knows which addresses run something; which ask somebody for something is the page's own matter.
cleaner.addHook("uponSanitizeAttribute", (_, attribute) => {
  if (!mayLead(attribute.attrName, attribute.attrValue)) attribute.keepAttr = false;
});

/** Takes out of a finished element whatever should not be in it. @param {HTMLElement} element @throws {TypeError} it may not be at all */
export function clean(element) {
  check(element);
  if (element.matches(LEADING)) cleaner.sanitize(element);
  else for (const leading of element.querySelectorAll(LEADING)) cleaner.sanitize(leading);
}

const LEADING = "[href], [src]"; // all that is left of attributes with a meaning to the browser
const HTML = "http://www.w3.org/1999/xhtml";
const tags = new Set(TAGS);
const attributes = new Set(ATTRIBUTES);

/** Whether an attribute, if it holds an address, leads nowhere that it should not. @param {string} name @param {string} value */
function mayLead(name, value) {
  return name === "href" ? safeAddress(value) !== null : name !== "src" || isPicture(value);
}

/**
 * The same by the lists alone, for what is made anew many times in a second.
 * @param {Element} element @throws {TypeError} it may not be at all
 */
export function check(element) {
  if (!mayBe(element)) throw new TypeError(`no answer has an element ${element.localName}`);
  for (const { name, value } of [...element.attributes]) {
    if (!attributes.has(name) || !mayLead(name, value)) element.removeAttribute(name);
  }
  for (const child of [...element.childNodes]) {
    if (child instanceof Text) continue;
    if (child instanceof Element && mayBe(child)) check(child);
    else child.remove();
  }
}

/** @param {Element} element */
const mayBe = ({ localName, namespaceURI }) => tags.has(localName) && namespaceURI === HTML;

/** The address of a link that may be followed, null for any other. @param {string} address */
export function safeAddress(address) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(address)) return null;
  try {
    const { protocol, href } = new URL(address);
    return ["http:", "https:", "mailto:"].includes(protocol) ? href : null;
  } catch {
    return null;
  }
}

/** Whether a picture comes with the text itself, so that showing it asks nobody. @param {string} address */
export const isPicture = (address) => PICTURE.test(address);

/** @type {Map<string, string>} */
const entities = new Map([
  ["&amp;", "&"],
  ["&lt;", "<"],
  ["&gt;", ">"],
  ["&quot;", '"'],
  ["&#39;", "'"],
]);

const ENTITY = /&(?:[a-z][a-z\d]{1,31}|#\d{1,7}|#x[\da-f]{1,6});/gi;
const MAX_KEPT = 5000; // entities; HTML has names for some two thousand
const BETWEEN = "\ufdd3,\ufdd3"; // no entity stands for so much

/**
 * Finds out together what the entities of a text stand for, which is far cheaper than one by one.
 * @param {string} text
 */
export function learnEntities(text) {
  if (!text.includes("&")) return;
  const all = [...new Set(text.match(ENTITY))];
  let fresh = all.filter((entity) => !entities.has(entity));
  if (fresh.length === 0) return;
  if (entities.size + fresh.length > MAX_KEPT) {
    entities.clear();
    fresh = all;
  }
  const found = purify.sanitize(`<p>${fresh.join(BETWEEN)}</p>`, { RETURN_DOM_FRAGMENT: true }).textContent;
  for (const [at, plain] of String(found).split(BETWEEN).entries()) entities.set(fresh[at], plain);
}

/** The text with its `&name;` and `&#1;` replaced by what they stand for. @param {string} text */
export function decode(text) {
  if (!text.includes("&")) return text;
  learnEntities(text);
  return text.replace(ENTITY, (entity) => entities.get(entity) ?? entity);
}
