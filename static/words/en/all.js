import { chat } from "./chat.js";
import { composer } from "./composer.js";
import { keep } from "./keep.js";
import { reading } from "./reading.js";
import { seeing } from "./seeing.js";
import { server } from "./server.js";
import { settings } from "./settings.js";
import { shell } from "./shell.js";

/** @type {Record<string, import("../words.js").Word>} */
export const messages = { ...chat, ...composer, ...keep, ...reading, ...seeing, ...server, ...settings, ...shell };
