"""What a reader sees of markdown that stops in the middle: no half-written marks, nothing that jumps."""

import pytest
from playwright.sync_api import Page

pytestmark = pytest.mark.browser

_HELPERS = """async () => {
  const { AnswerBody, showText } = await import('/static/reading/body.js');
  const stage = document.getElementById('log');
  const fresh = () => stage.replaceChildren(document.createElement('div')) ?? stage.firstElementChild;
  // Its elements without what is around them, and without attributes.
  const bare = (element) => {
    const copy = element.cloneNode(true);
    for (const node of copy.querySelectorAll('.code-head, tbody:empty')) node.remove();
    for (const formula of copy.querySelectorAll('.formula')) {
      const source = formula.querySelector('annotation') ?? formula;
      formula.replaceWith(`{${source.textContent}}`);
    }
    for (const node of copy.querySelectorAll('div, .lines, pre span')) node.replaceWith(...node.childNodes);
    copy.normalize();
    return copy.innerHTML.replace(/<(\\/?\\w+)[^>]*>/g, '<$1>').replace(/\\s+(<\\/|<pre|$)/g, '$1');
  };
  window.half = (text) => {
    const element = fresh();
    new AnswerBody(element).append(text);
    return bare(element);
  };
  // What is shown after each character: its elements and, but for code and formulas, its words.
  window.grown = (text) => {
    const element = fresh();
    let now = performance.now();
    const clock = performance.now;
    performance.now = () => (now += 1000); // each character is shown at once
    const body = new AnswerBody(element);
    const seen = [...text].map((character) => {
      body.append(character);
      const copy = element.cloneNode(true);
      for (const node of copy.querySelectorAll('code, .code-head, .formula')) node.replaceWith('x');
      return copy.textContent.replace(/\\n+$/, '');
    });
    body.finish();
    performance.now = clock;
    return seen;
  };
  // Before they are loaded, formulas are shown as they are written.
  showText(fresh(), '$x$');
  while (stage.querySelector('[data-formula]') !== null) await new Promise(requestAnimationFrame);
}"""


@pytest.fixture(scope="module")
def reading(modules: Page) -> Page:
    modules.evaluate(_HELPERS)
    return modules


HALF = [
    # emphasis
    ("a **", "<p>a</p>"),
    ("a *", "<p>a</p>"),
    ("a **b", "<p>a <strong>b</strong></p>"),
    ("a **b*", "<p>a <strong>b</strong></p>"),
    ("a **b c ", "<p>a <strong>b c</strong></p>"),
    ("a *b", "<p>a <em>b</em></p>"),
    ("a ***b", "<p>a <em><strong>b</strong></em></p>"),
    ("a ***b**", "<p>a <em><strong>b</strong></em></p>"),
    ("a **b *c", "<p>a <strong>b <em>c</em></strong></p>"),
    ("a **b *c*", "<p>a <strong>b <em>c</em></strong></p>"),
    ("a _b", "<p>a <em>b</em></p>"),
    ("a __b_", "<p>a <strong>b</strong></p>"),
    ("a ~~b", "<p>a <del>b</del></p>"),
    ("a ~~b~", "<p>a <del>b</del></p>"),
    ("a ~~", "<p>a</p>"),
    ("2 *", "<p>2</p>"),
    ("2 * 3 and snake_case", "<p>2 * 3 and snake_case</p>"),
    ("done **a** and **b", "<p>done <strong>a</strong> and <strong>b</strong></p>"),
    ("one\n\ntwo **b", "<p>one</p><p>two <strong>b</strong></p>"),
    ("## a **b", "<h4>a <strong>b</strong></h4>"),
    ("> a **b", "<blockquote><p>a <strong>b</strong></p></blockquote>"),
    ("- a\n- b **c", "<ul><li>a</li><li>b <strong>c</strong></li></ul>"),
    ("**a\n- b", "<p>**a</p><ul><li>b</li></ul>"),
    # code in a line
    ("a `", "<p>a</p>"),
    ("a `b", "<p>a <code>b</code></p>"),
    ("a `b **c", "<p>a <code>b **c</code></p>"),
    ("a ``b`", "<p>a <code>b</code></p>"),
    ("a **b `c", "<p>a <strong>b <code>c</code></strong></p>"),
    # links
    ("a [", "<p>a</p>"),
    ("a [b", "<p>a b</p>"),
    ("a [b **c", "<p>a b <strong>c</strong></p>"),
    ("a [b](", "<p>a <span>b</span></p>"),
    ("a [b](http://c.d/e", "<p>a <span>b</span></p>"),
    ('a [b](http://c.d "e', "<p>a <span>b</span></p>"),
    ("a [b](http://c.d/e_(f", "<p>a <span>b</span></p>"),
    ("a [b](http://c.d/e_(f)", "<p>a <span>b</span></p>"),
    ("a [b](http://c.d/e)", "<p>a <a>b</a></p>"),
    ("a [b](no address, **c", "<p>a [b](no address, <strong>c</strong></p>"),
    ("a **[b](http://c", "<p>a <strong><span>b</span></strong></p>"),
    ("a [**b**](http://c", "<p>a <span><strong>b</strong></span></p>"),
    ("a ![b", "<p>a b</p>"),
    ("a ![b](http://c", "<p>a <span>b</span></p>"),
    # the beginning of a line that may become something else
    ("#", ""),
    ("a\n\n##", "<p>a</p>"),
    ("a\n\n-", "<p>a</p>"),
    ("a\n\n1.", "<p>a</p>"),
    ("a\n-", "<p>a</p>"),
    ("a\n--", "<p>a</p>"),
    ("a\n=", "<p>a</p>"),
    ("- a\n- [", "<ul><li>a</li></ul>"),
    ("- a\n- [ ]", "<ul><li>a</li></ul>"),
    ("- a\n  1.", "<ul><li>a</li></ul>"),
    ("> a\n> -", "<blockquote><p>a</p></blockquote>"),
    # fences
    ("a\n\n``", "<p>a</p>"),
    ("a\n\n```", "<p>a</p>"),
    ("a\n\n```py", "<p>a</p>"),
    ("```py\n", "<pre><code></code></pre>"),
    ("```py\nx **y", "<pre><code>x **y</code></pre>"),
    ("```py\nx\n``", "<pre><code>x</code></pre>"),
    ("~~~\nx\n```", "<pre><code>x</code></pre>"),
    ("- a\n  ```\n  x", "<ul><li>a<pre><code>x</code></pre></li></ul>"),
    ("- a\n  ```\n  x **y\n\n  # `z", "<ul><li>a<pre><code>x **y\n\n# `z</code></pre></li></ul>"),
    ("> ```\n> x **y\n> ``", "<blockquote><pre><code>x **y</code></pre></blockquote>"),
    ("- ```\n  x\n  ```\n- **y", "<ul><li><pre><code>x</code></pre></li><li><strong>y</strong></li></ul>"),
    # tables
    ("|", ""),
    ("a\n\n| ", "<p>a</p>"),
    ("| a", "<table><thead><tr><th>a</th></tr></thead></table>"),
    ("| a | b", "<table><thead><tr><th>a</th><th>b</th></tr></thead></table>"),
    ("| a | b |", "<table><thead><tr><th>a</th><th>b</th></tr></thead></table>"),
    ("| a | **b", "<table><thead><tr><th>a</th><th><strong>b</strong></th></tr></thead></table>"),
    ("| a | b |\n|", "<table><thead><tr><th>a</th><th>b</th></tr></thead></table>"),
    ("| a | b |\n|--", "<table><thead><tr><th>a</th><th>b</th></tr></thead></table>"),
    ("| a | b |\n|---|:-", "<table><thead><tr><th>a</th><th>b</th></tr></thead></table>"),
    (
        "| a | b |\n|---|---|\n| c | `d",
        "<table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>c</td><td><code>d</code></td></tr></tbody></table>",
    ),
    # formulas
    ("a $", "<p>a</p>"),
    ("a $$", "<p>a</p>"),
    ("a $x_1", "<p>a {x_1}</p>"),
    ("a $\\frac{1}{", "<p>a {\\frac{1}{}</p>"),
    ("a \\(x", "<p>a {x}</p>"),
    ("a \\", "<p>a</p>"),
    ("it costs $5 and **more", "<p>it costs $5 and <strong>more</strong></p>"),
    ("$$", ""),
    ("$$\n", ""),
    ("$$\nx^2", "{x^2}"),
    ("$$\nx^2\n$", "{x^2}"),
    ("\\[\nx **y", "{x **y}"),
    ("a **b $x^2", "<p>a <strong>b {x^2}</strong></p>"),
]


@pytest.mark.parametrize(("text", "shown"), HALF, ids=[text for text, _ in HALF])
def test_half_written_marks_are_not_seen(reading: Page, text: str, shown: str) -> None:
    assert reading.evaluate("text => half(text)", text) == shown


SAMPLES = {
    "emphasis": """\
So **bold *both* bold** and *slanted*, ***all of it***, ~~gone~~ and _this_ or __that__.

- **First**: it is 6, *really*.
- **Second**: `snake_case` and snake_case.

1. *One*
2. **Two** and more
""",
    "code": """\
Call `f(x)` or ``a `b` c``, then **`g`**:

```python
def f(x):
    return x ** 2  # *no*
```

> Quoted `code` with **strong words**.

~~~
**raw**
~~~
And *after* it.""",
    "links": """\
See [the **page**](https://a.example/x_y_(z) 'A *title*'), ![a picture](https://b.example/c.png),
https://c.example/d_e and [*slanted*](https://f.example).

## A [link](https://g.example) in a **heading**

End.""",
    "tables": """\
| name | *what* | `code` |
| :--- | ---: | --- |
| **one** | ~~1~~ | `a` |
| two | *2* | `b c` |

After **it**.

| x |
|---|
| _y_ |
""",
    "formulas": r"""If $a_1 * b_2 = c$ and \(x^*\) hold, **then** it costs *about* $5:

$$
\sum_{k=1}^n k^2
$$

\[ y^{**} \]

- so **$x_1$** and *$y$*
""",
    "nested": """\
1. **One**
   - *inner* `x`
   - [ ] **task** to do
   - [x] ~~done~~

2. Two

   > *quoted* **words**

   ```js
   a ** b
   ```

---

***

### *Last* one
""",
}


MARKS = ("**", "~~", "`", "](", "$$", "|")


@pytest.mark.parametrize("name", SAMPLES)
def test_no_prefix_shows_marks(reading: Page, name: str) -> None:
    """However far an answer has come, its words end in no mark that waits for another one, and hold none."""
    text = SAMPLES[name]
    seen = reading.evaluate("text => grown(text)", text)
    assert len(seen) == len(text)
    bad = {
        text[max(0, at - 30) : at + 1]: shown[-40:]
        for at, shown in enumerate(seen)
        if shown.endswith(("*", "_", "~", "`", "$", "[", "|")) or any(mark in shown for mark in MARKS)
    }
    assert bad == {}
