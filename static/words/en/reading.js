/** @type {Record<string, import("../words.js").Word>} */
export const reading = {
  "reading.code": "Code",
  "reading.codeIn": "Code, {language}",
  "reading.copyCode": "Copy the code",
  "reading.copied": "Copied",
  "reading.copyFailed": "The browser did not allow copying. Select the code and copy it by keyboard.",
  "reading.wrap": "Wrap long lines",
  "reading.table": "Table",
  "reading.formula": "Formula",
  "reading.done": "Done",
  "reading.open": "Not done",
  "reading.jump": "Jump to the newest text",
  "reading.jumpUnread": "Jump to the newest text, there is more below",
};
