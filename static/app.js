/** Puts the parts of the page together. */

import { Autosave } from "./chat/autosave.js";
import { Chat } from "./chat/chat.js";
import { isCommand, runCommand } from "./chat/commands.js";
import { mountComposer } from "./chat/mount_composer.js";
import { wireAddress } from "./chat/address.js";
import { learnModel } from "./chat/learn_model.js";
import { wireTools } from "./chat/tools.js";
import { LogView } from "./chat/view.js";
import { download } from "./keep/download.js";
import { Library } from "./keep/library.js";
import { Sidebar } from "./keep/sidebar.js";
import { Follower } from "./reading/scroll.js";
import { LoadLine } from "./seeing/load.js";
import { countTokens, watchStats } from "./server/api.js";
import { Presets } from "./settings/presets.js";
import { Settings } from "./settings/settings.js";
import { byId } from "./shell/dom.js";
import { focusedMessage, mountFrame } from "./shell/frame.js";
import { install } from "./shell/install.js";
import { Keys } from "./shell/keys.js";
import { toast } from "./shell/toast.js";
import { chooseLanguage, t, translate } from "./words/words.js";
