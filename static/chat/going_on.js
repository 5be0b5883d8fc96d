/** Whether there is more of an answer to be had. */

/**
 * @typedef {import("../core/conversation.js").Conversation} Conversation
 * @typedef {import("../core/conversation.js").Message} Message
 */

/** Only the end of what is shown can be continued. @param {Conversation} conversation @param {string} id */
export function canContinue(conversation, id) {
  const message = conversation.find(id);
  return message?.role === "assistant" && message.content !== "" && conversation.head.leaf === id;
}

/** The model thought that it was done: to go on is rare, and stands among the rarer tools. @param {Message} message */
export function endedByItself({ state, facts }) {
  return state === "done" && facts?.finish === "stop";
}
