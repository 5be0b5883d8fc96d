"""What the page shows of an answer's making: speed, facts, the engine's panel, token probabilities."""

from math import exp, log

import pytest
from playwright.sync_api import Page, expect

from tests.static.page_clock import work_of

pytestmark = pytest.mark.browser

SPEED = "const { SpeedMeter } = await import('/static/seeing/speed.js');"


def facts_of(modules: Page, steps: str) -> dict[str, object]:
    """The facts of a meter that was started at 1000 and told these steps."""
    script = f"async () => {{ {SPEED} const meter = new SpeedMeter(1000); {steps}; return meter.facts(); }}"
    return modules.evaluate(script)


def test_all_facts_of_an_answer(modules: Page) -> None:
    facts = facts_of(
        modules,
        """meter.begin({ seed: 7, model: 'small' });
        for (let k = 0; k <= 100; k++) meter.piece(1250 + 20 * k);
        const prompt_tokens_details = { cached_tokens: 4 };
        meter.count({ prompt_tokens: 9, completion_tokens: 101, prompt_tokens_details });
        meter.finish('stop')""",
    )
    assert facts.pop("started") > 1.6e12
    assert facts.pop("itl50") == pytest.approx(20, rel=0.02)
    assert facts.pop("itl95") == pytest.approx(20, rel=0.02)
    assert facts == {
        "model": "small",
        "request": {},
        "seed": 7,
        "finish": "stop",
        "ttft": 250,
        "rate": 50,
        "promptTokens": 9,
        "cachedTokens": 4,
        "completionTokens": 101,
    }


def test_tokens_that_come_together_share_the_time_before_them(modules: Page) -> None:
    """Packets of 4 events each 40 ms, and events of 5 tokens each 50 ms, are both a token each 10 ms."""
    packets = facts_of(
        modules, "for (let k = 0; k < 400; k++) meter.piece(2000 + 40 * Math.floor(k / 4) + 0.1 * (k % 4))"
    )
    events = facts_of(modules, "for (let k = 0; k < 100; k++) meter.piece(2000 + 50 * k, 5)")
    for facts in (packets, events):
        assert facts["itl50"] == pytest.approx(10, rel=0.02)
        assert facts["itl95"] == pytest.approx(10, rel=0.02)
    assert packets["completionTokens"] == 400
    assert events["completionTokens"] == 500


def test_quantiles_of_uneven_gaps(modules: Page) -> None:
    """90 gaps of 5 ms and 10 of 80 ms."""
    facts = facts_of(
        modules,
        "let now = 1500; meter.piece(now); "
        "for (let k = 0; k < 100; k++) meter.piece((now += k % 10 === 9 ? 80 : 5))",
    )
    assert facts["itl50"] == pytest.approx(5, rel=0.03)
    assert facts["itl95"] == pytest.approx(80, rel=0.03)


def test_facts_that_cannot_be_known_are_null(modules: Page) -> None:
    nothing = facts_of(modules, "")
    assert {name for name, value in nothing.items() if value is None} >= {"ttft", "rate", "itl50", "seed"}
    resumed = modules.evaluate(
        f"""async () => {{ {SPEED}
          const meter = new SpeedMeter(null);
          for (let k = 0; k < 50; k++) meter.piece(5000 + 10 * k);
          meter.finish('stopped');
          const several = new SpeedMeter(0);
          several.piece(100);
          several.count({{ prompt_tokens: 5, completion_tokens: 90 }}, 2);
          return [meter.facts(), meter.line(), several.facts().completionTokens];
        }}"""
    )
    facts, line, several = resumed
    assert facts["ttft"] is None
    assert facts["rate"] == 100
    assert line == "100 tok/s · 50 tokens · stopped"
    assert several == 1


def test_a_piece_costs_the_same_however_long_the_answer(modules: Page) -> None:
    spent, _ = work_of(
        modules,
        f"""async () => {{ {SPEED}
          const meter = new SpeedMeter(0);
          for (let k = 0; k < 200000; k++) meter.piece(100 + 3 * k);
        }}""",
    )
    assert spent < 1  # 5 microseconds a piece


FACTS = {
    "model": "small",
    "request": {"model": "small", "temperature": 0.7, "stop": ["\n"], "stream": True},
    "started": 1_700_000_000_000,
    "seed": 42,
    "finish": "length",
    "ttft": 120,
    "rate": 84.2,
    "itl50": 11.8,
    "itl95": 20,
    "promptTokens": 30,
    "cachedTokens": 16,
    "completionTokens": 312,
}
PLACE = """const place = document.createElement('div');
  place.id = 'place'; document.getElementById('place')?.remove(); document.body.prepend(place);
  place.style.cssText = 'position: fixed; z-index: 9; inset: 0 auto auto 0; width: 40rem';"""


def test_line_of_facts_and_its_details(modules: Page) -> None:
    lines = modules.evaluate(
        f"""async (facts) => {{ {SPEED} {PLACE}
          const {{ FactsLine }} = await import('/static/seeing/facts_line.js');
          const line = new FactsLine(place);
          const lines = [];
          const note = () => lines.push(place.textContent);
          line.queued(2, 3.2); note();
          line.queued(11, null); note();
          line.queued(0, 0); note();
          const meter = new SpeedMeter(0);
          meter.piece(250); line.live(meter); note();
          line.settle(undefined); note();
          line.settle(facts); note();
          return lines;
        }}""",
        FACTS,
    )
    assert lines == [
        "3rd in the queue, about 3 s",
        "12th in the queue",
        "Next in the queue, about 1 s",
        "250 ms to first token · 1 token",
        "",
        "120 ms to first token · 84.2 tok/s · 312 tokens · length limit",
    ]
    place = modules.locator("#place")
    button = place.get_by_role("button", name="Details of this answer")
    expect(button).to_have_attribute("aria-expanded", "false")
    button.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")
    shown = place.locator("dl").inner_text()
    for words in (
        "p50 11.8 ms",
        "30 tokens, 16 of them cached",
        "token limit",
        "42",
        "temperature 0.7",
    ):
        assert words in shown
    assert '["\\n"]' in shown
    assert "stream" not in shown
    modules.keyboard.press("Escape")
    expect(place.locator("dl")).to_be_hidden()
    expect(button).to_be_focused()


SNAPSHOT = {
    "running": 3,
    "waiting": 2,
    "max_rows": 8,
    "blocks_used": 250,
    "blocks_total": 1000,
    "tokens_per_second": 84.2,
    "ttft_p50_seconds": 0.12,
    "ttft_p95_seconds": 1.5,
    "engine_restarts": 1,
    "state": "ready",
    "model": "small",
}
PANEL = (
    PLACE
    + """
  const { LivePanel } = await import('/static/seeing/panel.js');
  window.panel?.close();
  window.streams = [];
  const watch = (tell, signal) => new Promise((done) => {
    streams.push({ tell, signal, end: done });
    signal.addEventListener('abort', done);
  });
  window.told = [];
  window.panel = new LivePanel(place, { watch, mine: () => 1, told: (snapshot) => told.push(snapshot) });
"""
)


def test_live_panel_shows_the_engine(modules: Page) -> None:
    modules.evaluate(f"async (snapshot) => {{ {PANEL} panel.open(); streams[0].tell(snapshot); }}", SNAPSHOT)
    place = modules.locator("#place")
    expect(place.locator(".engine-batch")).to_have_text("You and 2 others in the batch")
    expect(place.locator(".engine-state")).to_have_text("Ready")
    for name, words in {
        "rows": "3 of 8",
        "waiting": "2",
        "kv": "250 of 1,000 blocks",
        "speed": "84.2 tok/s",
        "ttft": "120 ms",
        "ttft95": "1.50 s",
        "restarts": "1",
        "model": "small",
    }.items():
        expect(place.locator(f".engine-{name} dd").first).to_have_text(words)
    bars = place.locator("meter").evaluate_all("bars => bars.map((bar) => bar.value)")
    assert bars == [0.375, 0.25]
    image = place.get_by_role("img")
    expect(image).to_have_accessible_name(
        "Tokens per second, rows and KV cache over the last five minutes. "
        "Now: Tokens per second 84.2 tok/s, Rows 3, KV cache 25%."
    )


def test_live_panel_listens_only_while_it_is_open_and_seen(modules: Page) -> None:
    found = modules.evaluate(
        f"""async (snapshot) => {{ {PANEL}
          const state = () => [panel.opened, streams.length, streams.at(-1)?.signal.aborted];
          const steps = [state()];
          panel.open(); panel.open(); steps.push(state());
          const see = (hidden) => {{
            Object.defineProperty(document, 'hidden', {{ value: hidden, configurable: true }});
            document.dispatchEvent(new Event('visibilitychange'));
          }};
          see(true); steps.push(state());
          see(false); steps.push(state());
          streams[1].tell(snapshot);
          panel.close(); steps.push(state());
          streams[1].tell(snapshot);
          see(true); see(false); steps.push(state());
          delete document.hidden;
          return [steps, told.map((snapshot) => snapshot?.running ?? null)];
        }}""",
        SNAPSHOT,
    )
    steps, told = found
    assert [step[:2] for step in steps] == [
        [False, 0],
        [True, 1],
        [True, 1],
        [True, 2],
        [False, 2],
        [False, 2],
    ]
    assert [step[2] for step in steps[1:]] == [False, True, False, True, True]
    assert told == [None, 3, None]


def test_plot_has_gaps_a_cursor_and_a_table(modules: Page) -> None:
    """Two minutes at 50 tok/s and 2 rows, a silence, then half a minute at 100 with an unknown KV use."""
    drawn = modules.evaluate(
        f"""async () => {{ {PLACE}
          const {{ Plot, roundUp }} = await import('/static/seeing/plot.js');
          const {{ History }} = await import('/static/seeing/history.js');
          const history = new History();
          const now = 1_700_000_000_000;
          for (let ago = 700; ago >= 120; ago -= 0.5) history.add(now - ago * 1000, [50, 2, 0.1]);
          for (let ago = 30; ago >= 0; ago -= 0.5) history.add(now - ago * 1000, [100, 4, null]);
          const figure = (label, top) => ({{ label, shown: String, top }});
          const plot = new Plot(place, history, [
            figure('Speed', (most) => roundUp(most, 10)),
            figure('Rows', (most) => roundUp(most, 2)),
            figure('KV', () => 1),
          ]);
          plot.draw(now);
          const paths = [...place.querySelectorAll('path')].map((path) => path.getAttribute('d'));
          return [history.samples.length, paths.map((d) => d.split('M').length - 1), paths[0].slice(-10),
            [0, 1, 3, 7, 30, 0.4, 1000, 1001].map((value) => roundUp(value, 1))];
        }}"""
    )
    samples, stretches, end, rounded = drawn
    assert 200 < samples < 225
    assert stretches == [2, 2, 1]
    assert end.endswith("320.0 22.0")  # 100 tok/s is the top of the first strip
    assert rounded == [1, 1, 3, 8, 30, 1, 1000, 1200]
    cursor = modules.get_by_role("slider", name="Moment of the plot")
    cursor.focus()
    expect(modules.locator(".plot-readout")).to_have_text("0 s ago: Speed 100, Rows 4, KV –")
    cursor.press("ArrowLeft")
    expect(cursor).to_have_attribute("aria-valuetext", "1 s ago: Speed 100, Rows 4, KV –")
    for _ in range(4):
        cursor.press("PageDown")
    expect(cursor).to_have_attribute("aria-valuenow", "-61")
    expect(modules.locator(".plot-readout")).to_have_text("61 s ago: nothing heard")
    cursor.press("Home")
    expect(modules.locator(".plot-readout")).to_have_text("300 s ago: Speed 50, Rows 2, KV 0.1")
    modules.get_by_role("button", name="Show as a table").click()
    rows = modules.locator(".plot-table tbody tr")
    expect(rows.first).to_contain_text("100")
    expect(rows).to_have_count(15)
    expect(rows.last).to_contain_text("0.1")


def score(text: str, probability: float, *others: tuple[str, float]) -> dict[str, object]:
    alternatives = [{"text": text, "logprob": log(probability)}]
    alternatives += [{"text": other, "logprob": log(p)} for other, p in others]
    return {"text": text, "logprob": log(probability), "alternatives": alternatives}


SCORES = [
    score("The", 0.95, ("A", 0.04)),
    score(" sky", 0.5, (" sea", 0.25), (" moon", 0.004)),
    score("\n\n", 0.05),
    score("  ", 0.2),
    score("is", 0.7),
    score("", 1.0),
    score(" blue", 0.01),
]
MAP = (
    PLACE
    + """
  window.heat = await import('/static/seeing/heat.js');
  const body = document.createElement('div');
  body.textContent = 'rendered'; place.append(body);
  window.body = body; heat.showScores(body, scores);
"""
)


def test_heat_map_shows_tokens_in_the_flow_of_the_text(modules: Page) -> None:
    modules.evaluate(f"async (scores) => {{ {MAP} }}", SCORES)
    expect(modules.get_by_text("rendered")).to_be_hidden()
    text = modules.locator(".heat-text").evaluate("(element) => element.textContent")
    assert text == "The sky↵↵\n\n␣␣is∅ blue"
    classes = modules.locator(".heat-token").evaluate_all("all => all.map((one) => one.className.slice(-1))")
    assert "".join(classes) == "0243105"
    logs = [log(p) for p in (0.95, 0.5, 0.05, 0.2, 0.7, 1.0, 0.01)]
    mean = sum(logs) / len(logs)
    words = f"7 tokens, mean log probability {mean:.3f}, perplexity {exp(-mean):.2f}"
    expect(modules.locator(".heat-legend p")).to_have_text(words)
    assert modules.evaluate("heat.hideScores(body), [place.children.length, body.hidden]") == [1, False]


def test_heat_map_by_keyboard_and_by_pointer(modules: Page) -> None:
    modules.evaluate(
        f"async (scores) => {{ {MAP} place.prepend(document.createElement('button')); }}", SCORES
    )
    modules.mouse.move(1200, 700)  # away from the tokens
    tip = modules.get_by_role("tooltip")
    modules.locator("#place > button").focus()
    modules.keyboard.press("Tab")
    expect(modules.get_by_role("button", name="The", exact=True)).to_be_focused()
    modules.keyboard.press("ArrowRight")
    sky = modules.get_by_role("button", name="sky", exact=True)
    expect(sky).to_be_focused()
    expect(sky).to_have_accessible_description(" sky 50% Instead of it: sea 25% moon 0.4%".strip())
    expect(tip).to_be_visible()
    modules.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    expect(sky).to_be_focused()
    modules.keyboard.press("End")
    expect(modules.get_by_role("button", name="blue", exact=True)).to_be_focused()
    modules.keyboard.press("Tab")  # one stop for all tokens
    expect(tip).to_be_hidden()
    assert modules.locator('.heat-token[tabindex="0"]').count() == 1
    modules.get_by_role("button", name="The", exact=True).hover()
    expect(tip).to_contain_text("A 4%")
    tip.hover()
    expect(tip).to_be_visible()
    modules.keyboard.press("Escape")
    expect(tip).to_be_hidden()


@pytest.mark.slow
def test_heat_map_of_a_long_answer_is_quick(modules: Page) -> None:
    scores = [score(f" word{k}", 1 / (1 + k % 40), (" other", 0.01)) for k in range(4000)]
    spent, _ = work_of(
        modules,
        f"async (scores) => {{ {MAP} place.getBoundingClientRect(); heat.hideScores(body); }}",
        scores,
    )
    print(f"4,000 tokens in {1000 * spent:.0f} ms")
    assert spent < 1


CONTRAST = """async (scores) => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const light = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    const part = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    return a === 0 ? null : 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const tokens = [...document.querySelectorAll('.heat-token')];
  return tokens.map((token) => {
    const style = getComputedStyle(token);
    const ground = light(style.backgroundColor) ?? light(getComputedStyle(document.body).backgroundColor);
    const text = light(style.color);
    return [(Math.max(ground, text) + 0.05) / (Math.min(ground, text) + 0.05), style.backgroundColor];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_heat_colours_leave_the_text_readable(modules: Page, scheme: str) -> None:
    modules.emulate_media(color_scheme=scheme)
    modules.evaluate(
        f"async (scores) => {{ {MAP} }}", [score("x", p) for p in (0.95, 0.7, 0.5, 0.2, 0.05, 0.01)]
    )
    found = modules.evaluate(CONTRAST, None)
    modules.emulate_media(color_scheme="light")
    assert len({colour for _, colour in found}) == 6
    assert min(ratio for ratio, _ in found) >= 4.5


def test_model_card_says_what_is_known(modules: Page) -> None:
    words = modules.evaluate(
        f"""async () => {{ {PLACE}
          const {{ modelCard, readModelFacts }} = await import('/static/seeing/model_card.js');
          const facts = {{ n_params: 124439808, size: 248879616, dtype: 'bfloat16', device: 'cpu',
            max_rows: 8, block_size: 16, num_blocks: 10,
            features: [{{ feature: 'attention', asked: 'auto', used: 'paged', why: '' }}] }};
          const model = {{ id: 'small', contextLength: 2048, samplingDefaults: {{ top_k: 40 }}, facts }};
          const found = await readModelFacts({{
            model: async () => model,
            stats: async () => ({{ blocks_total: 100 }}),
            version: async () => {{ throw 1; }},
          }});
          place.append(modelCard(found));
          const closed = place.innerText.includes('attention');
          place.querySelector('summary').click();
          const words = place.innerText;
          if (closed) throw new Error('how it runs is shown at once');
          place.replaceChildren(modelCard({{ model: null, stats: null, version: null }}));
          return [words, place.innerText];
        }}"""
    )
    card, nothing = words
    for part in (
        "small",
        "2,048 tokens",
        "124M",
        "249 MB",
        "bfloat16",
        "1,600 tokens",
        "top_k 40",
        "attention",
    ):
        assert part in card
    assert nothing == "The server does not answer. Try again in a moment."
