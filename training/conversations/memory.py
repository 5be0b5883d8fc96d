"""What the user told earlier in the conversation is known later in it."""

from random import Random

from training.conversations.exchange import Exchange, Message, messages
from training.conversations.phrasing import article, as_typed, expand
from training.conversations.stories.cast import ANIMALS, BOYS, COLOURS, FOODS, GIRLS, PET_NAMES
from training.conversations.tables import table
from training.conversations.talk import invented_word, maker

_MORE_NAMES = next(row[1].split(" | ") for row in table("everyday") if row[0] == "names")


def told(rng: Random) -> list[Message]:
    """The user says something about themselves, and asks for it later."""
    name = rng.choice((*GIRLS, *BOYS, *_MORE_NAMES))
    if rng.random() < 0.4:  # names that were never seen must be copied letter by letter
        name = invented_word(rng).capitalize()
    pet, pet_name = rng.choice(ANIMALS[:24]), rng.choice(PET_NAMES)
    colour, food, age = rng.choice(COLOURS), rng.choice(FOODS), str(rng.randint(5, 60))
    subject = rng.choice(
        (
            (
                "[My name is|I am|I'm|You can call me|Hi, I am|Hello, my name is|Hey, I'm] {v}.",
                "[Nice to meet you|Hello|Hi], {v}! [How can I help you?|What can I do for you?|]",
                "[What is my name?|What's my name?|Do you remember my name?|Who am I?|"
                "Do you know my name?|Tell me my name.]",
                "Your name is {v}.",
                name,
            ),
            (
                "My favorite [color|colour] is {v}.",
                "{V} is a beautiful color!",
                "[What is my favorite color?|Which color do I like best?]",
                "Your favorite color is {v}.",
                colour,
            ),
            (
                f"I have {article(pet)} {pet} called {{v}}.",
                f"{{V}} is a nice name for {article(pet)} {pet}!",
                f"[What is my {pet} called?|What is the name of my {pet}?|What's my {pet}'s name?]",
                f"Your {pet} is called {{v}}.",
                pet_name,
            ),
            (
                "I am {v} years old.",
                "Thank you for telling me! [What do you like to do?|]",
                "[How old am I?|What is my age?]",
                "You are {v} years old.",
                age,
            ),
            (
                "My favorite food is {v}.",
                "{V}! That sounds good.",
                "[What is my favorite food?|What do I like to eat?]",
                "Your favorite food is {v}.",
                food,
            ),
        )
    )
    say, reply, ask, answer, value = subject
    slots = {"v": value}
    turns = [Exchange(expand(rng, say, slots), expand(rng, reply, slots).strip())]
    if rng.random() < 0.4:
        turns.append(maker(rng.choice(("world", "greetings")))(rng))
    turns.append(Exchange(as_typed(rng, expand(rng, ask)), expand(rng, answer, slots)))
    return messages(*turns)
