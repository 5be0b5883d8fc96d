"""Conversations to files and back: the page's own form, and the exports of other pages."""

import json
import zlib
from base64 import b64encode
from pathlib import Path
from random import Random
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.static.page_clock import work_of

pytestmark = pytest.mark.browser

DATA = Path(__file__).parent / "data"
READ = """async (text) => {
  const { fromText } = await import('/static/keep/formats.js');
  try {
    return fromText(text);
  } catch (error) {
    return { thrown: error.constructor.name, message: error.message };
  }
}"""
FIGURES = ("seed", "ttft", "rate", "itl50", "itl95", "promptTokens", "cachedTokens", "completionTokens")
Message = dict[str, Any]


def read(page: Page, name: str) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(READ, (DATA / name).read_text())
    return found


def shape(records: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Each message with its place among the messages instead of its id."""
    messages = records["messages"]
    places = {message["id"]: at for at, message in enumerate(messages)} | {None: None}
    assert len(places) == len(messages) + 1
    assert records["head"]["leaf"] in places
    return [(message["role"], message["content"], places[message["parent"]]) for message in messages]


def leaf(records: dict[str, Any]) -> str:
    return next(str(m["content"]) for m in records["messages"] if m["id"] == records["head"]["leaf"])


def random_words(rng: Random) -> str:
    letters = 'ab ß\n"\\`#*<>&é空🌤️\u2028\u0000'
    return "".join(rng.choices(letters, k=rng.randrange(30)))


def random_facts(rng: Random) -> dict[str, Any]:
    figures = {name: rng.choice([None, rng.randrange(1000), rng.random()]) for name in FIGURES}
    request = {"temperature": rng.random(), "stop": ["a", "b"], "nested": {"a": [1, {"b": None}]}}
    return {
        "model": "m",
        "request": request,
        "started": rng.randrange(2**40),
        "finish": rng.choice([None, "stop"]),
        **figures,
    }


def random_records(rng: Random) -> dict[str, Any]:
    messages: list[Message] = []
    for number in range(rng.randrange(1, 12)):
        parent = rng.choice([None, *(message["id"] for message in messages)])
        message: Message = {
            "id": f"{rng.randrange(2**60):x}-{number}",
            "parent": parent,
            "role": rng.choice(["user", "assistant"]),
            "content": random_words(rng),
            "state": rng.choice(["done", "stopped", "failed"]),
            "created": rng.randrange(2**40, 2**41),
        }
        if rng.random() < 0.3:
            message["files"] = [
                {"name": random_words(rng), "text": random_words(rng), "tokens": rng.choice([None, 3])}
            ]
        if rng.random() < 0.5:
            message["facts"] = random_facts(rng)
            message["earlier"] = [random_facts(rng)]
        if rng.random() < 0.2:
            token = {"text": random_words(rng), "logprob": -rng.random()}
            message["scores"] = [token | {"alternatives": [token, token]}]
        messages.append(message)
    head = {
        "id": f"{rng.randrange(2**60):x}",
        "title": random_words(rng) + ".",
        "named": rng.random() < 0.5,
        "pinned": rng.random() < 0.5,
        "created": rng.randrange(2**40, 2**41),
        "updated": rng.randrange(2**40, 2**41),
        "leaf": rng.choice(messages)["id"],
        "system": random_words(rng),
        "settings": rng.choice([{}, {"temperature": 0.5, "stop": ["x"]}]),
        "later": {"kept": True},
    }
    return {"head": head, "messages": messages}


def test_the_own_form_loses_nothing(modules: Page) -> None:
    rng = Random(7)
    conversations = [random_records(rng) for _ in range(60)]
    found, header = modules.evaluate(
        """async (conversations) => {
          const { fromText, toJson } = await import('/static/keep/formats.js');
          const text = toJson(conversations);
          const { conversations: _, ...header } = JSON.parse(text);
          return [fromText(text), header];
        }""",
        conversations,
    )
    assert found == {"conversations": conversations, "skipped": []}
    assert (header["format"], header["version"]) == ("fastpath-conversations", 1)
    assert header["exported"].endswith("Z")


def test_llama_tree(modules: Page) -> None:
    found = read(modules, "llama.json")
    (records,) = found["conversations"]
    assert records["head"]["title"] == "Tides"
    assert records["head"]["system"] == "Be brief."
    assert records["head"]["updated"] == 1762000300000
    assert shape(records) == [
        ("user", "Why are there tides?", None),
        ("assistant", "The moon.", 0),
        ("assistant", "", 0),
        ("assistant", "Moon and sun.", 2),
    ]
    assert leaf(records) == "Moon and sun."
    question, answer = records["messages"][:2]
    assert question["files"] == [{"name": "notes.txt", "text": "moon", "tokens": None}]
    facts = answer["facts"]
    assert (facts["model"], facts["ttft"], facts["rate"]) == ("tiny.gguf", 250.5, 25)
    assert (facts["promptTokens"], facts["cachedTokens"], facts["completionTokens"]) == (14, 4, 50)
    assert {skipped["what"] for skipped in found["skipped"]} == {"Tides"}
    why = " ".join(skipped["why"] for skipped in found["skipped"])
    assert "1 part that is not text" in why
    assert "thoughts before 1 answer" in why
    assert "1 message by neither you nor the model" in why


def test_llama_lines(modules: Page) -> None:
    found = read(modules, "llama.jsonl")
    first, second = found["conversations"]
    assert found["skipped"] == []
    assert (first["head"]["title"], first["head"]["pinned"]) == ("First", True)
    assert shape(first) == [("user", "Hello?", None), ("assistant", "Hi.", 0)]
    assert (second["head"]["title"], second["head"]["named"]) == ("Second conversation", False)


def test_open_webui(modules: Page) -> None:
    found = read(modules, "open_webui.json")
    (records,) = found["conversations"]
    head = records["head"]
    assert (head["title"], head["system"], head["pinned"]) == ("Sourdough", "You bake.", True)
    assert (head["created"], head["updated"]) == (1762000000000, 1762000010000)
    assert shape(records) == [
        ("user", "How long?", None),
        ("assistant", "Twelve", 0),
        ("assistant", "A day.", 0),
    ]
    assert leaf(records) == "A day."
    question, stopped, answer = records["messages"]
    assert question["files"] == [{"name": "recipe.md", "text": "# Bread", "tokens": None}]
    assert (stopped["state"], answer["state"], answer["created"]) == ("stopped", "done", 1762000009000)
    assert (answer["facts"]["model"], answer["facts"]["rate"]) == ("tiny:latest", 10)
    assert [skipped["why"] for skipped in found["skipped"]] == ["1 part that is not text was left out"]


def test_sharegpt_lines(modules: Page) -> None:
    found = read(modules, "sharegpt.jsonl")
    first, second = found["conversations"]
    assert first["head"]["system"] == "Be kind."
    assert shape(first) == [("user", "One?", None), ("assistant", "Two.", 0), ("user", "Three?", 1)]
    assert shape(second) == [("user", "Look", None), ("assistant", "I see.", 0)]
    assert found["skipped"] == [
        {"what": "Line 2", "why": "is not JSON"},
        {"what": "One?", "why": "1 message by neither you nor the model was left out"},
        {"what": "Look", "why": "1 part that is not text was left out"},
        {"what": "Conversation 3", "why": "is in no form that this page can read"},
    ]
    whole = modules.evaluate(
        READ, json.dumps([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}])
    )
    assert shape(whole["conversations"][0]) == [("user", "a", None), ("assistant", "b", 0)]


def test_damage_is_mended_and_told(modules: Page) -> None:
    """Circles, parents that are missing, ids that are there twice, values of any kind: the rest is read."""
    user, answer = {"role": "user"}, {"role": "assistant"}
    messages = [
        {**user, "id": "a", "parent": "b", "content": "one"},
        {**answer, "id": "b", "parent": "a", "content": "two"},
        {**user, "id": "c", "parent": "c", "content": ["three", {"text": "3"}, 7]},
        {**user, "id": "d", "parent": "gone", "content": {"x": 1}},
        {
            **answer,
            "id": "d",
            "parent": "b",
            "content": None,
            "created": "2025-01-01T00:00:00Z",
            "state": "streaming",
        },
        {
            **answer,
            "id": 5,
            "parent": "d",
            "content": 12,
            "created": -1,
            "facts": "?",
            "scores": [1],
            "files": [3],
        },
        {"role": "narrator", "id": "n", "parent": "b", "content": "x"},
        {"role": {"a": 1}, "id": "o", "parent": "n", "content": "y"},
        {**user, "id": "__proto__", "parent": "o", "content": "last"},
        None,
        "text",
        [],
    ]
    head = {"id": 5, "title": None, "updated": "x", "leaf": ["a"], "settings": [1], "pinned": "yes"}
    own = {"format": "fastpath-conversations", "version": 1}
    text = json.dumps(own | {"conversations": [3, {"head": head, "messages": messages}, None]})
    found = modules.evaluate(READ, text)
    (records,) = found["conversations"]
    assert shape(records) == [
        ("user", "one", None),
        ("assistant", "two", 0),
        ("user", "three\n\n3", None),
        ("user", "", None),
        ("assistant", "", 1),
        ("assistant", "12", 3),
        ("user", "last", 1),
    ]
    assert records["head"]["title"] == "one"
    assert (records["head"]["settings"], records["head"]["pinned"]) == ({}, False)
    assert records["messages"][4]["state"] == "stopped"
    assert records["messages"][4]["created"] == 1735689600000
    assert {"files", "facts", "scores"}.isdisjoint(records["messages"][5])
    told = {skipped["why"] for skipped in found["skipped"]}
    assert told == {
        "is in no form that this page can read",
        "3 entries are not messages and were left out",
        "1 message had another one's id and got a new one",
        "1 message follows one that is missing, and was put at the start",
        "messages followed each other in 2 circles, which were cut",
        "2 messages by neither you nor the model were left out",
        "2 parts that are not text were left out",
    }


BROKEN = [
    ("", "The file is empty."),
    (" \n ", "The file is empty."),
    ("hello", "neither JSON"),
    ('{"format": "fastpath-conversations", "version": 2, "conversations": []}', "newer version"),
    ('{"format": "fastpath-conversations", "version": 1}', "no list of conversations"),
    ('{"conv": {}, "messages": [', "neither JSON"),
    ("[" * 200_000, "neither JSON"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_export_is_refused_in_plain_words(modules: Page, text: str, message: str) -> None:
    found = modules.evaluate(READ, text)
    assert found["thrown"] == "NotReadable"
    assert message in found["message"]


def test_anything_at_all_is_read_without_harm(modules: Page) -> None:
    """Exports with values exchanged at random: nothing throws, and what is read is whole."""
    rng = Random(11)
    sources = [json.loads((DATA / name).read_text()) for name in ("llama.json", "open_webui.json")]
    lines = (DATA / "llama.jsonl").read_text().splitlines()
    sources.append([json.loads(line) for line in lines])
    sources.append([random_records(rng), random_records(rng)])
    odd = [None, True, -1, 1e300, "", "root", "m1", "q1", [], {}, [[]], {"role": "user"}, [None], "\ud800"]

    def spoil(value: Any) -> Any:
        if rng.random() < 0.06:
            return rng.choice(odd)
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        return [spoil(item) for item in value] if isinstance(value, list) else value

    texts = [json.dumps(spoil(rng.choice(sources))) for _ in range(600)]
    kinds = modules.evaluate(
        """async (texts) => {
          const { fromText, toJson, toMarkdown } = await import('/static/keep/formats.js');
          const { Conversation } = await import('/static/core/conversation.js');
          const counts = { read: 0, problems: [] };
          for (const text of texts) {
            try {
              const { conversations } = fromText(text);
              for (const records of conversations) {
                const ids = new Set(records.messages.map(({ id }) => id));
                const whole = ids.size === records.messages.length
                  && records.messages.every(({ parent, content, created, role }) =>
                    (parent === null || ids.has(parent)) && typeof content === 'string'
                    && Number.isFinite(created) && ['user', 'assistant'].includes(role))
                  && (ids.size === 0 || new Conversation(records).path().at(0).parent === null);
                if (!whole) counts.problems.push(['broken', text]);
                const again = fromText(toJson([records])).conversations[0];
                const words = ({ messages }) => JSON.stringify(messages.map(({ content }) => content));
                if (words(again) !== words(records)) counts.problems.push(['changed', text]);
                toMarkdown(records);
                counts.read++;
              }
            } catch (error) {
              if (error.constructor.name !== 'NotReadable') counts.problems.push([error.stack, text]);
            }
          }
          return counts;
        }""",
        texts,
    )
    assert kinds["problems"] == []
    assert kinds["read"] > 300


def test_long_threads_are_read_quickly(modules: Page) -> None:
    """100,000 messages in one line, every second one left out, and a circle over all of them."""
    took, lengths = work_of(
        modules,
        """async () => {
          const { fromText } = await import('/static/keep/formats.js');
          const roles = ['user', 'tool'];
          const messages = Array.from({ length: 100_000 }, (_, k) =>
            ({ id: `m${k}`, parent: `m${(k + 1) % 100_000}`, role: roles[k % 2], content: 'x' }));
          const text = JSON.stringify({ conv: { name: 'long' }, messages });
          return fromText(text).conversations.map((records) => records.messages.length);
        }""",
    )
    assert lengths == [50_000]
    assert took < 5


def test_markdown_tells_how_answers_came_about(modules: Page) -> None:
    text = modules.evaluate(
        """async () => {
          const { toMarkdown } = await import('/static/keep/formats.js');
          const core = await import('/static/core/conversation.js');
          const one = new core.Conversation();
          Object.assign(one.head, { title: 'A  title\\nof two lines', system: 'Be brief.\\n\\nPlease.' });
          const request = { temperature: 0.7, top_k: 40, stream: true };
          const facts = { model: 'tiny', request, started: 5, seed: 9, finish: 'length', ttft: 251.4,
            rate: 43.21, itl50: 1, itl95: 2, promptTokens: 12, cachedTokens: 0, completionTokens: 1 };
          const files = [{ name: 'a.py', text: 'x = "```"', tokens: 3 }];
          const question = one.add(null, { role: 'user', content: 'Look:', files });
          one.add(question.id, { role: 'assistant', content: 'not shown' });
          one.add(question.id, { role: 'assistant', content: '**Yes.**', facts });
          return toMarkdown(one.records());
        }"""
    )
    title, about, label, system, *rest = text.split("\n\n")
    assert title == "# A title of two lines"
    assert about.endswith("· `tiny`")
    assert (label, system) == ("**System prompt**", "> Be brief.\n>\n> Please.")
    assert rest[0].startswith("## You · ")
    assert rest[1:3] == ['a.py:\n````\nx = "```"\n````', "Look:"]
    assert rest[3].startswith("## Answer · ")
    assert rest[4] == "**Yes.**"
    facts = "251 ms to first token · 43.2 tok/s · p50 1.0 ms and p95 2.0 ms between tokens"
    facts += " · 12 prompt tokens · 1 token · finish: length · seed 9"
    assert rest[5] == f"*{facts} · temperature 0.7 · top_k 40*\n"
    assert "not shown" not in text


def archive(files: dict[str, bytes]) -> bytes:
    """A ZIP archive, packed as a page in a browser would."""
    body, index = b"", b""
    for name, content in files.items():
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(content) + packer.flush()
        sizes = (zlib.crc32(content), len(packed), len(content), len(name.encode()), 0)
        numbers = b"".join(
            size.to_bytes(width, "little") for size, width in zip(sizes, (4, 4, 4, 2, 2), strict=True)
        )
        common = b"\x14\0\0\0\x08\0\0\0\0\0" + numbers
        index += b"PK\x01\x02\x14\0" + common + bytes(10) + len(body).to_bytes(4, "little") + name.encode()
        body += b"PK\x03\x04" + common + name.encode() + packed
    count = len(files).to_bytes(2, "little") * 2
    return (
        body
        + index
        + b"PK\x05\x06\0\0\0\0"
        + count
        + len(index).to_bytes(4, "little")
        + len(body).to_bytes(4, "little")
        + b"\0\0"
    )


def test_files_are_taken_in(modules: Page) -> None:
    """Also those of an archive; what is there already stays once, what has changed comes under a new id."""
    own = json.dumps(
        {"head": {"id": "same", "title": "Own"}, "messages": [{"id": "m", "role": "user", "content": "x"}]}
    )
    changed = own.replace('"x"', '"y"').replace("Own", "Changed")
    twin = own.replace("same", "other").replace("Own", "Twin")
    packed = archive({"one/": b"", "one/a.jsonl": (DATA / "llama.jsonl").read_bytes(), "readme.txt": b"no"})
    told, again, titles, broken = modules.evaluate(
        """async ([texts, packed]) => {
          const { Library } = await import('/static/keep/library.js');
          const { importFiles } = await import('/static/keep/importing.js');
          const library = await Library.open('imports');
          const files = texts.map((text, at) => new File([text], `file ${at}.json`));
          const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
          files.push(new File([bytes], 'all.zip'));
          const told = await importFiles(library, files);
          const again = await importFiles(library, [files[0]]);
          const all = await library.all();
          const words = ({ messages }) => messages.map(({ content }) => content).join();
          const titles = all.map((records) => [records.head.title, words(records)]);
          const broken = await importFiles(library, [new File(['PK\\u0003 broken'], 'bad.zip')]);
          library.close();
          return [told, again, titles.sort(), broken];
        }""",
        [[own, changed, twin, "nothing"], b64encode(packed).decode()],
    )
    assert (told["added"], told["known"]) == (5, 0)
    assert [skipped["what"] for skipped in told["skipped"]] == ["file 3.json"]
    assert again == {"added": 0, "known": 1, "skipped": []}
    assert titles == [
        ["Changed", "y"],
        ["First", "Hello?,Hi."],
        ["Own", "x"],
        ["Second conversation", "Second   conversation"],
        ["Twin", "x"],
    ]
    assert [skipped["what"] for skipped in broken["skipped"]] == ["bad.zip"]
