"""Templates: `[one|another]` picks an alternative (nesting allowed), `{slot}` inserts a value.

`{a slot}` puts the right article in front, `{Slot}` and `{A slot}` start with a capital letter.
"""

import re
from collections.abc import Mapping
from functools import cache
from random import Random

Node = str | tuple["tuple[Node, ...]", ...]
_SLOT = re.compile(r"\{([aA] )?(\w+)\}")
# Words whose first letter misleads about the article.
_AN = ("hour", "honest")
_A = ("uni", "one", "use", "eu")
# What a sentence may begin with to have a "Please" put in front.
_IMPERATIVES = frozenset(
    [
        "Add",
        "Arrange",
        "Calculate",
        "Change",
        "Choose",
        "Continue",
        "Convert",
        "Count",
        "Cut",
        "Define",
        "Describe",
        "Divide",
        "Explain",
        "Find",
        "Finish",
        "Give",
        "List",
        "Make",
        "Multiply",
        "Name",
        "Order",
        "Pick",
        "Put",
        "Reverse",
        "Say",
        "Show",
        "Solve",
        "Sort",
        "Spell",
        "Start",
        "Subtract",
        "Take",
        "Tell",
        "Think",
        "Turn",
        "Use",
        "Write",
    ]
)


def article(noun: str) -> str:
    """`a` or `an`, by the sound that `noun` starts with."""
    word = noun.lower()
    if word.startswith(_AN):
        return "an"
    if word.startswith(_A):
        return "a"
    return "an" if word[:1] in "aeiou" else "a"


def capitalise(text: str) -> str:
    """`text` with its first letter in upper case; the rest is left alone."""
    return text[:1].upper() + text[1:]


def expand(rng: Random, template: str, slots: Mapping[str, str] | None = None) -> str:
    """One random reading of `template`, with its slots filled. Raises KeyError for an unknown slot."""
    text = _choose(rng, _parse(template))
    return _SLOT.sub(lambda match: _fill(match, slots or {}), text)


def _fill(match: re.Match[str], slots: Mapping[str, str]) -> str:
    lead, key = match.group(1), match.group(2)
    upper = key not in slots and key[0].isupper()
    value = slots[key[0].lower() + key[1:]] if upper else slots[key]
    if lead:
        value = f"{article(value)} {value}"
        upper = lead == "A "
    return capitalise(value) if upper else value


def _choose(rng: Random, nodes: tuple[Node, ...]) -> str:
    return "".join(n if isinstance(n, str) else _choose(rng, n[rng.randrange(len(n))]) for n in nodes)


@cache
def _parse(template: str) -> tuple[Node, ...]:
    nodes, end = _sequence(template, 0)
    if end != len(template):
        raise ValueError(f"unbalanced brackets in template: {template!r}")
    return nodes


def _sequence(text: str, start: int) -> tuple[tuple[Node, ...], int]:
    """Parse until an unmatched `|` or `]`; returns the nodes and where it stopped."""
    nodes: list[Node] = []
    literal = start
    at = start
    while at < len(text) and text[at] not in "|]":
        if text[at] != "[":
            at += 1
            continue
        if at > literal:
            nodes.append(text[literal:at])
        options: list[tuple[Node, ...]] = []
        while True:
            option, at = _sequence(text, at + 1)
            options.append(option)
            if at >= len(text):
                raise ValueError(f"unbalanced brackets in template: {text!r}")
            if text[at] == "]":
                break
        nodes.append(tuple(options))
        at += 1
        literal = at
    if at > literal:
        nodes.append(text[literal:at])
    return tuple(nodes), at


_VERBS = (
    "rain|snow|work|mean|happen|live|eat|drink|make|come|have|cost|do|sound|look|say|rise|set|go|move|fly|"
    "swim|sleep|taste|need|float|sink|hurt|smell|get|start|begin|end|run|take|weigh|help|stop|fall|change|"
    "speak|shine|turn|grow|form|burn|melt|freeze|feel|give|use|keep|lie|stand|contain|equal|breathe|bark"
)
_ASKED = r"(Why|How|Where|When|What|Which \w+|How many \w+|How much)"
_HOW_TO = re.compile(r"How (?:do|can|could|should) I ([^?]+)\?")
_DO = re.compile(_ASKED + r" do ([^?]+)\?")
_DOES = re.compile(_ASKED + rf" does ([^?]+?) ({_VERBS})\b([^?]*)\?")
_WHY_IS = re.compile(r"(Why|When) (is|are|was|were) ((?:the |an? )?\w+) ((?:so )?\w+)\?")
_IS = re.compile(r"(What|Who|Where|How (?!much|many)\w+) (is|are|was|were) ([^?:,]+)\?")
_NOT_LAST = re.compile(r" (like|for|called|made of|about|with|in|on|from|at|of|between|[A-Z]\w+ or \w+)$")
_ODD_VERBS = {"have": "has", "do": "does", "go": "goes", "fly": "flies"}
# Around a question that is part of a sentence, "why it rains"; {q} is it.
_FRAMES = (
    "Tell me {q}.", "Tell me {q}, please.", "Please tell me {q}.", "Explain {q}.", "Explain to me {q}.",
    "Please explain {q}.", "Can you explain {q}?", "Could you explain to me {q}?", "Can you tell me {q}?",
    "Could you tell me {q}?", "Do you know {q}?", "I want to know {q}.", "I would like to know {q}.",
    "I'd like to know {q}.", "I wonder {q}.", "I was wondering {q}.", "I don't know {q}. Do you?",
    "Would you tell me {q}?", "I have always wondered {q}.", "I need to know {q}.", "Let me know {q}.",
    "My son asks {q}.", "Somebody asked me {q}.", "I am not sure {q}.", "Help me understand {q}.",
)  # fmt: skip
_LEADS = (
    "Hey, ", "Can you help me? ", "OK. ", "So, ", "Question: ", "Quick question: ", "Tell me: ",
    "I have a question. ", "Say, ", "Well, ", "Excuse me, ", "Now, ", "Alright. ", "Um, ", "One thing: ",
    "Another question: ",
)  # fmt: skip


def indirect(question: str) -> str | None:
    """`why it rains` for `Why does it rain?`, as it stands inside a sentence; None where that is not sure."""
    if found := _HOW_TO.fullmatch(question):
        return f"how to {found[1]}"
    if found := _DO.fullmatch(question):
        return f"{found[1][:1].lower()}{found[1][1:]} {found[2]}"
    if found := _DOES.fullmatch(question):
        asked, who, verb, rest = found.groups()
        ending = "es" if verb.endswith(("s", "sh", "ch", "x", "z")) else "s"
        return f"{asked[:1].lower()}{asked[1:]} {who} {_ODD_VERBS.get(verb, verb + ending)}{rest}"
    if found := _WHY_IS.fullmatch(question):
        return f"{found[1].lower()} {found[3]} {found[2]} {found[4]}"
    if (found := _IS.fullmatch(question)) and not _NOT_LAST.search(found[3]):
        return f"{found[1][:1].lower()}{found[1][1:]} {found[3]} {found[2]}"
    return None


def as_typed(rng: Random, text: str) -> str:
    """What a person might really type for `text`: sometimes as part of a sentence, without a capital or full
    stop, or with a word in front.
    """
    if rng.random() < 0.2 and len(text) < 100 and (inside := indirect(text)) is not None:
        return carelessly(rng, rng.choice(_FRAMES).format(q=inside))
    if rng.random() < 0.12 and not text.lower().startswith(("please", "hi", "hey", "hello", "thank")):
        lead = "Please " if rng.random() < 0.3 and text.split(" ")[0] in _IMPERATIVES else rng.choice(_LEADS)
        small = lead[-2] not in ".?" and not re.match(r"I\b", text)
        text = lead + (text[:1].lower() + text[1:] if small else text)
    return carelessly(rng, text)


def carelessly(rng: Random, text: str) -> str:
    """`text` as a hasty person types it: sometimes no capital or no full stop."""
    roll = rng.random()
    if roll < 0.15:
        text = text.lower()
    elif roll < 0.22:
        text = text[:1].lower() + text[1:]
    if rng.random() < 0.18:
        text = text.rstrip("?.! ") or text
    return text.rstrip()


def joined(items: list[str], last: str = "and") -> str:
    """`a, b, and c`; two items need no comma."""
    if len(items) < 3:
        return f" {last} ".join(items)
    return ", ".join(items[:-1]) + f", {last} {items[-1]}"
