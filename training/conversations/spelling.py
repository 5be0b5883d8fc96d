"""Spelling, counting letters, first and last letters, changing case."""

from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrasing import as_typed, capitalise
from training.conversations.stories.cast import ANIMALS, COLOURS, GIRLS, OBJECTS
from training.conversations.tables import table

MORE = [
    "bread",
    "water",
    "milk",
    "school",
    "house",
    "garden",
    "window",
    "winter",
    "summer",
    "spring",
    "apple",
    "orange",
    "banana",
    "lemon",
    "friend",
    "happy",
    "little",
    "table",
    "chair",
    "kitchen",
    "river",
    "mountain",
    "forest",
    "ocean",
    "island",
    "bridge",
    "street",
    "city",
    "country",
    "letter",
    "number",
    "morning",
    "evening",
    "yellow",
    "purple",
    "green",
    "doctor",
    "teacher",
    "farmer",
    "baker",
    "music",
    "piano",
    "guitar",
    "paper",
    "pencil",
    "train",
    "plane",
    "bicycle",
    "rain",
    "snow",
    "sun",
    "moon",
    "star",
    "cloud",
    "wind",
    "fire",
    "stone",
    "sand",
    "flower",
    "tree",
    "leaf",
    "root",
    "bird",
    "fish",
    "horse",
    "sheep",
    "cheese",
    "sugar",
    "salt",
    "pepper",
]


def words() -> tuple[str, ...]:
    """Words that spelling tasks are made of."""
    single = [word for word in (*ANIMALS, *OBJECTS, *COLOURS, *MORE) if " " not in word]
    return tuple(dict.fromkeys(single + [row[0] for row in table("opposites")]))


def spell(rng: Random) -> Exchange:
    """A word letter by letter, and simple questions about its letters."""
    word = rng.choice(words()) if rng.random() < 0.9 else rng.choice(GIRLS)
    said = rng.choice((word, f'"{word}"', f'"{word}"'))
    kind = rng.random()
    if kind < 0.45:
        ask = rng.choice(
            (
                "How do you spell {}?",
                "Spell {}.",
                "Spell the word {}.",
                "Can you spell {}?",
                "Please spell {} for me.",
                "How is {} spelled?",
                "What is the spelling of {}?",
            )
        )
        return Exchange(
            as_typed(rng, ask.format(said)),
            f"{capitalise(word)} is spelled {'-'.join(word)}.",
            "-".join(word),
        )
    if kind < 0.65:
        ask = rng.choice(("How many letters are in {}?", "How many letters does {} have?",
                          "Count the letters in {}."))  # fmt: skip
        return Exchange(
            as_typed(rng, ask.format(said)),
            f'{"-".join(word)}: the word "{word}" has {len(word)} letters.',
            str(len(word)),
        )
    if kind < 0.85:
        which, letter = rng.choice((("first", word[0]), ("last", word[-1])))
        ask = rng.choice(
            ("What is the {} letter of {}?", "Which letter is the {} in {}?", "Tell me the {} letter of {}.")
        )
        return Exchange(as_typed(rng, ask.format(which, said)),
                        f'The {which} letter of "{word}" is {letter.upper()}.', letter.upper())  # fmt: skip
    if kind < 0.93:
        ask = rng.choice(("Write {} in capital letters.", "Write {} in upper case.", "Put {} in capitals."))
        return Exchange(as_typed(rng, ask.format(said)), word.upper(), word.upper())
    ask = rng.choice(("Write {} backwards.", "Reverse the word {}.", "Spell {} backwards."))
    return Exchange(as_typed(rng, ask.format(said)), f"{'-'.join(word[::-1])}: {word[::-1]}.", word[::-1])


def repeat(rng: Random) -> Exchange:
    """Say something back."""
    words_ = rng.sample(words(), rng.randint(1, 4))
    text = " ".join(words_)
    ask = rng.choice(("Repeat: {}", 'Say "{}".', "Repeat after me: {}", 'Please repeat "{}".', 'Write "{}".'))
    return Exchange(ask.format(text), capitalise(text) + ".")
