"""What the page shows of an answer's making: speed, facts, the engine's panel, token probabilities."""

import pytest
from playwright.sync_api import Page, expect

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
    spent = modules.evaluate(
        f"""async () => {{ {SPEED}
          const meter = new SpeedMeter(0);
          const begun = performance.now();
          for (let k = 0; k < 200000; k++) meter.piece(100 + 3 * k);
          return performance.now() - begun;
        }}"""
    )
    assert spent < 1000  # 5 microseconds a piece


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
  place.id = 'place'; document.getElementById('place')?.remove(); document.body.prepend(place);"""


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
        "2nd in the queue, about 3 s",
        "11th in the queue",
        "Starting now",
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
    for words in ("11.8 ms for half", "30 tokens, 16 of them cached", "token limit", "42", "temperature 0.7"):
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
        "kv": "25% (250 of 1,000 blocks)",
        "speed": "84.2 tok/s",
        "ttft": "120 ms for half, 1.50 s for 95 %",
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
    assert end.endswith("320.0 16.0")  # 100 tok/s is the top of the first strip
    assert rounded == [1, 1, 5, 10, 50, 1, 1000, 2000]
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
