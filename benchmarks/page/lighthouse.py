"""Lighthouse on the real server: phone, slow processor, slow network, as it does by default."""

import json
import os
import shutil
import subprocess

from benchmarks.page.browser import find_chromium

CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
PAINTS = {
    "first_contentful_paint_ms": "first-contentful-paint",
    "largest_contentful_paint_ms": "largest-contentful-paint",
    "total_blocking_time_ms": "total-blocking-time",
    "layout_shift": "cumulative-layout-shift",
}
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage"


def measure(url: str, program: str | None, runs: int) -> dict[str, object]:
    """The run with the median of the performance; `skipped` says why there is none."""
    seen: list[dict[str, object]] = []
    for _ in range(runs):
        seen.append(_run(url, program))
        if "skipped" in seen[-1]:
            return seen[-1]
    seen.sort(key=lambda run: float(str(run["performance"])))
    return seen[len(seen) // 2] | {"performance_of_all_runs": [{"score": run["performance"]} for run in seen]}


def _run(url: str, program: str | None) -> dict[str, object]:
    """Scores of 0 to 100, and the audits that cost some of it; `skipped` says why there are none."""
    if program is not None:
        command = [program]
    elif (npx := shutil.which("npx")) is not None:
        command = [npx, "--yes", "lighthouse@12"]
    else:
        return {"skipped": "neither the program (--lighthouse PATH) nor npx is there"}
    command += [url, "--output=json", "--output-path=stdout", "--quiet", f"--chrome-flags={FLAGS}"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"CHROME_PATH": find_chromium()},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"skipped": str(error)}
    if done.returncode != 0:
        return {"skipped": (done.stderr.strip().splitlines() or ["it failed"])[-1]}
    return summary(json.loads(done.stdout))


def summary(report: dict[str, object]) -> dict[str, object]:
    """What of a report is kept."""
    categories: dict[str, dict[str, object]] = report["categories"]  # type: ignore[assignment]
    audits: dict[str, dict[str, object]] = report["audits"]  # type: ignore[assignment]
    failed = []
    for name, category in categories.items():
        for reference in category["auditRefs"]:  # type: ignore[attr-defined]
            audit = audits[reference["id"]]
            if reference["weight"] > 0 and audit["score"] is not None and float(str(audit["score"])) < 1:
                failed.append(
                    {
                        "category": name,
                        "audit": reference["id"],
                        "score": audit["score"],
                        "says": f"{audit['title']} {audit.get('displayValue', '')}".strip(),
                    }
                )
    return {
        "version": report["lighthouseVersion"],
        **{name: round(100 * float(str(categories[name]["score"] or 0))) for name in CATEGORIES},
        **{name: audits[theirs].get("numericValue") for name, theirs in PAINTS.items()},
        "below_full_score": failed,
    }
