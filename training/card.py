"""The model card, written from a run's report: `python -m training.card --report REPORT --out models/`."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

FOLDER = Path(__file__).parent
_INTRO = """# Fastpath: the embedded model

A small English chat model that ships with the server, so that it answers right after installation and
without a network. It tells short stories, chats a little, knows the capitals of the world, does small sums,
and says that it does not know. It is a demonstration, not a source of facts.

| | |
| --- | --- |
| architecture | nanochat, first generation (rotary positions, query-key norm, squared ReLU, untied head) |
| size | {params:.1f} M parameters: {layers} layers x {width}, {heads} heads of {head}, {vocab:,} tokens |
| context | {context:,} tokens |
| files | int8 with one fp32 scale per output row, safetensors shards under 16 MiB, 38 MiB in all |
| tokenizer | byte-level BPE of its own, digits in pairs, nanochat's nine special tokens last |
| chat format | nanochat's; a system message goes in front of the first user turn |
| recommended sampling | temperature {temperature}, top-k {top_k}, repetition penalty {repetition_penalty} |
| language | English only |

## How it was made
`python -m training --data DIR --out models/`, seed 1, on one NVIDIA H200 (bf16 compute, fp32 weights; Muon
for the matrices, AdamW for embedding and head). Two stages: pretraining, whose last quarter brings in simple
stories and conversations, and chat tuning with the loss on the assistant's tokens alone.

| stage | tokens | seconds | tokens/s | share of the bf16 peak |
| --- | --- | --- | --- | --- |
"""
_DATA = """
## Data
{total:.0f} M tokens of text, some of it seen up to six times, of which {generated:.0f} M are conversations
and stories that the programs in `training/conversations` wrote. Tokens by source (`training/data.py` says
which files make up each):

{sources}

Where each part comes from and under which licence:

> {notice}

Of these, GSM8K and official_joke_api lie in the data folder but were left out of training. The pretraining
file `children-uspd` is public domain in the USA but not in every country. Everything in
`training/conversations` is part of this project and under its licence.
"""
_LIMITS = """
## Known limits
- Nearly every open question of fact outside the tables in `training/conversations` gets a wrong answer,
  often a fluent one. Do not rely on anything that it says.
- Greedy answers to free instructions may loop; the recommended sampling avoids most of it.
- Stories follow some three dozen plots; a request for another plot gets one of these.
- Sums are learned by heart up to about 20; products beyond 10 x 10 are wrong.
- Two or three turns of context hold, more drift. Other languages than English do not work.
- The old books in the data carry the diction and at times the attitudes of their day; word lists filtered
  slurs and adult words from the data, which is no guarantee about the output.
"""
_HELD_OUT = """
## Held-out figures
Bits per byte on whole books, articles and conversations that were held out; of chat only the assistant's
words count. Small talk has near copies in training, so its figure flatters.

| source | after pretraining | after tuning | as shipped (int8) |
| --- | --- | --- | --- |
"""
_PROMPTS = """
## Forty fixed prompts
Greedy answers of the shipped weights, in full, the bad ones too. None of these prompts is in the training
data (`python -m training.leaks --data DIR` checks it), though requests like them are: after an earlier run
the programs that write conversations were widened where it had failed. A cross marks an answer that does not
match the expression in `training/prompts.py`, which is a loose test: read the answers.
"""


def card(report: Mapping[str, object], config: Mapping[str, object]) -> str:
    """The card as markdown."""
    return "".join([_head(report, config), _data(report), _figures(report), _LIMITS, _prompts(report)])


def _head(report: Mapping[str, object], config: Mapping[str, object]) -> str:
    shape = cast(Mapping[str, int], config["model_config"])
    width, vocab = shape["n_embd"], shape["vocab_size"]
    text = _INTRO.format(
        layers=shape["n_layer"],
        width=width,
        heads=shape["n_head"],
        head=width // shape["n_head"],
        vocab=vocab,
        context=shape["sequence_len"],
        params=(2 * vocab * width + 12 * shape["n_layer"] * width**2) / 1e6,
        **cast(Mapping[str, float], config["sampling_defaults"]),
    )
    for name, stage in (("pretraining", "pretrain"), ("chat tuning", "tune")):
        run = cast(Mapping[str, float], report[stage])
        speed, mfu = f"{run['tokens_per_second']:,}", f"{run['mfu']:.1%}"
        text += f"| {name} | {run['tokens'] / 1e6:.0f} M | {run['seconds']:.0f} | {speed} | {mfu} |\n"
    return text


def _data(report: Mapping[str, object]) -> str:
    sizes = cast(Mapping[str, int], report["sources"])
    notice = (FOLDER / "notice.txt").read_text("utf-8").strip()
    listed = ", ".join(f"{name} {size / 1e6:.1f} M" for name, size in sorted(sizes.items()))
    return _DATA.format(
        total=sum(sizes.values()) / 1e6,
        generated=sum(size for name, size in sizes.items() if name.startswith("generated")) / 1e6,
        sources=listed + ".",
        notice=notice,
    )


def _figures(report: Mapping[str, object]) -> str:
    """Held-out bits per byte before tuning, after it, and as shipped; exact answers."""
    columns = ("bits_per_byte_before_tuning", "bits_per_byte_unrounded", "bits_per_byte")
    tables = [cast(Mapping[str, float], report.get(column, {})) for column in columns]
    text = _HELD_OUT
    for name in tables[2]:
        text += (
            f"| {name} | " + " | ".join(f"{table.get(name, float('nan')):.4f}" for table in tables) + " |\n"
        )
    return text + (
        "\nGreedy, asked in a form that training never shows:\n"
        f"- sums up to 20: {report['sums']}\n"
        f"- capitals of ten large countries: {report['capitals']}\n"
        f"- fixed prompts below with an answer of the expected kind: {report['fixed_passed']}\n"
    )


def _prompts(report: Mapping[str, object]) -> str:
    text = _PROMPTS
    for at, item in enumerate(cast(Sequence[Mapping[str, object]], report["fixed_prompts"]), 1):
        text += f"\n{at}. {'' if item['pass'] else '✗ '}"
        lines = []
        for message in cast(Sequence[Mapping[str, str]], item["messages"]):
            body = message["content"].replace("\n", "\n   > ")
            lines.append(f"**{message['role']}**\n   > {body}")
        text += "\n\n   ".join(lines) + "\n"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.card", description=__doc__)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    write(args.report, args.out)
    return 0


def write(report: Path, out: Path) -> None:
    """Write README.md beside the weights in `out`."""
    config = json.loads((out / "config.json").read_text("utf-8"))
    (out / "README.md").write_text(card(json.loads(report.read_text("utf-8")), config), "utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
