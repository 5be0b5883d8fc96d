/** Settings and presets that another tab has changed. */

import { PRESETS_KEY } from "./presets.js";
import { STORAGE_KEY } from "./settings.js";

/** @param {import("./settings.js").Settings} settings @param {import("./presets.js").Presets} presets */
export function followOtherTabs(settings, presets) {
  addEventListener("storage", ({ key }) => {
    if (key === STORAGE_KEY || key === null) settings.reload(); // null: everything was cleared
    if (key === PRESETS_KEY || key === null) presets.reload();
  });
}
