"""What a model could write to make the page slow: no task of the page is long, and the text is there."""

import pytest
from playwright.sync_api import Page

from tests.static.main_thread import task_times
from tests.tiers import tiered

pytestmark = pytest.mark.browser

FREEZE_MS = 200.0  # row 45 of docs/faults.md, of the page's own processor time

_HELPERS = """async () => {
  const { AnswerBody, showText } = await import('/static/reading/body.js');
  const stage = document.getElementById('log');
  const task = () => new Promise((done) => setTimeout(done));
  const fresh = () => {
    const element = document.createElement('div');
    stage.replaceChildren(element);
    return element;
  };
  window.settled = async (element) => {
    while (element.matches('.growing') || element.querySelector('[data-formula]') !== null) await task();
    return element;
  };
  window.AnswerBody = AnswerBody;
  window.showText = showText;
  window.fresh = fresh;
  // Each piece in a task of its own, and shown at once, as when they come slowly.
  window.grow = async (text, length) => {
    const element = fresh();
    const clock = performance.now;
    let now = clock.call(performance);
    performance.now = () => (now += 1000);
    const body = new AnswerBody(element);
    for (let at = 0; at < text.length; at += length) {
      body.append(text.slice(at, at + length));
      await task();
    }
    body.finish();
    performance.now = clock;
    return settled(element);
  };
  await settled(await grow('$x$ `y`', 100));  // what is loaded with the first formula is there
}"""

ATTACKS = {
    "brackets": ("[" * 10_000 + "](" * 1_000, 2_000),
    "emphasis": ("*a " * 5_000, 1_000),
    "emphasis in emphasis": ("*a " * 2_500 + "a* " * 2_500, 2_000),
    "words": ("a!" * 8_000, 2_000),
    "openings": ("\\[a" * 5_000 + "\n\nx", 2_000),
    "dollars": ("$" * 3001 + "\\frac{1}{" * 2000 + "$$ x $ y $$$", 2_000),
    "entities": ("".join(f"&a{at};" for at in range(3_000)), 4_000),
    "definitions": (
        "\n\n".join(f"[{at}]" for at in range(500))
        + "".join(f"\n\n[{at}]: http://a.example/{at}" for at in range(500)),
        16_000,
    ),
    "formulas": (" ".join(f"$x_{{{at}}}$" for at in range(1_000)), 20_000),
    "formulas made anew": (" ".join(f"$x_{{{at}}}$" for at in range(600)) + " and words" * 40, 200),
    "macros": ("$$\\def\\a{x_1^2}" + "\\a" * 500 + "x_1^2" * 396 + "$$", 20_000),
    "long formula": ("$$" + "\\frac{1}{2}+" * 1_300 + "2$$", 20_000),
    "line": ("```js\n" + "1234567890," * 60_000 + "\n```", 16_000),
    "flood": (("Some **words**, `code` and [a link](http://a.example). " * 8 + "\n\n") * 400, 10**6),
}


@pytest.fixture
def reading(modules: Page) -> Page:
    modules.evaluate(_HELPERS)
    return modules


@pytest.mark.parametrize("name", tiered(ATTACKS, range(0, len(ATTACKS), 3)))
def test_no_task_of_the_page_is_long(reading: Page, name: str) -> None:
    text, length = ATTACKS[name]
    with task_times(reading) as tasks:
        reading.evaluate("async ([text, length]) => void (await grow(text, length))", [text, length])
    assert max(tasks) < FREEZE_MS


def formulas(page: Page, text: str) -> list[bool]:
    """For each formula of the text whether it is shown as one; the others are shown as they were written."""
    shown = page.evaluate(
        """async (text) => {
          const element = fresh();
          showText(element, text);
          await settled(element);
          const made = (formula) => formula.querySelector('.katex') !== null;
          return [...element.querySelectorAll('.formula')].map(made);
        }""",
        text,
    )
    return list(shown)


@pytest.mark.parametrize(
    "bomb",
    [
        "\\frac{1}{" * 300 + "2" + "}" * 300,  # overflows the browser's layout
        "\\frac{1}{2}+" * 1_300 + "2",
        "\\def\\a{" + "x" * 1_000 + "}" + "\\a" * 490,
        "\\def\\a#1{#1#1#1}" + "\\expandafter\\a" * 10 + "x",
        "\\def\\a#1{#1#1#1#1}" + "\\a{" * 7 + "x" + "}" * 7,
        "\\def\\a#1#2#3#4{#1#2{#3#4}}\\a\\def\\b{x}{" + "x" * 1_000 + "}" + "\\b" * 300,
        "\\def\\a#1{\\def\\b{#1}}\\a{" + "x" * 1_000 + "}" + "\\b" * 300,
        "\\def\\a{\\verb|}|" + "x" * 1_000 + "}" + "\\a" * 300,
        "\\def\\a{x\\a}\\a",
        "\\tag{" + "x" * 1_000 + "}" + "\\df@tag" * 200,
        "\\def\\arraystretch{" + "1" * 1_000 + "}" + "\\arraystretch" * 100,
        "&".join("a" * 1_200).join(("\\begin{matrix}", "\\end{matrix}")),
    ],
    ids=[
        *("deep", "long", "macros", "parameters", "parameters in one another", "definition that is given"),
        *("definition in a macro", "brace", "endless", "tag", "number", "wide"),
    ],
)
def test_a_formula_that_is_too_much_is_shown_as_its_source(reading: Page, bomb: str) -> None:
    assert formulas(reading, f"$${bomb}$$") == [False]
    assert bomb in reading.evaluate("document.getElementById('log').textContent")


def test_large_formulas_are_still_formulas(reading: Page) -> None:
    matrix = "\\\\".join("&".join(f"a_{{{row},{at}}}" for at in range(12)) for row in range(12))
    line = "f(x) &= \\frac{x^2}{\\sqrt{3}} + \\sum_{k=0}^{12} k"
    fraction = "1+\\cfrac{1}{" * 12 + "2" + "}" * 12
    text = "\n\n".join([
        f"$$\\def\\arraystretch{{1.5}}\\begin{{pmatrix}}{matrix}\\end{{pmatrix}}$$",
        "$$\\begin{aligned}" + "\\\\".join([line] * 30) + "\\end{aligned}$$",
        f"$${fraction}$$",
        "$\\newcommand{\\ours}{\\mathbb{R}} x \\in \\ours$",
    ])  # fmt: skip
    assert formulas(reading, text) == [True] * 4


@pytest.mark.parametrize(
    "definitions",
    [
        "\\newcommand{\\RR}{\\mathbb{R}}\n",
        "\\newcommand{\\RR}{\\mathbb{R}} \\newcommand{\\norm}[1]{\\left\\lVert #1 \\right\\rVert} ",
        "\\def\\RR{\\mathbb R}\\def\\norm#1{\\lVert #1\\rVert}\\renewcommand\\dot[2]{\\langle#2,#1\\rangle}",
        "\\providecommand{\\norm}[1]{\\Vert #1 \\Vert}\\gdef\\RR{R^{\\norm{n}}}\\def\\arraystretch{1.2}",
    ],
    ids=["name", "parameter", "several", "one in another"],
)
def test_formulas_with_ordinary_macros_are_formulas(reading: Page, definitions: str) -> None:
    value = "\\norm{x_{k+1} - x_k}" if "norm" in definitions else "\\dots, \\quad x_k"
    lines = "\\\\\n".join([f"f &: \\RR \\to \\RR, & {value} &\\in \\RR"] * 6)
    assert formulas(reading, f"$${definitions}\\begin{{aligned}}\n{lines}\n\\end{{aligned}}$$") == [True]


def test_only_errors_of_a_formula_are_shown_as_errors(reading: Page) -> None:
    """A formula that the page does not finish, for it might become too much, is no error of who wrote it."""
    wrong, stopped = reading.evaluate(
        """async (texts) => {
          const errors = [];
          for (const text of texts) {
            const element = fresh();
            showText(element, text);
            await settled(element);
            errors.push(element.querySelector('.katex-error') !== null);
          }
          return errors;
        }""",
        ["$\\frac{1$", "$\\def\\a#1{#1#1}\\a x \\implies y$"],
    )
    assert (wrong, stopped) == (True, False)


def test_formulas_of_a_view_that_is_not_in_the_document_are_made(reading: Page) -> None:
    """An answer grows while another chat is shown, and comes into the document when it is looked at."""
    left = reading.evaluate(
        """async (text) => {
          const view = document.createElement('div');
          const element = document.createElement('div');
          view.append(element);
          showText(element, text);
          for (let turn = 0; turn < 100; turn++) await new Promise((done) => setTimeout(done));
          document.getElementById('log').replaceChildren(view);
          return element.querySelectorAll('[data-formula]').length;
        }""",
        " ".join(f"$y_{{{at}}}$" for at in range(200)),
    )
    assert left == 0


def test_formulas_that_were_made_stay_while_their_paragraph_grows(reading: Page) -> None:
    """The paragraph is made anew with each piece: what is drawn right after it has no sources of formulas."""
    sources = reading.evaluate(
        """async ([formulas, words]) => {
          const element = fresh();
          const clock = performance.now;
          let now = clock.call(performance);
          performance.now = () => (now += 1000);
          const body = new AnswerBody(element);
          body.append(formulas);
          const raw = () => element.querySelectorAll('[data-formula]').length;
          while (raw() > 0) await new Promise((done) => setTimeout(done));
          const sources = [];
          for (const piece of words) {
            body.append(piece);
            sources.push(raw());
            await new Promise((done) => setTimeout(done));
          }
          performance.now = clock;
          return [element.querySelectorAll('.katex').length, ...sources];
        }""",
        [" ".join(f"$z_{{{at}}}$" for at in range(250)), [f" and *{at}* of them" for at in range(12)]],
    )
    assert sources == [250] + [0] * 12


def test_all_of_many_formulas_are_shown(reading: Page) -> None:
    assert formulas(reading, " ".join(f"$x_{{{at}}}$" for at in range(400))) == [True] * 400


def test_emphasis_that_ends_before_a_sign_is_no_tangle(reading: Page) -> None:
    """A long paragraph keeps its formatting and its lines, whatever stands behind its marks."""
    lines = [f"**word{at}**: *what* it means, ~{at} ms, in snake_case_{at}, **{at}**" for at in range(80)]
    count = "(text) => { showText(fresh(), text); return ['strong', 'em', 'br'].map((name) => "
    count += "document.querySelectorAll('#log ' + name).length); }"
    assert reading.evaluate(count, "\n".join(lines)) == [160, 80, 79]
    assert reading.evaluate(count, "*a\n" * 3_000 + "b") == [0, 0, 3_000]  # as they came, in their lines


def test_formulas_behind_open_backticks_are_found(reading: Page) -> None:
    assert formulas(reading, "``$x^2$ and ~$y$") == [True, True]


def test_entities_are_known_again_when_many_others_came(reading: Page) -> None:
    shown = reading.evaluate(
        """async () => {
          const { decode } = await import('/static/reading/safety.js');
          for (let at = 0; at < 8; at++)
            decode(Array.from({ length: 1000 }, (_, place) => `&#${10000 + 1000 * at + place};`).join(''));
          return decode('a &amp; b &lt; c &copy; d');
        }"""
    )
    assert shown == "a & b < c \u00a9 d"


def test_what_follows_a_flood_is_not_left_out(reading: Page) -> None:
    """Words are added to what is shown only where that is all that came before them."""
    shown = reading.evaluate(
        """async () => {
          const element = fresh();
          const body = new AnswerBody(element);
          body.append('- one\\n- two\\n- three begins and');
          await new Promise((done) => setTimeout(done, 50));
          body.append('\\n  - inside'.repeat(1500).slice(0, 16384 - 1) + '\\n' + 'word');
          for (let turn = 0; turn < 50; turn++) await new Promise((done) => setTimeout(done, 20));
          return [element.textContent.includes('and word'), element.textContent.endsWith('word')];
        }"""
    )
    assert shown == [False, True]


def test_a_long_text_is_shown_whole_over_several_tasks(reading: Page) -> None:
    paragraphs = [f"Paragraph {at}" + " of many words" * 40 for at in range(300)]
    text = "\n\n".join(paragraphs)
    first, whole = reading.evaluate(
        """async (text) => {
          const element = fresh();
          element.textContent = 'What was there';
          showText(element, text);
          const first = element.textContent;
          const deadline = performance.now() + 10_000;
          while (element.querySelectorAll('p').length < 300 && performance.now() < deadline) {
            await new Promise((done) => setTimeout(done));
          }
          return [first, [...element.querySelectorAll('p')].map((paragraph) => paragraph.textContent)];
        }""",
        text,
    )
    assert first == "What was there"  # a reader in the middle of it stays there
    assert whole == paragraphs


def test_another_text_takes_the_place_of_one_that_is_still_being_shown(reading: Page) -> None:
    shown = reading.evaluate(
        """async () => {
          const element = fresh();
          showText(element, 'Some words of the first text.\\n\\n'.repeat(5_000));
          showText(element, 'The second');
          for (let turn = 0; turn < 20; turn++) await new Promise((done) => setTimeout(done));
          return element.textContent;
        }"""
    )
    assert shown == "The second"


def test_a_number_is_a_label_like_others(reading: Page) -> None:
    text = "See [1].\n\nSee [name].\n\n[name]: http://a.example/name\n\n[1]: http://a.example/1\n\n"
    links = reading.evaluate(
        """async (text) => {
          const address = (link) => link.getAttribute('href');
          const links = (element) => [...element.querySelectorAll('a')].map(address);
          const whole = fresh();
          showText(whole, text);
          const first = links(whole);
          return [first, links(await grow(text, 4))];
        }""",
        text,
    )
    assert links == [["http://a.example/1", "http://a.example/name"]] * 2


def test_words_behind_other_signs_are_read_as_before(reading: Page) -> None:
    """The search for the next formula ends at these signs, the formula behind them is still found."""
    text = "snake_case and a!b ~ c * d [e] <f $x$, mail_me@a.example, \\(y\\) and 5$ or $6"
    found = reading.evaluate(
        """async (text) => {
          const element = fresh();
          showText(element, text);
          await settled(element);
          const sources = [...element.querySelectorAll('annotation')].map((source) => source.textContent);
          return [sources, [...element.querySelectorAll('a')].map((link) => link.getAttribute('href'))];
        }""",
        text,
    )
    assert found == [["x", "y"], ["mailto:mail_me@a.example"]]
