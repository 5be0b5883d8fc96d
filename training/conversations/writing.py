"""Small writing tasks: definitions, sentences about a thing, dialogues, poems, rhymes."""

from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrases import say
from training.conversations.phrasing import article, as_typed, capitalise, expand
from training.conversations.stories.cast import ANIMALS, COLOURS, FOODS, OBJECTS, PLACES, WONDERS
from training.conversations.tables import table

_DEFINE = (
    "What is {x}?",
    "What's {x}?",
    "[Explain|Tell me|Can you tell me|Please explain|Can you explain|Do you know] what {x} is.",
    "Describe {x}.",
    "Tell me about {x}.",
    "Define {x}.",
    "What do you know about {x}?",
    "[Explain|Explain to me] {x}.",
    "What does {bare} mean?",
    "Explain {x} in simple words.",
    "What is {x}? Explain it to a child.",
    "{bare}?",
)
# Of things that have a plural by the rule.
_DEFINE_MANY = (
    "Tell me [about|something about|a little about] {many}.",
    "What are {many}?",
    "What do you know about {many}?",
    "[Can|Could] you tell me [about|something about] {many}?",
    "I want to know something about {many}.",
)
_ODD = frozenset(("mouse", "goose", "sheep", "deer", "child", "man", "woman", "tooth", "foot", "ox"))


def definition(rng: Random) -> Exchange:
    """What something is, in one sentence."""
    thing, told = rng.choice(table("definitions"))
    bare = thing.split(" ", 1)[1] if thing.startswith(("a ", "an ", "the ")) else thing
    verb = "are" if thing == "the lungs" else "is"
    counted = thing != bare and not thing.startswith("the ")
    regular = counted and bare.isalpha() and not bare.endswith(("s", "x", "y", "ch", "sh", "f", "fe", "o"))
    forms = _DEFINE_MANY if regular and bare not in _ODD and rng.random() < 0.3 else _DEFINE
    ask = expand(rng, rng.choice(forms), {"x": thing, "bare": bare, "many": f"{bare}s"})
    if ask.startswith(("Do", "Can")):
        ask = ask.rstrip(".") + "?"
    return Exchange(as_typed(rng, capitalise(ask)), f"{capitalise(thing)} {verb} {told}.")


def sentence(rng: Random) -> Exchange:
    """A sentence with a given word."""
    animal, thing, colour = rng.choice(ANIMALS), rng.choice(OBJECTS), rng.choice(COLOURS)
    word = rng.choice((animal, thing, colour))
    verb = expand(rng, "[found|saw|wanted|carried|liked|looked at|took]")
    if word == colour:
        text = f"The {animal} {verb} a {colour} {thing}.".replace("a orange", "an orange")
    elif word == animal:
        text = f"The {animal} {verb} {article(thing)} {thing}."
    else:
        text = f"The {animal} {verb} the {thing}."
    ask = rng.choice(
        (
            f'Write a sentence with the word "{word}".',
            f"Make a sentence with {word}.",
            f'Use the word "{word}" in a sentence.',
            f"Write one sentence about {article(word)} {word}."
            if word != colour
            else f'Use "{word}" in a sentence.',
            f"Give me a sentence with the word {word}.",
        )
    )
    return Exchange(as_typed(rng, ask), text)


def poem(rng: Random) -> Exchange:
    """Two or four rhymed lines on a subject."""
    subject, *couplets = rng.choice(table("poems"))
    ask = expand(
        rng,
        "[Write|Tell me|Make|Can you write|Please write] a [short |little |]poem about {s}.",
        {"s": subject},
    )
    return Exchange(as_typed(rng, ask), "\n".join(couplets).replace(" / ", "\n"))


def script(rng: Random) -> Exchange:
    """A few lines that two characters say to each other."""
    first, second = rng.sample((*ANIMALS, *WONDERS), 2)
    slots = {
        "a": first, "b": second, "place": rng.choice(PLACES), "object": rng.choice(OBJECTS),
        "food": rng.choice(FOODS),
    }  # fmt: skip
    told = say(rng, "scripts", "told", slots).replace(" / ", "\n")
    return Exchange(as_typed(rng, say(rng, "scripts", "ask", slots)), told)
