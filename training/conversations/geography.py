"""Capitals, continents, languages and neighbours of the countries of the world."""

from functools import cache
from random import Random

from training.conversations.exchange import Exchange
from training.conversations.phrases import say
from training.conversations.phrasing import as_typed, capitalise, joined
from training.conversations.tables import table

# Asked about most often, so shown most often; the first twelve most of all.
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
ALSO_CALLED = {
    "the United States": ("the USA", "America", "the US"),
    "the United Kingdom": ("the UK", "Britain"),
    "the Ivory Coast": ("Ivory Coast", "Cote d'Ivoire", "Côte d'Ivoire"),
    "the Democratic Republic of the Congo": (
        "the DR Congo", "DR Congo", "the DRC", "Congo-Kinshasa", "the Democratic Republic of Congo",
    ),
    "the Republic of the Congo": ("the Republic of Congo", "Congo-Brazzaville"),
    "the Czech Republic": ("Czechia",),
    "the Netherlands": ("Holland",),
    "the United Arab Emirates": ("the UAE", "the Emirates"),
    "the Gambia": ("Gambia",),
    "Bosnia and Herzegovina": ("Bosnia",),
    "Cape Verde": ("Cabo Verde",),
    "East Timor": ("Timor-Leste",),
    "Eswatini": ("Swaziland",),
    "Myanmar": ("Burma",),
    "North Macedonia": ("Macedonia",),
    "Kosovo": ("the Republic of Kosovo",),
    "Micronesia": ("the Federated States of Micronesia",),
    "Saint Kitts and Nevis": ("St. Kitts and Nevis",),
    "Saint Lucia": ("St. Lucia",),
    "Saint Vincent and the Grenadines": ("St. Vincent and the Grenadines",),
    "Sao Tome and Principe": ("São Tomé and Príncipe",),
    "Turkey": ("Türkiye",),
    "Vatican City": ("the Vatican",),
}  # fmt: skip
_PLURAL = frozenset(
    ("the Maldives", "the Bahamas", "the Philippines", "the Netherlands", "the United States")
)
Country = tuple[str, ...]


@cache
def _by_name() -> dict[str, Country]:
    return {row[0]: row for row in table("countries")}


def country(rng: Random) -> Country:
    """A row of the table: country, capital, continent, language."""
    roll = rng.random()
    if roll < 0.35:
        return _by_name()[rng.choice(LARGE[:12])]
    if roll < 0.65:
        return _by_name()[rng.choice(LARGE)]
    return rng.choice(table("countries"))


def capital_said(name: str, city: str) -> str:
    """A country's capital as a sentence; an abbreviation at its end needs no second full stop."""
    return f"The capital of {name} is {city}".rstrip(".") + "."


def _ask(rng: Random, heading: str, **slots: str) -> str:
    return as_typed(rng, capitalise(say(rng, "geography", heading, slots)))


def capital(rng: Random) -> Exchange:
    """The capital of a country."""
    name, city, *_ = country(rng)
    shown = rng.choice(ALSO_CALLED[name]) if name in ALSO_CALLED and rng.random() < 0.3 else name
    # "Capital of Philippines?" is asked as well, and answered with the article.
    typed = shown.removeprefix("the ") if rng.random() < 0.15 else shown
    return Exchange(_ask(rng, "capital", c=typed), capital_said(shown, city), city)


def capital_of(rng: Random) -> Exchange:
    """Which country a capital belongs to; whether a city is the capital; what a capital is."""
    name, city, part, _ = country(rng)
    if city not in name and "," not in city and rng.random() < 0.2:
        told = f"{city} is the capital of {name}. It is in {part}."
        return Exchange(_ask(rng, "fact city", t=city), told)
    roll = rng.random()
    if roll < 0.45:
        return Exchange(
            _ask(rng, "capital of", t=city), f"{city} is the capital of {name}.", capitalise(name)
        )
    if roll < 0.75:
        return Exchange(_ask(rng, "city in", t=city), f"{city} is in {name}.", capitalise(name))
    if rng.random() < 0.5:
        question = _ask(rng, "is capital", t=city, c=name)
        return Exchange(question, f"Yes, {city} is the capital of {name}.", "Yes")
    other = rng.choice([row for row in (_by_name()[n] for n in LARGE) if row[0] != name])
    question = _ask(rng, "is capital", t=other[1], c=name)
    return Exchange(
        question, f"No. {capital_said(name, city)} {other[1]} is the capital of {other[0]}.", "No"
    )


def continent(rng: Random) -> Exchange:
    """The continent of a country."""
    name, _, part, _ = country(rng)
    while name == part:  # Australia is both
        name, _, part, _ = country(rng)
    verb = "are" if name in _PLURAL else "is"
    if rng.random() < 0.75:
        return Exchange(_ask(rng, "continent", c=name), f"{capitalise(name)} {verb} in {part}.", part)
    if rng.random() < 0.5:
        return Exchange(_ask(rng, "is in", c=name, p=part), f"Yes, {name} {verb} in {part}.", "Yes")
    # Some countries lie on two continents: only what is far away is said to be wrong.
    far = ("South America", "North America") if "America" not in part else ("Europe", "Asia", "Africa")
    wrong = rng.choice(far)
    return Exchange(_ask(rng, "is in", c=name, p=wrong), f"No, {name} {verb} in {part}.", "No")


def language(rng: Random) -> Exchange:
    """What people speak in a country."""
    name, _, _, spoken = country(rng)
    return Exchange(_ask(rng, "language", c=name), f"People in {name} speak {spoken}.", spoken)


def neighbours(rng: Random) -> Exchange:
    """Which countries are next to another."""
    name, listed = rng.choice(table("neighbours"))
    near = listed.split(", ")
    roll = rng.random()
    if roll < 0.6 and len(near) > 1:
        chosen = rng.sample(near, min(3, len(near)))
        answer = f"{capitalise(joined(chosen))} border {name}."
        return Exchange(_ask(rng, "neighbours", c=name), answer, items=tuple(chosen))
    if roll < 0.8:
        other = rng.choice(near)
        question = _ask(rng, "is neighbour", c=name, d=other)
        return Exchange(question, f"Yes, {name} and {other} are neighbors.", "Yes")
    american = "America" in _by_name()[name][2]
    other = rng.choice(
        ("Japan", "Kenya", "Italy", "Australia") if american else ("Mexico", "Peru", "Cuba", "Chile")
    )
    question = _ask(rng, "is neighbour", c=name, d=other)
    return Exchange(question, f"No, {name} and {other} are far from each other.", "No")


def about(rng: Random) -> Exchange:
    """A few words on a country."""
    name, city, part, spoken = country(rng)
    verb, its = ("are", "Their") if name in _PLURAL else ("is", "Its")
    one = "a country" if name not in ("the Bahamas", "the Maldives", "the Philippines") else "islands"
    verb, its = ("is", "Its") if one == "a country" else (verb, its)
    told = f"{capitalise(name)} {verb} {one} in {part}. {its} capital is {city.rstrip('.')}."
    told += f" People there speak {spoken}."
    return Exchange(_ask(rng, "fact", c=name), told)
