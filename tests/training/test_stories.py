"""Stories follow their request, hold together, and are told in sound sentences."""

import re
from collections import Counter, defaultdict
from random import Random

import pytest

from training.conversations import story_talk, tales
from training.conversations.phrases import say
from training.conversations.phrasing import article, expand
from training.conversations.stories.cast import ANIMALS, BOYS, GIRLS, OBJECTS, WONDERS, WORKERS, heroes
from training.conversations.stories.plot import Plot, all_plots, plots_about
from training.conversations.stories.telling import Story, mentions, summarise, tell
from training.conversations.tales import near_prompt
from training.prompts import FIXED

SUBJECTS = ("object", "building", "fkind", "fear", "skill", "wish", "place")
ABOUT = [plot for subject in SUBJECTS for plot in plots_about(subject)]
ENDED = re.compile(r"""[.!?]["']?$""")
DOUBLED = re.compile(r"\b([a-z]+) \1\b")


def stories(count: int, seed: int) -> list[tuple[str, Story]]:
    rng = Random(seed)
    return [(exchange.question, story) for exchange, story in (tales.request(rng) for _ in range(count))]


def test_the_tables_fit_together() -> None:
    known = {*ANIMALS, *WONDERS, "girl", "boy"}
    assert set(heroes()) == known
    names = Counter(name for hero in heroes().values() for name, _ in hero.names)
    assert max(names.values()) == 1 and not set(names) & {*GIRLS, *BOYS}
    for kind, hero in heroes().items():
        assert kind in ("girl", "boy") or len(hero.names) >= 3, kind
        assert len(hero.homes) >= 2 and kind not in hero.friends, kind
        assert set(hero.friends) <= known | set(WORKERS), kind
    assert len(OBJECTS) == len(set(OBJECTS)) >= 200


def test_enough_plots_for_any_object() -> None:
    assert len(plots_about("object")) >= 12 and len(ABOUT) >= 20
    assert all(plots_about(subject) for subject in SUBJECTS)


@pytest.mark.parametrize("plot", ABOUT, ids=lambda plot: plot.theme)
def test_a_plot_names_hero_and_subject_at_once_and_to_the_end(plot: Plot) -> None:
    key = plot.subject
    for seed in range(60):
        rng = Random(seed)
        story = tell(rng, {"object": "qoph", "thing": "qoph"} if key == "object" else None, plot)
        slots, words = story.slots, story.text.split()
        assert 100 <= len(words) <= 260, (plot.theme, len(words))
        early, late = " ".join(words[:60]), " ".join(words[len(words) // 2 :])
        assert mentions(early, slots["name"]) and mentions(early, slots["kind"]), story.text
        assert mentions(early, slots[key]), story.text
        assert mentions(late, slots["friend"] if key == "fkind" else slots["name"]), story.text
        if key in ("object", "building"):
            assert mentions(late, slots[key]), story.text
        if key in ("object", "building", "fear", "skill", "wish"):
            assert any(mentions(text, slots[key]) for text in (summarise(rng, story), story.title)), (
                plot.theme
            )
        assert ENDED.search(expand(rng, plot.fate, slots)), plot.theme
        assert say(rng, "stories", f"fate {key}", slots)


def test_sound_sentences() -> None:
    for question, story in stories(4000, 21):
        text = story.text
        for found, word in re.findall(r"\b([Aa]n?) ([a-z]+)", f"{text} {question}"):
            assert article(word) == found.lower(), (found, word)
        for part in text.split("\n\n"):
            assert ENDED.search(part), part
            assert part[0].isupper() or part[0] == '"', part
            assert part.count('"') % 2 == 0, part
        assert not re.search(r"[][{}|]|  | [,.!?]|[.,]{2}(?!\.)", text.replace("...", "")), text
        assert not DOUBLED.search(text), text


def test_hero_and_friend() -> None:
    for _, story in stories(4000, 22):
        slots = story.slots
        assert mentions(story.text, slots["name"]) and mentions(story.text, slots["kind"])
        assert slots["name"] != slots["friend"] and slots["kind"] != slots["fkind"]
        for name, settled in heroes()[slots["kind"]].names:
            assert name != slots["name"] or settled in (None, slots["he"])


def test_the_kind_of_the_friend_is_said_when_the_name_comes_first() -> None:
    """A name alone is never the first that one reads of the friend, and mostly the kind stands before it."""
    kind_first = named = 0
    for _, story in stories(3000, 27):
        slots = story.slots
        found = re.search(rf"\b{slots['friend']}\b(?!'s)", story.text)
        if found is None:
            continue
        named += 1
        near = story.text[max(0, found.start() - 60) : found.end() + 40]
        assert slots["fkind"] in near, near
        kind_first += slots["fkind"] in story.text[max(0, found.start() - 60) : found.start()]
    assert named > 2500 and kind_first > 0.6 * named


def test_one_pronoun_for_one_hero() -> None:
    """Told of a he and of a she, a story differs in the hero's pronouns alone."""
    pairs = {("she", "he"), ("her", "him"), ("her", "his"), ("herself", "himself")}
    changed = 0
    for plot in all_plots():
        for seed in range(12):
            fixed = {"kind": "robot", "name": "Beep", "fkind": "bear", "friend": "Bruin", "trait": "kind"}
            hers = tell(Random(seed), {**fixed, "he": "she"}, plot).text
            his = tell(Random(seed), {**fixed, "he": "he"}, plot).text
            both = list(zip(re.findall(r"\w+", hers.lower()), re.findall(r"\w+", his.lower()), strict=True))
            different = {pair for pair in both if pair[0] != pair[1]}
            assert different <= pairs, (plot.theme, different - pairs)
            changed += bool(different)
    assert changed > 0.9 * 12 * len(all_plots())


@pytest.mark.parametrize("plot", ABOUT, ids=lambda plot: plot.theme)
def test_templates_leave_the_pronouns_of_hero_and_friend_open(plot: Plot) -> None:
    """Only somebody else, whose sex is told beside it, has a pronoun that is fixed."""
    others = re.compile(r"\b(woman|judge|mouse|goose|mother|man|baker|mailman)\b")
    for text in (*(wording for beat in plot.beats for wording in beat), plot.summary, plot.fate):
        fixed = re.search(r"\b(he|him|his|himself|she|her|herself)\b", re.sub(r"\{.*?\}", "", text), re.I)
        assert fixed is None or others.search(text), (fixed, text)


def test_the_words_of_a_request_are_all_named_early() -> None:
    rng = Random(23)
    checked = 0
    while checked < 1500:
        question, story = tales._with_words(rng)
        listed = re.findall(r'"([^"]+)"', question)
        if not listed:
            continue
        checked += 1
        early = " ".join(story.text.split()[:90])
        for word in listed:
            assert mentions(early, word), (word, question, story.text)


def test_what_a_request_is_about_is_named_early() -> None:
    rng = Random(24)
    for make in (tales._about_two, tales._about_place, tales._about_deed):
        for _ in range(700):
            question, story = make(rng)
            early = " ".join(story.text.split()[:75])
            who = re.search(r" about (?:an? )([a-z]+)", question)
            assert who is not None and mentions(story.text, who[1]), question
            assert mentions(early, story.slots["kind"]), (question, story.text)
            thing = re.search(r" and an? ([a-z -]+)\.$", question) if make is tales._about_two else None
            assert thing is None or mentions(early, thing[1].split()[-1]), (question, story.text)


def test_names_and_homes_follow_the_hero() -> None:
    """The likeliest name and home of a hero are its own, not those of another one."""
    names: dict[str, Counter[str]] = defaultdict(Counter)
    homes: dict[str, Counter[str]] = defaultdict(Counter)
    kinds = ("hedgehog", "penguin", "owl", "fox", "robot", "dragon", "snail", "princess", "girl", "boy")
    for kind in kinds:
        for seed in range(150):
            slots = tell(Random(f"{kind} {seed}"), {"kind": kind}).slots
            names[kind][slots["name"]] += 1
            homes[kind][slots["home"]] += 1
    for found in (names, homes):
        assert len({count.most_common(1)[0][0] for count in found.values()}) == len(kinds)


def test_no_request_is_near_a_prompt() -> None:
    wanted = [turn for prompt in FIXED for turn in prompt.turns if re.search("story|tale", turn)]
    assert len(wanted) >= 4
    for turn in wanted:
        assert near_prompt(turn) or len(turn.split()) < 9, turn
    rng = Random(25)
    for make in (tales.tale, tales.short_tale):
        for _ in range(2000):
            assert not near_prompt(make(rng).question)
    assert near_prompt("A story about a hedgehog and a very old lantern")
    assert not near_prompt("A story about a hedgehog and a drum")


def test_answers_to_later_turns_are_true_to_the_story() -> None:
    rng = Random(26)
    fates = 0
    for _ in range(1500):
        _, story = tales.request(rng)
        slots = story.slots
        assert slots["name"] in story_talk._hero(rng, story).answer
        assert slots["kind"] in story_talk._name(rng, story).answer
        ending = story_talk._other_end(rng, story).answer
        assert ENDED.search(ending) and mentions(ending, slots["name"])
        told = story_talk._fate(rng, story)
        if told is not None:
            fates += 1
            if story.plot.subject in ("object", "building"):
                assert mentions(told.question + told.answer, slots[story.plot.subject]), told
        short = story_talk._shorter(rng, story).answer
        assert mentions(short, slots["name"]) and mentions(short, slots["kind"])
        assert len(short.split()) < 0.65 * len(story.text.split())
    assert fates > 500


def test_every_plot_names_its_hero_at_the_beginning() -> None:
    for plot in all_plots():
        story = tell(Random(5), {"kind": "mole"}, plot, ["kind"])
        assert mentions(" ".join(story.text.split()[:60]), "mole"), plot.theme
