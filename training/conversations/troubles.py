"""Sorrows and joys over several turns, and troubles in a sentence with a question and advice.

The troubles are blocks of talk/troubles.txt, the questions are those of phrases/advice.txt. Every trouble is
asked about with every question, so that neither is known by heart.
"""

from random import Random

from training.conversations.exchange import Exchange, Message, messages
from training.conversations.phrases import headings, say
from training.conversations.phrasing import carelessly, expand
from training.conversations.talk import blocks


def trouble(rng: Random) -> Exchange:
    """One trouble, with a question in nine of ten cases."""
    troubles, answers = rng.choice(blocks("troubles"))
    told = expand(rng, rng.choice(troubles))
    roll = rng.random()
    if roll < 0.7:
        told = f"{told} {say(rng, 'advice', 'behind')}"
    elif roll < 0.9:
        told = say(rng, "advice", "around", {"t": told.rstrip(".")})
    return Exchange(carelessly(rng, told), expand(rng, rng.choice(answers)))


def opening_up(rng: Random) -> list[Message]:
    """Somebody says how he feels, is asked why, and tells it; half of the time thanks follow."""
    moods = [name.removesuffix(" because") for name in headings("feelings") if name.endswith(" because")]
    mood = rng.choice(moods)
    turns = [
        _said(rng, mood, f"{mood} asked"),
        _said(rng, f"{mood} because", f"{mood} answered"),
    ]
    if rng.random() < 0.5:
        turns.append(_said(rng, "thanks", "welcome"))
    return messages(*turns)


def _said(rng: Random, ask: str, answer: str) -> Exchange:
    return Exchange(carelessly(rng, say(rng, "feelings", ask)), say(rng, "feelings", answer))
