/** Tokens to elements. Every element that an answer's text can become is made here, by name. */

import { MARK, MARK_END } from "./markdown.js";
import { decode, isPicture, safeAddress } from "./safety.js";

/** @typedef {import("./markdown.js").Token} Token */

const CALCULATION = new RegExp(`${MARK}(\\d+)${MARK_END}`);
const HEADINGS = 3; // the page's own headings are h1 and h2

/** @param {string} tag @param {string} [className] */
function make(tag, className) {
  const element = document.createElement(tag);
  if (className !== undefined) element.className = className;
  return element;
}

/** Adds text, to the text that is there if there is any. @param {Node} parent @param {string} text */
function addText(parent, text) {
  if (text === "") return;
  const last = parent.lastChild;
  if (last instanceof Text) last.appendData(text);
  else parent.appendChild(document.createTextNode(text));
}

export class Elements {
  #calculations;

  /** @param {readonly string[]} calculations what the marks in the source stand for */
  constructor(calculations) {
    this.#calculations = calculations;
  }

  /** Text in which calculations are words like others. @param {string} text @returns {string} */
  plain(text) {
    if (!text.includes(MARK)) return text;
    return text.replace(new RegExp(CALCULATION, "g"), (_, number) => this.#calculations[number] ?? "");
  }

  /** @param {Token[]} tokens @param {Node} parent */
  blocks(tokens, parent) {
    for (const token of tokens) {
      const element = this.block(token);
      if (element instanceof Node) parent.appendChild(element);
      else if (element !== null) this.inline(element, parent);
    }
  }

  /**
   * @param {Token} token
   * @returns {HTMLElement | Token[] | null} a block's element, the words of a block that has none of its own,
   *   null for what is not seen
   */
  block(token) {
    switch (token.type) {
      case "paragraph":
        return this.#filled(make("p"), token.tokens);
      case "heading":
        return this.#filled(make(`h${Math.min(6, token.depth + HEADINGS - 1)}`), token.tokens);
      case "code":
        return this.#code(token);
      case "list":
        return this.#list(token);
      case "blockquote": {
        const quote = make("blockquote");
        this.blocks(token.tokens, quote);
        return quote;
      }
      case "table":
        return this.#table(token);
      case "hr":
        return make("hr");
      case "html":
        return this.#markup(token);
      case "formulaBlock":
        return this.#formula(token, make("div", "formula"));
      case "text":
        return token.tokens ?? [token];
      case "checkbox":
        return [token];
      default:
        return null;
    }
  }

  /** @param {Token} item @returns {HTMLElement} */
  item(item) {
    const element = make("li", item.task ? "task" : undefined);
    for (const token of item.tokens) {
      // In a list with air between its items, their words are paragraphs.
      if (item.loose && token.type === "text") element.append(this.#filled(make("p"), token.tokens ?? [token]));
      else this.blocks([token], element);
    }
    return element;
  }

  /** @param {Token} token a list @returns {HTMLElement} without its items */
  emptyList(token) {
    const list = make(token.ordered ? "ol" : "ul");
    if (token.ordered && token.start !== 1) list.setAttribute("start", String(Number(token.start)));
    return list;
  }

  /** @param {Token} token a table @returns {HTMLElement} without its rows; `tbody` is always there */
  emptyTable(token) {
    const table = make("table");
    const head = make("thead");
    head.append(this.row(token.header, "th"));
    table.append(head, make("tbody"));
    const frame = make("div", "table");
    frame.append(table);
    return frame;
  }

  /** @param {Token[]} cells @param {string} [tag] @returns {HTMLElement} */
  row(cells, tag = "td") {
    const row = make("tr");
    for (const cell of cells) {
      const element = this.#filled(make(tag), cell.tokens);
      if (cell.align) element.dataset.align = cell.align;
      row.append(element);
    }
    return row;
  }

  /** @param {HTMLElement} element @param {Token[]} tokens @returns {HTMLElement} */
  #filled(element, tokens) {
    this.inline(tokens, element);
    return element;
  }

  /** @param {Token} token */
  #list(token) {
    const list = this.emptyList(token);
    for (const item of token.items) list.append(this.item(item));
    return list;
  }

  /** @param {Token} token */
  #table(token) {
    const frame = this.emptyTable(token);
    for (const cells of token.rows) frame.querySelector("tbody")?.append(this.row(cells));
    return frame;
  }

  /** @param {Token} token */
  #code(token) {
    const code = make("code");
    code.dataset.language = this.plain(/^\S*/.exec(decode(token.lang ?? ""))?.[0] ?? "");
    code.textContent = this.plain(token.text);
    const block = make("pre");
    block.append(code);
    return block;
  }

  /** Markup is shown as it came. @param {Token} token */
  #markup(token) {
    const text = token.text.trimEnd();
    const paragraph = make("p", "markup");
    this.#words(paragraph, text);
    return paragraph;
  }

  /** @param {Token} token @param {HTMLElement} element */
  #formula(token, element) {
    const source = this.plain(token.source).trim();
    element.textContent = source;
    if (token.open) element.className = "formula open";
    else element.dataset.formula = source;
    if (token.display) element.dataset.display = "";
    return element;
  }

  /** @param {Token[]} tokens @param {Node} parent */
  inline(tokens, parent) {
    for (const token of tokens) this.#phrase(token, parent);
  }

  /** @param {Token} token @param {Node} parent */
  #phrase(token, parent) {
    switch (token.type) {
      case "text":
        if (token.tokens) return this.inline(token.tokens, parent);
        return this.#words(parent, token.escaped ? token.text : decode(token.text));
      case "escape":
        return this.#words(parent, token.text);
      case "strong":
      case "em":
      case "del":
        parent.appendChild(this.#filled(make(token.type), token.tokens));
        return;
      case "codespan": {
        const code = make("code");
        code.textContent = this.plain(token.text);
        parent.appendChild(code);
        return;
      }
      case "br":
        parent.appendChild(make("br"));
        return addText(parent, "\n"); // for who copies the text
      case "link":
        return this.#link(token, parent);
      case "image":
        return this.#image(token, parent);
      case "checkbox":
        parent.appendChild(make("span", token.checked ? "checkbox done" : "checkbox"));
        return;
      case "formula":
        parent.appendChild(this.#formula(token, make("span", "formula")));
        return;
      case "html":
        if (/^<br\s*\/?>$/i.test(token.text)) parent.appendChild(make("br"));
        else this.#words(parent, token.text);
        return;
      default:
        this.#words(parent, token.text ?? token.raw ?? "");
    }
  }

  /** Words, with the calculations among them. @param {Node} parent @param {string} text */
  #words(parent, text) {
    if (!text.includes(MARK)) return addText(parent, text);
    text.split(CALCULATION).forEach((part, place) => {
      if (place % 2 === 0) return addText(parent, part);
      const chip = make("span", "calculation");
      chip.textContent = this.#calculations[Number(part)] ?? "";
      parent.appendChild(chip);
    });
  }

  /** @param {Token} token @param {Node} parent */
  #link(token, parent) {
    const address = safeAddress(this.plain(decode(token.href)));
    const element = make(address === null ? "span" : "a", address === null ? "dead" : undefined);
    if (address !== null) this.#follow(element, address);
    if (token.title) element.title = this.plain(decode(token.title));
    this.inline(token.tokens, element);
    parent.appendChild(element);
  }

  /** @param {HTMLElement} link @param {string} address */
  #follow(link, address) {
    link.setAttribute("href", address);
    link.setAttribute("target", "_blank");
    link.setAttribute("rel", "noopener noreferrer nofollow");
  }

  /** A picture from elsewhere would tell whoever has it that the answer is read: it becomes a link. @param {Token} token @param {Node} parent */
  #image(token, parent) {
    const source = this.plain(decode(token.href));
    const words = this.plain(decode(token.text));
    if (isPicture(source)) {
      const picture = make("img");
      picture.setAttribute("src", source);
      picture.setAttribute("alt", words);
      parent.appendChild(picture);
      return;
    }
    const address = safeAddress(source);
    const link = make(address === null ? "span" : "a", "image");
    if (address !== null) this.#follow(link, address);
    link.textContent = words === "" ? source : `${words} (${source})`;
    parent.appendChild(link);
  }
}
