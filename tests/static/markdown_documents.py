# ruff: noqa: E501
"""Documents in markdown that are hard to cut, for the tests of what the page makes of answers."""

import random

DOCUMENTS = {
    "plain": "One paragraph.\nIts second line.\n\nAnother.",
    "headings": "# One\n\nText\n## Two\nText\n\nSetext\n===\n\nOther\n---\n\n###### Six\n\n#hashtag",
    "rules": "a\n\n---\n\nb\n\n***\n\n_ _ _\n\nc\n* * *\nd",
    "tight list": "Before:\n- a\n- **b**\n- `c`\n\nAfter",
    "loose list": "- a\n\n- b\n- c\n\nafter\n\n1. x\n2. y\n\n3. z",
    "late loose list": "- a\n- b\n- c\n- d\n\n- e\n- f",
    "nested list": "1. a\n   - b\n     - c\n   - d\n2. e\n\n   more e\n3. f\n   1. g",
    "bullets change": "- a\n- b\n* c\n* d\n+ e\n\n1. f\n2) g",
    "list of blocks": "- a\n\n  > quote\n\n- ```js\n  let x = 1;\n\n  y()\n  ```\n- # head\n\n      indented",
    "list starts": "3. three\n4. four\n\ntext\n\n0. zero\n1. one",
    "tasks": "- [ ] open\n- [x] done\n  - [X] inside\n- none",
    "lazy": "> a\nb\n> c\n\n> d\n\n- x\ny\n- z",
    "fences": "text\n```py\na = 1\n\n\nb\n```\ntext\n~~~\n```\n~~~\n\n````md\n```\nx\n```\n````",
    "open fence": "```py\nx = 1\n\ny",
    "open fence with air": "```\nx\n\n\n",
    "indented fence": "  ```py\n  a\n    b\n  ```\nend",
    "fence in words": "a ```b``` c\n\n``` d ``` e\nf",
    "empty fences": "```\n```\n\n```py\n\n```\n\n```",
    "indented code": "a\n\n    code\n\n    more\n\nb\n\n\tcode",
    "table": "| a | b |\n|---|:-:|\n| 1 | **2** |\n| 3 |\n\nafter",
    "table and text": "Before\n\na | b\n--|--\n1 | 2\nx\n\n| c |\n|---|\n",
    "wide table": "| a | b |\n|:--|--:|\n" + "".join(f"| {k} | `{k}` \\| |\n" for k in range(30)) + "> q",
    "no table": "| a | b |\n| - |\n\n| c | d |\ntext",
    "links": '[a](http://a.b "t") <http://c.d> http://e.f?g=1&h=2. www.i.j k@l.m [n](mailto:o@p.q)',
    "references": "[one] and [two][2] and ![three][one]\n\n- [two]\n- [ONE]\n\n[one]: http://a.b 'x'\n[2]:\n  http://c.d\n[two]: <http://e.f>\n\n[one][]",
    "references in a table": "| [a] |\n|---|\n| [a] |\n\n> [a]\n\n[a]: http://b.c",
    "first definition counts": "[a]: http://first.x\n\n[a]\n\n[a]: http://second.x\n\n[a]",
    "images": "![alt](http://a.b/c.png) ![](x.png)\n\n![dot](data:image/png;base64,iVBORw0KGgo=)",
    "markup": "<div>\n**no**\n\n</div>\n\na <b>c</b> <br> d\n\n<!-- hidden\n\nstill -->\nafter\n\n<script>\nx\n\ny</script>\nz",
    "entities": "&amp; &lt;b&gt; &copy; &#35; &#x41; &nope; &amp;lt; `&amp;` [a&amp;b](http://c.d?e&amp;f)",
    "emphasis": "*a* **b** ***c*** _d_ __e__ a_b_c *a **b* c** ~~f~~ ~g~ **a\nb** 2*3*4 * x *",
    "escapes": "\\*a\\* \\# \\[b\\] \\\\ \\`c\\` 1\\. d\n\\- e",
    "code": "`a` ``b`c`` ` d ` `e\nf` `unclosed",
    "formulas": "$a_1*b*c_2$ and $$x$$ and \\(y\\) cost $5 and $10, or $5-$6\n\n$$\na\n=b\n$$\n\n\\[\nc\n\\]\ntext\n$$d$$",
    "breaks": "a  \nb\\\nc\nd",
    "line ends": "# a\r\n\r\n- b\r\n- c\r\n\r\n```py\r\nd\r\n```\r\ne\rf",
    "other scripts": "**空は青い**。\n\n- العربية **نص**\n- 🌤️ ~~x~~\n\n| א | ב |\n|---|---|\n| ג | ד |",
    "blank": "\n\n   \n\na\n   \n\t\n\nb\n\n\n",
    "tabs": "-\ta\n-\tb\n\n\tc\n\n1.\td\n\n\te",
    "long paragraph": "word *and* word " * 1500,
    "long list": "".join(f"{k}. item **{k}**\n" for k in range(1, 80)) + "\nend",
    "odd labels": "[constructor] [__proto__] [toString][]\n\n[constructor]: http://a.b",
}

_PARTS = [
    "# head", "text **bold** text", "- item", "  - inner", "1. one", "2. two", "", "", "", "> quote", "```py", "```",
    "x = 1  # **not**", "| a | b |", "|---|---|", "| 1 | 2 |", "    indented", "---", "$$", "a_1 = $b$", "[x]: http://y.z",
    "[x] and [y](http://z.a)", "<div>", "</div>", "`code` *em", "* star", "~~gone~~ \\", "===", "~~~", "  text", "&amp;",
]  # fmt: skip


def random_document(pick: random.Random) -> str:
    """Lines that may begin and end anything, in any order."""
    return "\n".join(pick.choice(_PARTS) for _ in range(pick.randint(4, 24)))
