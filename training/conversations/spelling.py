"""Spelling, counting letters (one letter in a word with the calculator tool), case, rhymes, the alphabet."""

import re
from functools import cache
from random import Random

from training.conversations.dates import ORDINALS
from training.conversations.exchange import Exchange, Message, messages, tool_call
from training.conversations.phrases import say
from training.conversations.phrasing import as_typed, capitalise, carelessly, joined
from training.conversations.stories import cast
from training.conversations.stories.plot import FOLDER as STORIES
from training.conversations.tables import FOLDER as TABLES
from training.conversations.tables import table
from training.conversations.talk import unheard_word

_WORD = re.compile(r"(?<![\w'{-])[a-z]{3,11}(?![\w'}-])")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@cache
def words() -> tuple[str, ...]:
    """The most frequent words of the texts in the training data (tables/words.txt) and all words in small
    letters that the tables and the plots are written with: some ten thousand.

    A model reads pieces of words, so it must have seen the letters of every piece.
    """
    paths = [TABLES / "words.txt", *sorted(TABLES.glob("*.tsv")), *sorted(STORIES.glob("*.txt"))]
    return tuple(sorted({word for path in paths for word in _WORD.findall(path.read_text("utf-8"))}))


@cache
def _favourites() -> tuple[str, ...]:
    """Everyday nouns; half of all questions are about them."""
    named = [word for row in table("lists") for word in row[2].split(", ") if re.fullmatch("[a-z]{3,}", word)]
    return tuple(sorted({*named, *(w for w in (*cast.ANIMALS, *cast.OBJECTS, *cast.COLOURS) if w.isalpha())}))


@cache
def _common() -> tuple[str, ...]:
    """Words of 4 to 11 letters that are one token each (tables/common.txt, of the tokenizer that ships).

    Nothing in such a token shows its letters: they have to be learned word by word.
    """
    return tuple((TABLES / "common.txt").read_text("utf-8").split())


@cache
def _doubled() -> tuple[str, ...]:
    """Words with a letter twice in a row, where letters get lost most easily."""
    return tuple(word for word in words() if re.search(r"(.)\1", word))


@cache
def _names() -> tuple[str, ...]:
    return tuple(name for row in table("names") for name in row[1].split(" | ") if name.isalpha())


def _word(rng: Random) -> str:
    """A word to spell or to count in. A seventh are invented: those can only be copied, not recalled."""
    roll = rng.random()
    if roll < 0.05:
        return rng.choice(_names())
    if roll < 0.17:
        return unheard_word(rng)
    if roll < 0.27:
        return rng.choice(_doubled())
    if roll < 0.5:
        return rng.choice(_favourites())
    return rng.choice(_common() if roll < 0.8 else words())


def _quoted(rng: Random, word: str) -> str:
    return rng.choice((word, word, word, f'"{word}"', f'"{word}"', f"'{word}'"))


def _ask(rng: Random, heading: str, **slots: str) -> str:
    return as_typed(rng, capitalise(say(rng, "spelling", heading, slots)))


def spell(rng: Random) -> Exchange:
    """A word letter by letter, forwards or backwards."""
    word = _word(rng)
    said, letters = _quoted(rng, word), "-".join(word.lower())
    # The word as it was asked, not capitalised: the same token can be copied. Between single quotes the
    # tokenizer would cut it.
    named = f"The {'name' if word[0].isupper() else 'word'} {said.replace(chr(39), chr(34))}"
    if rng.random() < 0.4:
        back = letters[::-1]
        # Forwards first: then every letter that is said is one that stands there already.
        answer = f"{named} is spelled {letters}. Backwards it is {back}: {word.lower()[::-1]}."
        return Exchange(_ask(rng, "back", w=said), answer, word.lower()[::-1])
    return Exchange(_ask(rng, "spell", w=said), f"{named} is spelled {letters}.", letters)


def dictation(rng: Random) -> list[Message]:
    """Several words, one after another or at once: many letters for few other tokens."""
    chosen = list(dict.fromkeys(_word(rng).lower() for _ in range(rng.choice((2, 3, 3, 4, 4, 5, 6)))))
    spelled = ["-".join(word) for word in chosen]
    if rng.random() < 0.35:
        asked = [_ask(rng, "spell", w=chosen[0])]
        asked += [carelessly(rng, say(rng, "spelling", "spell next", {"w": word})) for word in chosen[1:]]
        told = [
            f"The word {word} is spelled {letters}." for word, letters in zip(chosen, spelled, strict=True)
        ]
        return messages(*map(Exchange, asked, told))
    question = _ask(rng, "spell several", l=joined(chosen) if rng.random() < 0.4 else ", ".join(chosen))
    if len(chosen) < 4 and rng.random() < 0.4:
        told = [f"{word} is spelled {letters}" for word, letters in zip(chosen, spelled, strict=True)]
        return messages(Exchange(question, f"The word {joined(told)}."))
    # A dash and a blank in front: at the start of a line an everyday word would be cut into pieces.
    lines = [f"- {word}: {letters}" for word, letters in zip(chosen, spelled, strict=True)]
    return messages(Exchange(question, "\n".join(lines)))


def _as_asked(question: str, word: str) -> str:
    """The word as the question has it, for an answer to copy: without quotes or in double ones.

    In single quotes the tokenizer would cut 'strawberry' behind its s, as in it's.
    """
    return word if re.search(rf" {word}\b", question) else f'"{word}"'


def _counted(asked: str, letter: str) -> str:
    """The tool's call. A word that was asked without quotes keeps the blank in front of it.

    Behind a blank an everyday word is one token, behind a quotation mark it is several: without the blank the
    word could not be copied from the question.
    """
    text = asked if asked.startswith('"') else f'" {asked}"'
    return tool_call(f'{text}.count("{letter}")')


def count_letters(rng: Random) -> Exchange:
    """How many letters a word has, or how often one of them; its vowels."""
    word = _word(rng).lower()
    said, letters, kind = _quoted(rng, word), "-".join(word), rng.random()
    if kind < 0.3:
        question = _ask(rng, "count", w=said)
        answer = f"The word {_as_asked(question, word)} is spelled {letters}. It has {len(word)} letters."
        return Exchange(question, answer, str(len(word)))
    if kind < 0.85:
        letter = rng.choice(word) if rng.random() < 0.85 else rng.choice(_ALPHABET)
        shown = letter if rng.random() < 0.7 else letter.upper()
        question = _ask(rng, "letter count", w=said, l=shown)
        asked = _as_asked(question, word)
        count, call = word.count(letter), _counted(asked, letter)
        there = {0: f"There is no {letter}", 1: f"There is 1 {letter}"}.get(
            count, f"There are {count} {letter}'s"
        )
        named = asked if asked.startswith('"') else f"the word {asked}"
        return Exchange(question, f"{call}{there} in {named}.", call + str(count))
    vowels = [letter for letter in word if letter in "aeiou"]
    question = _ask(rng, "vowels", w=said)
    asked = _as_asked(question, word)
    if not vowels:
        return Exchange(question, f"There are no vowels in the word {asked}.")
    noun = "vowel" if len(vowels) == 1 else "vowels"
    told = f"It has {len(vowels)} {noun}, {joined(vowels)}."
    return Exchange(question, f"The word {asked} is spelled {letters}. {told}")


def letter(rng: Random) -> Exchange:
    """The first, last or some other letter; whether a letter is in the word; the alphabet."""
    word = _word(rng).lower()
    said, letters, kind = _quoted(rng, word), "-".join(word), rng.random()
    if kind < 0.4:
        at = rng.choice((0, 0, -1, -1, rng.randrange(min(len(word), 6))))
        name = "last" if at < 0 else ORDINALS[at]
        heading = "nth" if at > 0 or rng.random() < 0.6 else "ends" if at < 0 else "starts"
        shown = word[at].upper()
        question = _ask(rng, heading, n=name, w=said)
        answer = f"The word {_as_asked(question, word)} is spelled {letters}. The {name} letter is {shown}."
        return Exchange(question, answer, shown)
    if kind < 0.65:
        wanted = rng.choice(word) if rng.random() < 0.5 else rng.choice(_ALPHABET)
        question = _ask(rng, "contains", w=said, l=wanted if rng.random() < 0.6 else wanted.upper())
        if wanted in word:
            return Exchange(question, f'Yes, there is the letter {wanted} in "{word}": {letters}.', "Yes")
        return Exchange(question, f'No, there is no {wanted} in "{word}": {letters}.', "No")
    if kind < 0.85:
        end = rng.random() < 0.3
        wanted = word[-1] if end else word[0]
        fitting = [w for w in _favourites() if (w[-1] if end else w[0]) == wanted] or [word]
        chosen, verb = rng.choice(fitting), "ends" if end else "starts"
        question = _ask(rng, "ending word" if end else "starting word", L=wanted.upper())
        return Exchange(question, f"{capitalise(chosen)} {verb} with {wanted.upper()}.", capitalise(chosen))
    after = rng.random() < 0.6
    at = rng.randrange(25)
    a, b = (_ALPHABET[at], _ALPHABET[at + 1]) if after else (_ALPHABET[at + 1], _ALPHABET[at])
    question = _ask(rng, "alphabet" if after else "alphabet before", L=a.upper())
    side = "after" if after else "before"
    return Exchange(question, f"The letter {side} {a.upper()} is {b.upper()}.", b.upper())


def change(rng: Random) -> Exchange:
    """Capital and small letters; plural and singular; words in order of the alphabet or by length."""
    word, kind = _word(rng), rng.random()
    if kind < 0.25:
        upper = rng.random() < 0.7
        shown = word.upper() if upper else word.lower()
        said = _quoted(rng, word if upper else word.upper())
        return Exchange(say(rng, "spelling", "upper" if upper else "lower", {"w": said}), shown, shown)
    if kind < 0.55:
        one, many = rng.choice(table(rng.choice(("things", "plurals"))))
        if rng.random() < 0.75:
            return Exchange(
                _ask(rng, "plural", w=one), f'The plural of "{one}" is "{many}".', capitalise(many)
            )
        return Exchange(
            _ask(rng, "singular", v=many), f'The singular of "{many}" is "{one}".', capitalise(one)
        )
    if kind < 0.8:
        chosen = rng.sample(_favourites(), rng.choice((3, 3, 4, 5)))
        ordered = tuple(sorted(chosen))
        return Exchange(_ask(rng, "sort", l=", ".join(chosen)), ", ".join(ordered) + ".", items=ordered)
    a, b = rng.sample(_favourites(), 2)
    while len(a) == len(b):
        a, b = rng.sample(_favourites(), 2)
    word_, chosen_ = rng.choice((("longer", max(a, b, key=len)), ("shorter", min(a, b, key=len))))
    other = b if chosen_ == a else a
    question = _ask(rng, word_, w=f'"{a}"', v=f'"{b}"')
    told = (
        f'"{capitalise(chosen_)}" is {word_}: it has {len(chosen_)} letters, and "{other}" has {len(other)}.'
    )
    return Exchange(question, told, capitalise(chosen_))


def rhyme(rng: Random) -> Exchange:
    """A word that rhymes with another, several, or whether two rhyme."""
    groups = table("rhymes")
    group = rng.choice(groups)
    word, *others = rng.sample(group, min(len(group), 4))
    said, kind = _quoted(rng, word), rng.random()
    if kind < 0.6:
        answer = f"{capitalise(others[0])} rhymes with {word}."
        return Exchange(_ask(rng, "rhyme", w=said), answer, capitalise(others[0]))
    if kind < 0.75 and len(others) > 1:
        answer = f"{capitalise(joined(others[:2]))} rhyme with {word}."
        return Exchange(_ask(rng, "rhymes several", w=said), answer, items=tuple(others[:2]))
    if rng.random() < 0.5:
        question = _ask(rng, "rhymes", w=said, v=_quoted(rng, others[0]))
        return Exchange(question, f"Yes, {word} and {others[0]} rhyme.", "Yes")
    foreign = rng.choice(rng.choice([other for other in groups if other != group]))
    question = _ask(rng, "rhymes", w=said, v=_quoted(rng, foreign))
    return Exchange(question, f"No, {word} and {foreign} do not rhyme.", "No")


def repeat(rng: Random) -> Exchange:
    """Say something back."""
    text = " ".join(rng.sample(words(), rng.randint(1, 4)))
    return Exchange(say(rng, "spelling", "repeat", {"w": text}), capitalise(text) + ".")
