"""Whether an answer is right. Answers come with the calculator's blocks in the text, as the server sends them
with `skip_special_tokens` false.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from training.conversations.arithmetic import WORDS
from training.conversations.dates import DAYS
from training.conversations.tables import table
from training.evaluate.questions import Question, words

_BLOCK = re.compile(
    r"<\|python_start\|>.*?(?:<\|python_end\|>|$)(?:<\|output_start\|>(.*?)<\|output_end\|>)?", re.S
)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")
ANIMALS, COLOURS = frozenset(words("animals")), frozenset(words("colours"))
_PLURALS = {"mice": "mouse", "geese": "goose", "wolves": "wolf", "oxen": "ox", "calves": "calf"}
# What may stand in front of a short answer without changing it.
_LEAD = re.compile(
    r"^(?:(?:i think|the answer is|the correct answer is|it is|it was|its|this is|that is|he is|she is|"
    r"they are|in|on|at|by|because|to)\s+)+"
)
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def visible(answer: str) -> str:
    """The answer without the calculator's blocks and what the calculator wrote."""
    return _BLOCK.sub(" ", answer)


def used_tool(answer: str) -> bool:
    """Whether the calculator answered in it."""
    return any(match.group(1) is not None for match in _BLOCK.finditer(answer))


def final_number(answer: str) -> str | None:
    """The last number that follows what the calculator wrote last; without one, what it wrote.

    An answer without the calculator: its last number, or its last number word.
    """
    outputs = [match for match in _BLOCK.finditer(answer) if match.group(1) is not None]
    text = answer[outputs[-1].end() :] if outputs else answer
    numbers = _NUMBER.findall(visible(text))
    if numbers:
        return str(numbers[-1]).rstrip(",").replace(",", "")
    if outputs:
        return str(outputs[-1].group(1)).strip()
    spelled = [word for word in re.findall(r"[a-z]+", visible(text).lower()) if word in WORDS]
    return str(WORDS.index(spelled[-1])) if spelled else None


def right(question: Question, answer: str) -> bool:
    """Whether `answer` is what `question` expects."""
    text = visible(answer)
    match question.rule:
        case "number":
            return final_number(answer) == question.expect
        case "capital":
            return _named(text, question.expect.split("|"))
        case "name":
            return re.search(r"\bFastpath\b", text) is not None
        case "animals":
            return _three(text, ANIMALS)
        case "colours":
            return _three(text, COLOURS)
        case "tuesday":
            return {day for day in DAYS if re.search(rf"(?i)\b{day}\b", text)} - {"Monday"} == {"Tuesday"}
        case "spelled":
            return _letters(text) == question.expect
        case "reversed":
            return question.expect in (_letters(text), *re.findall(r"[a-z]+", text.lower()))


def _named(text: str, accepted: Sequence[str]) -> bool:
    """An accepted city is named, and the capital of no other country."""

    def has(city: str) -> bool:
        return re.search(rf"(?i)\b{re.escape(city)}\b", text) is not None

    others = {row[1] for row in table("countries")} - set(accepted)
    own = [city for city in accepted if has(city)]
    return bool(own) and not any(has(city) and not any(city in name for name in accepted) for city in others)


def _three(text: str, known: frozenset[str]) -> bool:
    """Exactly three entries are listed, each with a member of `known`, and no member twice."""
    named: list[str] = []
    for sentence in re.split(r"[.!?:](?:\s|$)(?<!\d\.\s)", text):
        entries = [part for part in re.split(r",|;|\n|\band\b", sentence) if re.search(r"[a-zA-Z]", part)]
        found = [_member(part, known) for part in entries]
        if any(found):
            named += [member or "" for member in found]
    return len(named) == 3 and all(named) and len(set(named)) == 3


def _member(entry: str, known: frozenset[str]) -> str | None:
    """The last word of `entry` that is known, in the singular."""
    for word in reversed(re.findall(r"[a-z]+", entry.lower())):
        for form in (
            word,
            _PLURALS.get(word, ""),
            word.removesuffix("s"),
            word.removesuffix("es"),
            word[:-3] + "y",
        ):
            if form in known:
                return form
    return None


def _letters(text: str) -> str | None:
    """The last run of single letters parted by hyphens, else by commas, else by blanks; in lower case."""
    for gap in (r"\s*-\s*", r"\s*,\s*(?:and\s+)?", r"\s+"):
        runs = re.findall(rf"(?<![\w'-])[A-Za-z](?:{gap}[A-Za-z])+(?![\w'-])", text)
        if runs:
            return re.sub(r"\band\b|[^A-Za-z]", "", runs[-1]).lower()
    return None


# -- short answers -------------------------------------------------------------------------------------------


def plain(answer: str) -> str:
    """Lower-case words without articles and lead-ins, number words as digits: equal answers become equal."""
    words = " ".join(re.findall(r"[a-z0-9]+", visible(answer).lower().replace("'", "")))
    words = _ARTICLE.sub(" ", _LEAD.sub("", words))
    return " ".join(str(WORDS.index(word)) if word in WORDS else word for word in words.split())


def matches(answer: str, accepted: Iterable[str]) -> bool:
    """Whether the answer equals one of the accepted ones, as `plain` has them."""
    return plain(answer) in {plain(one) for one in accepted}


def overlap(answer: str, accepted: Iterable[str]) -> float:
    """Harmonic mean of precision and recall of the words (F1), for the accepted answer that is closest."""
    said = plain(answer).split()
    best = 0.0
    for one in accepted:
        wanted = plain(one).split()
        common = sum((Counter(said) & Counter(wanted)).values())
        if common:
            best = max(best, 2 * common / (len(said) + len(wanted)))
    return best


# -- repetition ----------------------------------------------------------------------------------------------


def repetition(answer: str, size: int = 4) -> float:
    """Share of the runs of `size` words that occurred before in the answer; 0 for a short one."""
    words = re.findall(r"\w+", answer.lower())
    runs = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
