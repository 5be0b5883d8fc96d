"""The benchmark of the chat page: what it writes, and how it judges."""

from benchmarks.page.__main__ import verdicts
from benchmarks.page.lighthouse import summary
from benchmarks.page.writing import Writer, conversation, pieces


def test_the_same_answer_on_every_run() -> None:
    text = Writer(1).answer(24_000)
    assert text == Writer(1).answer(24_000) != Writer(2).answer(24_000)
    assert 24_000 <= len(text) < 26_000
    assert all(mark in text for mark in ("\n## ", "\n```python\n", "\n- ", "\n| --", "**", "](https://"))
    cut = pieces(text[:24_000], 6_000)
    assert len(cut) == 6_000 and "".join(cut) == text[:24_000] and {len(piece) for piece in cut} == {4}


def test_a_conversation_has_its_roles_in_turn() -> None:
    messages = conversation(500)
    assert messages == conversation(500) and len(messages) == 500
    assert {message["role"] for message in messages[::2]} == {"user"}
    assert {message["role"] for message in messages[1::2]} == {"assistant"}


def test_goals_are_judged() -> None:
    rows: list[dict[str, object]] = [
        {"case": "browser", "version": "150"},
        {"case": "sizes", "gzipped_kb": 120.0},
        {"case": "open", "median_ms": 300.0},
        {"case": "lighthouse", "performance": 94, "accessibility": 100, "best-practices": 100},
    ]
    assert [row["met"] for row in verdicts(rows)] == ["met", "MISSED", "MISSED", "met", "met"]
    skipped = verdicts([{"case": "lighthouse", "skipped": "npx is not there"}])
    assert {row["met"] for row in skipped} == {"npx is not there"} and len(skipped) == 3


def test_a_report_names_what_costs_points() -> None:
    def audit(score: float | None, **more: object) -> dict[str, object]:
        return {"score": score, "title": "Something", "numericValue": 1234.5, **more}

    names = ("first-contentful-paint", "largest-contentful-paint", "total-blocking-time")
    report: dict[str, object] = {
        "lighthouseVersion": "12.8.2",
        "categories": {
            name: {"score": 0.97, "auditRefs": [{"id": f"{name}-audit", "weight": 1}]}
            for name in ("performance", "accessibility", "best-practices", "seo")
        },
        "audits": {
            "performance-audit": audit(0.5, displayValue="2 s"),
            "accessibility-audit": audit(1),
            "best-practices-audit": audit(None),
            "seo-audit": audit(1),
            **{name: audit(1) for name in (*names, "cumulative-layout-shift")},
        },
    }
    kept = summary(report)
    assert (kept["performance"], kept["largest_contentful_paint_ms"]) == (97, 1234.5)
    says = {"category": "performance", "audit": "performance-audit", "score": 0.5, "says": "Something 2 s"}
    assert kept["below_full_score"] == [says]
