"""The page's modules that hold no DOM, one by one."""

from random import Random

import pytest
from playwright.sync_api import Page

pytestmark = pytest.mark.browser


def test_speed_is_counted_from_the_first_token(modules: Page) -> None:
    live, final = modules.evaluate(
        """async () => {
          const { SpeedMeter } = await import('/static/seeing/speed.js');
          const meter = new SpeedMeter(1000);
          for (let k = 0; k <= 10; k++) meter.piece(1250 + 100 * k);
          const live = [meter.firstToken, meter.tokens, meter.rate, meter.line('')];
          meter.count({ prompt_tokens: 5, completion_tokens: 21 });
          return [live, [meter.firstToken, meter.tokens, meter.rate, meter.line('length')]];
        }"""
    )
    assert live == [0.25, 11, 10, "250 ms to first token · 10.0 tok/s · 11 tokens"]
    assert final == [0.25, 21, 20, "250 ms to first token · 20.0 tok/s · 21 tokens · length limit"]


def test_speed_says_nothing_it_cannot_know(modules: Page) -> None:
    lines = modules.evaluate(
        """async () => {
          const { SpeedMeter } = await import('/static/seeing/speed.js');
          const meter = new SpeedMeter(0);
          const none = meter.line('stopped');
          for (let k = 0; k < 50; k++) meter.piece(2000);
          return [none, meter.line('')];
        }"""
    )
    assert lines == ["stopped", "2.00 s to first token · 50 tokens"]


def test_own_settings_stand_above_the_model_card(modules: Page) -> None:
    steps = modules.evaluate(
        """async () => {
          const { Settings } = await import('/static/settings/settings.js');
          const kept = new Map();
          const storage = { getItem: (k) => kept.get(k) ?? null, setItem: (k, v) => kept.set(k, v) };
          const card = { temperature: 0.6, top_k: 50, min_p: 0.1, seed: 'x', unknown: 3 };
          const settings = new Settings(storage);
          settings.recommend(card);
          const steps = [settings.request()];
          const problems = ['temperature=2.5', 'top_k=1.5', 'top_p=0', 'seed=abc'].map((pair) => {
            const [name, text] = pair.split('=');
            return settings.set(name, text);
          });
          settings.set('temperature', '0');
          settings.set('seed', '7');
          const later = new Settings(storage);
          later.recommend({ ...card, top_k: 20 });
          steps.push(problems.filter(Boolean).length, later.request());
          later.set('temperature', '');
          later.reset();
          return [...steps, later.request(), later.changed];
        }"""
    )
    assert steps[0] == {"temperature": 0.6, "top_k": 50, "min_p": 0.1}
    assert steps[1] == 4
    assert steps[2] == {"temperature": 0, "top_k": 20, "min_p": 0.1, "seed": 7}
    assert steps[3:] == [{"temperature": 0.6, "top_k": 20, "min_p": 0.1}, False]


def test_broken_storage_is_no_obstacle(modules: Page) -> None:
    request = modules.evaluate(
        """async () => {
          const { Settings } = await import('/static/settings/settings.js');
          const deny = () => { throw new Error('denied'); };
          const settings = new Settings({ getItem: deny, setItem: deny });
          settings.set('temperature', '1.5');
          return [settings.request(), new Settings({ getItem: () => '[1', setItem: deny }).request()];
        }"""
    )
    assert request == [{"temperature": 1.5}, {}]


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (
            '{"error":{"message":"Too hot.","type":"t","param":"temperature","code":"out_of_range"}}',
            "Too hot.",
            "out_of_range",
        ),
        ('{"error":"Unauthorized"}', "Unauthorized", None),
        ('{"detail":"No."}', "No.", None),
        ("<html>proxy</html>", "HTTP status 400", None),
        ("", "HTTP status 400", None),
    ],
)
def test_error_bodies_of_all_kinds(modules: Page, body: str, message: str, code: str | None) -> None:
    found = modules.evaluate(
        """async (body) => {
          const { errorOfResponse } = await import('/static/server/errors.js');
          const headers = { 'Retry-After': '3' };
          const error = await errorOfResponse(new Response(body, { status: 400, headers }));
          return [error.message, error.code, error.retryAfter];
        }""",
        body,
    )
    assert found == [message, code, 3]


def test_wire_leaves_out_what_was_not_said(modules: Page) -> None:
    wire = modules.evaluate(
        """async () => {
          const { Conversation, newHead } = await import('/static/core/conversation.js');
          const conversation = new Conversation({ head: newHead({ system: 'Be brief.' }), messages: [] });
          const say = (role, content, parent) => conversation.add(parent, { role, content }).id;
          const two = say('assistant', 'two', say('user', 'one', null));
          const last = say('assistant', '', say('user', 'three', two));
          const files = [{ name: 'a.md', text: 'Code: ```x```', tokens: null }];
          const file = conversation.add(two, { role: 'user', content: 'Read.', files }).id;
          return [conversation.wire(last), conversation.wire(two, '  '), conversation.wire(file, '').at(-1)];
        }"""
    )
    one, two = {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}
    system, three = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "three"}
    assert wire[:2] == [[system, one, two, three], [one, two]]
    assert wire[2] == {"role": "user", "content": "a.md:\n````\nCode: ```x```\n````\n\nRead."}


@pytest.mark.parametrize("seed", range(8))
def test_a_tree_of_messages_stays_whole(modules: Page, seed: int) -> None:
    """Whatever is added, chosen and deleted: the path leads from a first message to a last one, siblings know
    each other, and what is stored and read again is the same tree.
    """
    random = Random(seed)
    moves = [[random.choice(("add", "add", "add", "select", "remove")), random.random()] for _ in range(60)]
    wrong = modules.evaluate(
        """async (moves) => {
          const { Conversation } = await import('/static/core/conversation.js');
          const wrong = [];
          let conversation = new Conversation();
          for (const [move, share] of moves) {
            const all = conversation.records().messages;
            const any = all[Math.floor(share * all.length)];
            if (move === 'add' || any === undefined) {
              const parent = share < 0.1 ? null : (any?.id ?? null);
              conversation.add(parent, { role: share < 0.5 ? 'user' : 'assistant', content: String(share) });
            } else if (move === 'select') {
              conversation.select(any.id);
              if (!conversation.path().includes(any)) wrong.push('selected, but not on the path');
            } else {
              const gone = new Set(conversation.remove(any.id));
              const left = conversation.records().messages;
              if (left.length !== all.length - gone.size) wrong.push('removed too much or too little');
              if (left.some(({ id, parent }) => gone.has(id) || gone.has(parent))) wrong.push('an orphan');
            }
            const path = conversation.path();
            const left = conversation.records().messages;
            if (left.length > 0 && path.length === 0) wrong.push('no path');
            if (path.length > 0 && path[0].parent !== null) wrong.push('a path without a beginning');
            if (path.length > 0 && conversation.children(path.at(-1).id).length > 0) wrong.push('no leaf');
            const alone = ({ id }) => !conversation.siblings(id).includes(id);
            if (left.some(alone)) wrong.push('no sibling of itself');
            const copy = new Conversation(structuredClone(conversation.records()));
            if (JSON.stringify(copy.path()) !== JSON.stringify(path)) wrong.push('another path read');
            if (share < 0.2) conversation = copy;
          }
          return wrong;
        }""",
        moves,
    )
    assert wrong == []


CALL = "<|python_start|>{}<|python_end|>"
OUTPUT = "<|output_start|>{}<|output_end|>"
# (an answer as it is streamed, what is shown of it: words, and calculations in brackets)
ANSWERS = [
    ("Just words, 1 < 2.", "Just words, 1 < 2."),
    (CALL.format("347+286") + OUTPUT.format("633") + "347 + 286 is 633.", "[347+286 = 633]347 + 286 is 633."),
    (
        "Let me see: " + CALL.format("'moon'.count('o')") + OUTPUT.format("2") + " so two.",
        "Let me see: ['moon'.count('o') = 2] so two.",
    ),
    (CALL.format("1/0") + "No result.", "[1/0]No result."),
    (CALL.format("1/0"), "[1/0]"),
    (CALL.format("1+1") + OUTPUT.format("2") + CALL.format("2*2") + OUTPUT.format("4"), "[1+1 = 2][2*2 = 4]"),
    ("It stops <|python_start|>12+", "It stops <|python_start|>12+"),
    ("It stops <|pyth", "It stops <|pyth"),
    (CALL.format("3+4") + "<|output_start|>7", "[3+4]<|output_start|>7"),
    ("<|output_start|>9<|output_end|> <<|python_end|>", "<|output_start|>9<|output_end|> <<|python_end|>"),
    ("<|python_start|>" + "9" * 5000 + " and on", "<|python_start|>" + "9" * 5000 + " and on"),
]
SHOW = """async (cuts) => {
  const { ToolText } = await import('/static/reading/tool_text.js');
  return cuts.map((pieces) => {
    const text = new ToolText();
    const shown = [...pieces.flatMap((piece) => text.push(piece)), ...text.flush()];
    return shown.map((part) => (part.type === 'text' ? part.text : `[${part.text}]`)).join('');
  });
}"""


def test_calculations_are_found_however_the_answer_is_cut(modules: Page) -> None:
    rng = Random(5)
    cuts, expected = [], []
    for answer, shown in ANSWERS:
        for size in (1, 3, 17, len(answer)):
            cuts.append([answer[at : at + size] for at in range(0, len(answer), size)])
        at = sorted(rng.choices(range(len(answer)), k=4))
        cuts.append([answer[a:b] for a, b in zip([0, *at], [*at, len(answer)], strict=True)])
        expected += [shown] * 5
    assert modules.evaluate(SHOW, cuts) == expected


def test_nothing_is_shown_twice_or_too_late(modules: Page) -> None:
    """Half a mark is held back; words before it are not."""
    steps = modules.evaluate(
        """async (pieces) => {
          const { ToolText } = await import('/static/reading/tool_text.js');
          const text = new ToolText();
          return pieces.map((piece) => text.push(piece).map((part) => part.text).join(''));
        }""",
        ["So: <", "|python_", "start|>2+2", "<|python_end|>", "<|output_start|>4<|output", "_end|>4", "!"],
    )
    assert steps == ["So: ", "", "", "", "", "2+2 = 44", "!"]
