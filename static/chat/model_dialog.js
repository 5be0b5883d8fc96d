/** What is known of the model and of the server that runs it. Loaded when it is first opened. */

import { modelCard, readModelFacts } from "../seeing/model_card.js";
import { fetchModel, fetchStats } from "../server/api.js";
import { explain } from "../server/errors.js";
import { request } from "../server/request.js";
import { openDialog } from "../shell/dialog.js";
import { toast } from "../shell/toast.js";
import { t } from "../words/words.js";

export async function openModelDialog() {
  try {
    const version = async () => (await request("version")).json();
    const facts = await readModelFacts({ model: fetchModel, stats: fetchStats, version });
    openDialog(t("seeing.card.title"), {}, modelCard(facts));
  } catch (error) {
    toast(explain(error).title, { kind: "problem" });
  }
}
