"""Capitals, continents and languages of the countries of the world."""

from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrasing import as_typed, capitalise
from training.conversations.tables import table

# Asked about most often, so shown most often.
LARGE = [
    "France",
    "Germany",
    "Japan",
    "China",
    "India",
    "Russia",
    "Brazil",
    "Canada",
    "Egypt",
    "the United States",
    "Italy",
    "Spain",
    "the United Kingdom",
    "Mexico",
    "Australia",
    "Argentina",
    "South Korea",
    "Turkey",
    "Indonesia",
    "Nigeria",
    "Poland",
    "Portugal",
    "Greece",
    "Sweden",
    "Norway",
    "Kenya",
    "Austria",
    "Switzerland",
    "the Netherlands",
    "Belgium",
    "Ireland",
    "Denmark",
    "Finland",
    "Peru",
    "Chile",
    "Thailand",
    "Vietnam",
    "Cuba",
    "Ukraine",
]


def _country(rng: Random) -> tuple[str, ...]:
    rows = table("countries")
    if rng.random() < 0.5:
        name = rng.choice(LARGE)
        return next(row for row in rows if row[0] == name)
    return rng.choice(rows)


def capital(rng: Random) -> Exchange:
    """The capital of a country."""
    country, city, *_ = _country(rng)
    if rng.random() < 0.06 and country.startswith("the United"):
        country = {"the United States": "the USA", "the United Kingdom": "the UK"}.get(country, country)
    ask = rng.choice(
        (
            "What is the capital of {}?",
            "What is the capital of {}?",
            "What's the capital of {}?",
            "Capital of {}?",
            "What is the capital city of {}?",
            "Which city is the capital of {}?",
            "Tell me the capital of {}.",
            "Name the capital of {}.",
            "Do you know the capital of {}?",
            "What is {}'s capital?",
            "Can you name the capital of {}?",
            "What city is {}'s capital?",
            "the capital of {}",
        )
    )
    answer = rng.choice(
        (f"The capital of {country} is {city}.",) * 3 + (f"{city} is the capital of {country}.",)
    )
    return Exchange(as_typed(rng, ask.format(country)), answer, city)


def capital_of(rng: Random) -> Exchange:
    """Which country a capital belongs to."""
    country, city, *_ = _country(rng)
    ask = rng.choice(
        (
            "Which country has the capital {}?",
            "{} is the capital of which country?",
            "What country is {} the capital of?",
            "{} is the capital of what country?",
            "In which country is {}?",
            "Where is {}?",
            "What country is {} in?",
        )
    )
    asked = ask.format(city)
    answer = f"{city} is the capital of {country}." if "capital" in asked else f"{city} is in {country}."
    return Exchange(as_typed(rng, asked), answer, capitalise(country))


def continent(rng: Random) -> Exchange:
    """The continent of a country."""
    country, _, part, _ = _country(rng)
    ask = rng.choice(
        (
            "On which continent is {}?",
            "Which continent is {} in?",
            "What continent is {} in?",
            "Where is {}?",
            "In which part of the world is {}?",
            "Where in the world is {}?",
        )
    )
    verb = "are" if country in ("the Maldives", "the Bahamas", "the Philippines") else "is"
    return Exchange(as_typed(rng, ask.format(country)), f"{capitalise(country)} {verb} in {part}.", part)


def language(rng: Random) -> Exchange:
    """What people speak in a country."""
    country, _, _, spoken = _country(rng)
    ask = rng.choice(("What language do people speak in {}?", "Which language is spoken in {}?",
                      "What do they speak in {}?", "What is the language of {}?"))  # fmt: skip
    return Exchange(as_typed(rng, ask.format(country)), f"People in {country} speak {spoken}.", spoken)
