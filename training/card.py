"""The model card, written from a run's report: `python -m training.card --report REPORT --out models/`.

The first embedded model's figures, measured with the same items, stand beside this one's.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from training.comparison import compared, count, parameters, share, tried
from training.conversations.tables import table
from training.export import INDEX_FILE
from training.files import ReadError, WriteError, read_table, write_text

FOLDER = Path(__file__).parent
FIRST_MODEL = FOLDER / "first_model.json"
ABLATION = FOLDER / "ablation.json"
PLOT_FILE = "losses.svg"
MOST_LOST = 0.005  # of the loss, by rounding
Table = Mapping[str, object]
_GENERATIONS = {
    "G1": "first generation (rotary positions, query-key norm, squared ReLU, untied head)",
    "G2": "second generation (the first with a learned scale of the residual stream in each layer)",
    "G3": "third generation (the second with gated value embeddings)",
    "G4": "fourth generation (gated value embeddings, short and long attention windows)",
    "G5": "fifth generation (the fourth with smear and backout)",
}
_INTRO = """# Fastpath: the embedded model

A small English chat model that ships with the server, so that it answers right after installation and
without a network. It tells short stories, chats a little, has learned the capitals of {countries}
countries, does sums with the server's calculator, and says that it does not know. It is a demonstration, not
a source of facts.

| | |
| --- | --- |
| architecture | nanochat, {generation} |
| size | {params:.1f} M parameters: {layers} layers x {width}, {vocab:,} tokens |
| heads | {heads} of {head} channels for queries, {keys} for keys and values |
| context | {context:,} tokens |
| files | int8 with one fp32 scale per output row, safetensors shards under 16 MiB, {mib:.1f} MiB in all |
| tokenizer | byte-level BPE of its own, digits in pairs, nanochat's nine special tokens last |
| chat format | nanochat's; a system message goes in front of the first user turn |
| recommended sampling | temperature {temperature}, top-k {top_k}, repetition penalty {repetition_penalty} |
| language | English only |
"""
_MADE = """
## How it was made
`python -m training --data DIR --out models/`, seed 1, on one NVIDIA H200 (bf16 compute, fp32 weights; Muon
for the matrices, AdamW for the rest). Two stages: pretraining, whose last part brings in simple stories and
conversations, and chat tuning with the loss on the assistant's tokens alone; some prose among it, learned
whole, keeps what pretraining taught. The speed leaves out the first steps, which compile, and the seconds
have them; the tokens of tuning count the padding of its rows.

| stage | tokens | seconds | tokens/s | share of the bf16 peak |
| --- | --- | --- | --- | --- |
"""
_DATA = """
## Data
{total:.0f} M tokens of text, some of it seen several times, of which {generated:.0f} M are conversations
and stories that the programs in `training/conversations` wrote. Tokens by source (`training/data.py` says
which files make up each):

{sources}

Where each part comes from and under which licence:

> {notice}

GSM8K and official_joke_api lie in the data folder too, but training leaves them out. The pretraining file
`children-uspd` is public domain in the USA but not in every country. Everything in `training/conversations`
is part of this project and under its licence.
"""
_LIMITS = """
## Known limits
- It has learned the capitals of the countries in `training/conversations/tables/countries.tsv`. Of states,
  provinces and regions (Texas, Bavaria and Ontario, for example) it may give a wrong capital.
- Open questions of fact outside the tables in `training/conversations` mostly get a wrong answer, often a
  fluent one; the short answers above say how often. Do not rely on anything that it says.
- Greedy answers to free instructions may loop; the recommended sampling avoids most of it.
- Stories follow the plots in `training/conversations`; a request for another plot gets one of these. Of three
  words that a story must hold, one may be missing.
- Advice outside what `training/conversations` knows (a job interview, for example) may be nonsense in whole
  sentences. It is no help in an emergency, whatever it answers.
- Arithmetic is right where the model hands the right numbers to the calculator, and a guess otherwise.
- Two or three turns of context hold, more drift. Other languages than English do not work.
- The old books in the data carry the diction and at times the attitudes of their day; word lists filtered
  slurs and adult words from the data, which is no guarantee about the output.
"""
_HELD_OUT = """
## Held-out loss
Bits per byte on whole books, articles and conversations that were held out; of chat only the assistant's
words count, and the token that ends an answer, which stands for no bytes, does not. An item longer than the
context is measured in windows: each further one begins with half a context of tokens that counted before.
Small talk has near copies in training, so its figure flatters.

| source | after pretraining | after tuning | as shipped (int8) | rounding |
| --- | --- | --- | --- | --- |
"""
_FEW = """
Of some sources little is held out: prose/storybooks rests on 2 items and chat/stories on 14, so that these
two figures say little.
"""
_REQUIRED = """
## What it must get right
Greedy, each asked in several ways of which training has none; all must be right. Ways that an earlier run
got wrong led to more forms of their kind in the data: "How must I address you?" because of "How should I
address you?", "Which day is Monday followed by?" because of "What is the name of the day that Monday is
followed by?".

| | right | |
| --- | --- | --- |
"""
_LEAKS = """
## Test prompts and training data
`python -m training.leaks --data DIR` read all {read:.0f} M characters that training reads, generated
conversations included, and looked for {prompts} prompts ({sets}):
{found}. Training had left out {left}.
"""
_PROMPTS = """
## Fixed prompts
Greedy answers of the shipped weights, in full, the bad ones too, the calculator's blocks as the server
sends them with `skip_special_tokens` false. Requests like these are in the training data, these words are
not. A cross marks an answer that does not match the expression in `training/prompts.py`, which is a loose
test: read the answers.
"""


def card(report: Table, config: Table, first: Table, mib: float, plot: bool = False) -> str:
    """The card as markdown. mib: size of the weights. plot: PLOT_FILE lies beside it. What a report lacks is
    left out.
    """
    parts = [_head(config, mib), compared(report, config, first)]
    for key, part in (
        ("required", _required),
        ("bits_per_byte", _loss),
        ("leaks", _leaks),
        ("sources", _data),
        ("pretrain", _made),
    ):
        if key in report:
            parts.append(part(report))
    if plot:
        parts.append(f"\n![Training losses]({PLOT_FILE})\n")
    parts += [tried(read_table(ABLATION)), _LIMITS]
    if "fixed_prompts" in report:
        parts.append(_prompts(report))
    return "".join(parts)


def _head(config: Table, mib: float) -> str:
    shape = cast(Mapping[str, int], config["model_config"])
    width = shape["n_embd"]
    return _INTRO.format(
        generation=_GENERATIONS[str(shape.get("generation", "G1"))],
        layers=shape["n_layer"],
        width=width,
        heads=shape["n_head"],
        head=width // shape["n_head"],
        keys=shape.get("n_kv_head", shape["n_head"]),
        vocab=shape["vocab_size"],
        context=shape["sequence_len"],
        params=parameters(config) / 1e6,
        mib=mib,
        countries=len(table("countries")),
        **cast(Mapping[str, float], config["sampling_defaults"]),
    )


def _required(report: Table) -> str:
    text = _REQUIRED
    wrong: list[str] = []
    for name, found in cast(Mapping[str, Table], report["required"]).items():
        text += f"| {name} | {count(found)} | {'pass' if found['right'] == found['of'] else '**fail**'} |\n"
        pairs = cast(Sequence[Sequence[str]], found.get("wrong", ()))
        wrong += [f"- {asked} — {_line(answer)}\n" for asked, answer in pairs]
    return text + (("\nWrong answers:\n" + "".join(wrong)) if wrong else "")


def _line(answer: str) -> str:
    """On one line of a list."""
    return " / ".join(answer.splitlines()) or "(nothing)"


def _loss(report: Table) -> str:
    """Held-out bits per byte before tuning, after it, and as shipped; what rounding and the engine change."""
    columns = ("bits_per_byte_before_tuning", "bits_per_byte_unrounded", "bits_per_byte")
    before, unrounded, shipped = (cast(Mapping[str, float], report.get(column, {})) for column in columns)
    text = _HELD_OUT
    for name, value in shipped.items():
        was = unrounded.get(name)
        change = f"{(value - was) / was:+.2%}" if was else "-"
        cells = [f"{table[name]:.4f}" if name in table else "-" for table in (before, unrounded, shipped)]
        text += f"| {name} | {' | '.join(cells)} | {change} |\n"
    every = cast(int, report.get("bits_per_byte_of_every", 1))
    if every == 1:
        text += _FEW
    if every > 1:
        text += f"\nShipped weights: on every {every}th item of a source only.\n"
    elif unrounded and shipped:
        totals = ("prose", "chat")
        costs = {name: shipped[name] / unrounded[name] - 1 for name in totals if name in unrounded}
        told = " and ".join(f"{cost:+.2%} on {name}" for name, cost in costs.items())
        limit = "within" if max(costs.values()) <= MOST_LOST else "**more than**"
        text += f"\nRounding to int8 changes the loss by {told}: {limit} the {MOST_LOST:.1%} allowed.\n"
    for device, served in cast(Mapping[str, Mapping[str, float]], report.get("served_loss", {})).items():
        difference = (served["engine"] - served["reference"]) / served["reference"]
        text += (
            f"\nOn {served['tokens']:,} sampled tokens the engine on {device} has a loss of "
            f"{served['engine']:.4f} nats a token,\nthe fp32 forward pass with the same weights "
            f"{served['reference']:.4f}: {difference:+.2%}.\n"
        )
    return text


def _leaks(report: Table) -> str:
    leaks = cast(Mapping[str, object], report["leaks"])
    prompts = cast(Mapping[str, int], leaks["prompts"])
    left = cast(Mapping[str, int], leaks["left_out"])
    found = cast(Sequence[str], leaks["found"])
    by_kind = {
        kind: sum(size for name, size in left.items() if name.endswith(f": {kind}"))
        for kind in ("document", "prompt")
    }
    return _LEAKS.format(
        read=cast(int, leaks["characters_read"]) / 1e6,
        prompts=sum(prompts.values()),
        sets=", ".join(f"{name} {size}" for name, size in prompts.items()),
        found="none occurs" if not found else f"**{len(found)} occur**: " + "; ".join(found),
        left=f"{by_kind['document']} items that share a sentence with a held-out document "
        f"and {by_kind['prompt']} that hold a prompt",
    )


def _data(report: Table) -> str:
    sizes = cast(Mapping[str, int], report["sources"])
    notice = (FOLDER / "notice.txt").read_text("utf-8").strip()
    listed = ", ".join(f"{name} {size / 1e6:.1f} M" for name, size in sorted(sizes.items()))
    return _DATA.format(
        total=sum(sizes.values()) / 1e6,
        generated=sum(size for name, size in sizes.items() if name.startswith("generated")) / 1e6,
        sources=listed + ".",
        notice=notice,
    )


def _made(report: Table) -> str:
    text = _MADE
    for name, stage in (("pretraining", "pretrain"), ("chat tuning", "tune")):
        run = cast(Mapping[str, float], report[stage])
        speed, mfu = f"{run['tokens_per_second']:,}", share(run["mfu"])
        text += f"| {name} | {run['tokens'] / 1e6:.0f} M | {run['seconds']:.0f} | {speed} | {mfu} |\n"
    return text


def _prompts(report: Table) -> str:
    text = _PROMPTS
    for at, item in enumerate(cast(Sequence[Table], report["fixed_prompts"]), 1):
        text += f"\n{at}. {'' if item['pass'] else '✗ '}"
        lines = []
        for message in cast(Sequence[Mapping[str, str]], item["messages"]):
            body = message["content"].replace("\n", "\n   > ")
            lines.append(f"**{message['role']}**\n   > {body}")
        text += "\n\n   ".join(lines) + "\n"
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.card", description="Write the model card.")
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        write(args.report, args.out)
    except (ReadError, WriteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write(report: Path, out: Path) -> None:
    """Write README.md beside the weights in `out`. Raises ReadError, WriteError."""
    measured, config, index = map(read_table, (report, out / "config.json", out / INDEX_FILE))
    size = cast(Mapping[str, int], index["metadata"])["total_size"]
    text = card(measured, config, read_table(FIRST_MODEL), size / 2**20, (out / PLOT_FILE).exists())
    write_text(out / "README.md", text)


if __name__ == "__main__":
    raise SystemExit(main())
