"""Settings: what is in force, presets, and the sheet."""

import json

import pytest
from playwright.sync_api import Page, expect

from tests.static.chat_page import ChatPage
from tests.static.scripted_server import DONE, ROLE, SAMPLING_DEFAULTS, ScriptedServer, delta

pytestmark = pytest.mark.browser

ANSWER = [ROLE, delta("Hi.", "stop"), DONE]

# Settings and presets over a storage that lasts as long as the script; `head` is a conversation's.
SETUP = """
  const { Settings } = await import('/static/settings/settings.js');
  const { Presets } = await import('/static/settings/presets.js');
  const { newHead } = await import('/static/core/conversation.js');
  const kept = new Map();
  const storage = { getItem: (k) => kept.get(k) ?? null, setItem: (k, v) => kept.set(k, v) };
  const settings = new Settings(storage);
  const presets = new Presets(settings, storage);
  const head = newHead();
  const told = [];
  for (const name of ['change', 'kept']) settings.addEventListener(name, () => told.push(name));
"""


def run(modules: Page, script: str) -> object:
    return modules.evaluate("async () => {" + SETUP + script + "}")


@pytest.mark.slow
def test_a_conversations_own_value_stands_above_all_others(modules: Page) -> None:
    steps = run(
        modules,
        """
        settings.recommend({ temperature: 0.6, top_k: 50 });
        settings.set('temperature', '0.5');
        settings.bind(head);
        const steps = [told.includes('kept')];
        settings.scope = 'chat';
        settings.set('temperature', '0.2');
        settings.set('top_k', '');
        steps.push(told.includes('kept'), head.settings, settings.request());
        steps.push(settings.recommended('temperature'));
        settings.bind(newHead());
        steps.push(settings.get('temperature'));
        settings.bind(head);
        settings.scope = 'all';
        steps.push([settings.text('temperature'), settings.get('temperature')]);
        settings.set('temperature', '0.9'); // counts here, too
        steps.push(head.settings, settings.get('temperature'), new Settings(storage).get('temperature'));
        return steps;
        """,
    )
    assert steps == [
        False, True, {"temperature": 0.2}, {"temperature": 0.2, "top_k": 50}, 0.5,
        0.5, ["0.5", 0.2], {}, 0.9, 0.9,
    ]  # fmt: skip


def test_the_system_prompt_of_a_conversation(modules: Page) -> None:
    steps = run(
        modules,
        """
        settings.system = 'General.';
        settings.bind(head);
        const steps = [settings.system, head.system];
        settings.settle();
        steps.push(head.system);
        settings.setSystem('Other.', 'chat');
        steps.push(settings.system, settings.systemIn('all'));
        settings.setSystem('', 'chat'); // none here, although there is one for all
        steps.push(settings.system);
        settings.settle();
        steps.push(settings.system);
        settings.setSystem('Newer.', 'all');
        steps.push(settings.system, settings.changed);
        settings.reset('all');
        return [...steps, settings.system, settings.changed];
        """,
    )
    assert steps == [
        "General.", "", "General.", "Other.", "General.", "", "", "Newer.", True, "", False,
    ]  # fmt: skip


# (field, what is typed, what is kept of it, or None where it is refused)
TYPED: list[tuple[str, str, object]] = [
    ("stop", "END\n\n two \\n\\n\n\\\\n", ["END", " two \n\n", "\\n"]),
    ("stop", "\n".join("abcdefghijklmnopq"), None),
    ("stop", "x" * 257, None),
    ("stop_token_ids", "5, 7;9 11\n12", [5, 7, 9, 11, 12]),
    ("stop_token_ids", "5, -7", None),
    ("logit_bias", "12: -5\n 7 = 1.5 ", {"7": 1.5, "12": -5}),
    ("logit_bias", "12: -500", None),
    ("logit_bias", "12", None),
    ("bad_words", "one\r\ntwo", ["one", "two"]),
    ("ignore_eos", "true", True),
    ("min_p", "1.5", None),
    ("presence_penalty", "-2", -2),
    ("frequency_penalty", "-2.1", None),
    ("seed", "9007199254740993", None),
    ("max_tokens", "1e3", 1000),
    ("json_schema", '{"type": "object"}', '{"type": "object"}'),
    ("json_schema", "{type: object}", None),
    ("json_schema", "[1]", None),
    ("shape", "poem", None),
]


def test_fields_take_what_the_server_takes(modules: Page) -> None:
    found = modules.evaluate(
        """async (typed) => {
          const { parse, write } = await import('/static/settings/fields.js');
          return typed.map(([name, text]) => {
            const { value, problem } = parse(name, text);
            const again = value === undefined ? value : parse(name, write(name, value)).value;
            return [value ?? null, problem, JSON.stringify(again) === JSON.stringify(value)];
          });
        }""",
        [[name, text] for name, text, _ in TYPED],
    )
    for (name, text, expected), (value, problem, lasts) in zip(TYPED, found, strict=True):
        assert value == expected, f"{name}: {text}"
        assert (problem != "") == (expected is None)
        assert lasts


def test_requests_have_the_servers_types(modules: Page) -> None:
    steps = run(
        modules,
        """
        const set = (values) => {
          settings.reset();
          for (const [name, text] of Object.entries(values)) if (settings.set(name, text) !== '') throw name;
          return settings.request();
        };
        return [
          set({ logprobs: 'true', seed: '3' }),
          set({ logprobs: 'true', top_logprobs: '0' }),
          set({ top_logprobs: '3' }),
          set({ shape: 'json_object', regex: 'a+', ignore_eos: 'true' }),
          set({ shape: 'json_schema', json_schema: '{"type": "array"}' }),
          set({ shape: 'regex', regex: '[0-9]+' }),
          set({ shape: 'one_of', one_of: 'yes\\nno' }),
          set({ shape: 'regex', ignore_eos: 'true' }),
          set({ truncate_prompt_tokens: 'true', stop: 'END' }),
        ];
        """,
    )
    schema = {"name": "answer", "schema": {"type": "array"}}
    assert steps == [
        {"logprobs": True, "top_logprobs": 5, "seed": 3},
        {"logprobs": True, "top_logprobs": 0},
        {},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": schema}},
        {"regex": "[0-9]+"},
        {"guided_choice": ["yes", "no"]},
        {"ignore_eos": True},
        {"truncate_prompt_tokens": -1, "stop": ["END"]},
    ]


def test_what_is_stored_wrongly_is_left_out(modules: Page) -> None:
    steps = run(
        modules,
        """
        const stored = { temperature: 9, stop: ['a'], seed: 'x', nonsense: 1, system: 3 };
        kept.set('fastpath.settings', JSON.stringify(stored));
        settings.reload();
        head.settings = { temperature: {}, logit_bias: { 5: 'x' }, min_p: 0.1, model: 'other' };
        settings.bind(head);
        const taken = presets.fromJson('[{"name": 3}, {"name": "A", "fields": 7}]');
        return [settings.request(), settings.system, taken];
        """,
    )
    assert steps == [{"stop": ["a"], "min_p": 0.1}, "", 1]


def test_presets(modules: Page) -> None:
    steps = run(
        modules,
        """
        settings.recommend({ temperature: 0.7, top_k: 40 });
        settings.bind(head);
        settings.scope = 'chat';
        settings.set('seed', '7');
        const pressed = () => presets.list().filter(({ id }) => presets.matches(id)).map(({ name }) => name);
        const steps = [pressed()];
        presets.apply('precise');
        steps.push(pressed(), head.settings);
        settings.system = 'Brief.';
        steps.push(presets.save(' Mine '), presets.save('mine') !== '', presets.save('') !== '');
        presets.apply('balanced');
        settings.system = '';
        steps.push(pressed(), settings.request());
        presets.apply(presets.named('MINE').id);
        steps.push(pressed(), settings.system, settings.get('temperature'), settings.get('seed'));
        settings.set('temperature', '0.3');
        presets.overwrite('own:Mine');
        presets.rename('own:Mine', 'Ours');
        const later = new Presets(settings, storage);
        steps.push(later.list().map(({ name }) => name), later.matches('own:Ours'));
        later.fromJson(later.toJson());
        steps.push(later.list().at(-1).name);
        later.remove('own:Ours');
        return [...steps, later.list().length, new Presets(settings, null).save('X') !== ''];
        """,
    )
    assert steps == [
        ["Balanced"],
        ["Precise"], {"seed": 7, "temperature": 0.2, "top_p": 0.9, "min_p": 0.05},
        "", True, True,
        ["Balanced"], {"temperature": 0.7, "top_k": 40, "seed": 7},
        ["Precise", "Mine"], "Brief.", 0.2, 7,
        ["Precise", "Balanced", "Creative", "Ours"], True,
        "Ours (2)",
        4, True,
    ]  # fmt: skip


def test_the_sheet_sets_what_is_sent(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", ANSWER)
    page = chat.page
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Min p", exact=True).fill("0.2")
    page.get_by_label("Temperature, slider").fill("1.5")
    expect(page.get_by_label("Temperature", exact=True)).to_have_value("1.5")
    page.get_by_label("Stop texts", exact=True).fill("END\nFIN")
    expect(page.get_by_label("Alternatives", exact=True)).to_be_hidden()
    page.get_by_label("Record token probabilities", exact=True).check()
    page.get_by_label("Alternatives", exact=True).fill("2")
    page.get_by_text("Advanced").click()
    page.get_by_label("Form of the answer", exact=True).select_option("A regular expression")
    page.get_by_label("Regular expression", exact=True).fill("[a-z]+")
    top_k = page.get_by_label("Top k", exact=True)
    top_k.fill("-5")
    expect(top_k).to_have_attribute("aria-invalid", "true")
    problem = page.locator("#wrong-top_k")
    expect(problem).to_have_text("Top k must lie between 0 and 1,000,000.")
    assert "wrong-top_k" in (top_k.get_attribute("aria-describedby") or "")
    top_k.blur()
    expect(top_k).to_have_value("40")
    expect(problem).to_be_hidden()
    page.get_by_role("button", name="Back to default: Min p").click()
    expect(page.get_by_label("Min p", exact=True)).to_have_value("0.05")
    page.keyboard.press("Escape")
    chat.send("Hello")
    chat.wait_until_settled()
    body = scripted.exchanges[0].body
    sent = {
        "temperature": 1.5,
        "stop": ["END", "FIN"],
        "logprobs": True,
        "top_logprobs": 2,
        "regex": "[a-z]+",
    }
    assert {name: body[name] for name in sent} == sent
    assert (body["min_p"], body["top_k"]) == (SAMPLING_DEFAULTS["min_p"], SAMPLING_DEFAULTS["top_k"])
    chat.check_clean()


@pytest.mark.slow
def test_the_sheet_says_whom_a_change_counts_for(chat: ChatPage, scripted: ScriptedServer) -> None:
    scripted.script("Hello", ANSWER)
    page = chat.page
    chat.send("Hello")
    chat.wait_until_settled()
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("radio", name="This chat only").check()
    page.get_by_label("Seed", exact=True).fill("5")
    page.get_by_label("System prompt", exact=True).fill("Only here.")
    page.get_by_role("radio", name="All chats").check()
    seed = page.locator("[data-field=seed]")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("")
    expect(seed).to_contain_text("This chat has its own: 5.")
    expect(page.locator("#system-differs")).to_contain_text("Only here.")
    page.keyboard.press("Escape")
    chat.new_chat()
    chat.send("Hello")
    chat.wait_until_settled()
    body = scripted.exchanges[-1].body
    assert "seed" not in body
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    stored = json.loads(page.evaluate("localStorage.getItem('fastpath.settings') ?? '{}'"))
    assert "seed" not in stored


@pytest.mark.slow
def test_presets_in_the_sheet(chat: ChatPage) -> None:
    page = chat.page
    page.get_by_role("button", name="Settings").click()
    precise = page.get_by_role("button", name="Precise")
    expect(page.get_by_role("button", name="Balanced")).to_have_attribute("aria-pressed", "true")
    precise.click()
    expect(precise).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Temperature", exact=True)).to_have_value("0.2")
    page.get_by_label("Longest answer", exact=True).fill("33")
    page.get_by_role("button", name="Save as preset").click()
    name = page.get_by_label("Name of the preset")
    name.fill("precise")
    name.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("There is a preset precise already")
    name.fill("Short")
    name.press("Enter")
    short = page.get_by_role("button", name="Short", exact=True)
    expect(short).to_have_attribute("aria-pressed", "true")
    page.get_by_label("Longest answer", exact=True).fill("44")
    expect(short).to_have_attribute("aria-pressed", "false")
    short.click()
    expect(page.get_by_label("Longest answer", exact=True)).to_have_value("33")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(short).to_have_count(0)
    expect(page.locator("#settings")).to_be_visible()
    chat.check_clean()


@pytest.mark.slow
def test_presets_are_added_from_json(chat: ChatPage) -> None:
    chat.page.locator("#open-settings").click()
    sheet = chat.page.locator("#settings")
    sheet.get_by_role("button", name="Add from JSON").click()
    box = sheet.get_by_role("textbox", name="Presets as JSON")
    expect(box).to_be_focused()
    box.fill("nothing")
    sheet.get_by_role("button", name="Add", exact=True).click()
    expect(sheet.get_by_role("alert")).to_contain_text("no presets in this text")
    box.fill(json.dumps([{"name": "Terse", "fields": {"temperature": 0.3}, "system": "Be brief."}]))
    sheet.get_by_role("button", name="Add", exact=True).click()
    expect(box).to_have_count(0)
    sheet.get_by_role("button", name="Terse").click()
    expect(sheet.get_by_role("button", name="Terse")).to_have_attribute("aria-pressed", "true")
