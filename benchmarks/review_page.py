"""How long a person waits for the review page: `python -m benchmarks.review_page [--work DIR] [--cells 5000]`.

Suggestions about as many rendered garments, as `facetclip review` writes them, in headless Chromium (Debian's
chromium and chromium-driver). Opening is from asking for the file until its first photo is decoded and two frames are
drawn; a decision is from the key until the next photo is decoded and a frame drawn, with nothing decided yet and with
all but the last decided. Opening includes what driving the browser takes. Requests of the network are counted.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import environment, write_result
from benchmarks.quality.catalogs import GARMENTS_SCHEMA
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from facetclip.catalog import read_catalog
from facetclip.index import INDEX_NAME, ShardIndex, open_index
from facetclip.labels import listed_text
from facetclip.render import RenderSpec, render_catalog
from facetclip.review import write_review
from facetclip.schema import read_schema
from facetclip.shards import ShardSpec, build_shards
from facetclip.suggestions import Suggestion, Suggestions, write_suggestions

ASKED = 200  # decisions that are timed, in each of two states
OPENINGS = 5
DECODED = """
// Chromium may refuse to decode a photo that it has just been given; then it is asked again.
const decoded = () => document.querySelector("#picture").decode().catch(() => new Promise(setTimeout).then(decoded));
"""
SHOWN = f"""{DECODED}
const [done] = arguments;
decoded().then(() => requestAnimationFrame(() => requestAnimationFrame(done)));
"""
DECIDE = f"""{DECODED}
const [count, done] = arguments;
const taken = [];
const next = async () => {{
  if (taken.length === count) return done(taken);
  const began = performance.now();
  document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key: "yn"[taken.length % 2], bubbles: true }}));
  await decoded();
  requestAnimationFrame(() => setTimeout(() => {{ taken.push(performance.now() - began); next(); }}));
}};
next();
"""
ALL_BUT = """
const [count] = arguments;
for (let each = 0; each < count; each++)
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "y", bubbles: true }));
"""


def shards_of(folder: Path, items: int) -> ShardIndex:
    """Shards of so many rendered garments; made once."""
    shards = folder / f"shards-{items}"
    if not (shards / INDEX_NAME).exists():
        catalog = render_catalog(RenderSpec("garments", items, size=224), folder / f"catalog-{items}", workers=2)
        spec = ShardSpec(shards, images=catalog.parent, workers=2)
        build_shards(read_catalog(str(catalog)), read_schema(GARMENTS_SCHEMA), spec)
    return open_index(shards)


def suggested(index: ShardIndex) -> Suggestions:
    """A suggestion about each item of the index, of its attributes in turn."""
    names = list(index.schema.attributes)
    told = {name: listed_text(each, index.labels[name]) for name, each in index.schema.attributes.items()}
    cells = []
    for row, (item, product) in enumerate(zip(index.item_ids.to_pylist(), index.product_ids.to_pylist(), strict=True)):
        name = names[row % len(names)]
        listed = told[name][row] or ""
        other = next(value for value in index.schema.attributes[name].values if value != listed)
        cells.append(Suggestion(item, product, name, listed, other, 0.93, 0.05, "disagrees"))
    return Suggestions("Suspect cells", str(index.folder), index.digest, index.schema, tuple(cells), {})


def browser() -> webdriver.Chrome:
    """A headless Chromium whose requests can be read."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options, Service(shutil.which("chromedriver")))


def opened(driven: webdriver.Chrome, page: Path) -> float:
    """Seconds until the first suggestion is seen."""
    driven.get("about:blank")
    began = time.perf_counter()
    driven.get(page.as_uri())
    driven.execute_async_script(SHOWN)
    return time.perf_counter() - began


def decisions(driven: webdriver.Chrome) -> dict[str, float]:
    """Milliseconds of a decision: in the middle, of one in twenty, and at most."""
    taken = driven.execute_async_script(DECIDE, ASKED)
    last = statistics.quantiles(taken, n=20)[-1]
    return {"median": round(statistics.median(taken), 1), "95%": round(last, 1), "most": round(max(taken), 1)}


def measure(driven: webdriver.Chrome, page: Path, cells: int) -> dict[str, Any]:
    """Openings and decisions of the page, and what it asked of the network."""
    opened(driven, page)
    driven.execute_script("localStorage.clear()")
    openings = [round(opened(driven, page), 2) for _ in range(OPENINGS)]
    first = decisions(driven)
    driven.execute_script(ALL_BUT, cells - 2 * ASKED - 1)
    last = decisions(driven)
    decided = driven.execute_script("return document.getElementById('count').textContent")
    messages = [json.loads(entry["message"])["message"] for entry in driven.get_log("performance")]
    asked = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return {
        "bytes": page.stat().st_size,
        "seconds to open": openings,
        "milliseconds of a decision, none before": first,
        "milliseconds of a decision, all others before": last,
        "decided": decided,
        "seconds to open with all decided": round(opened(driven, page), 2),
        "requests of the network": sum(not url.startswith(("file:", "data:", "about:")) for url in asked),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/review_page"))
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "review_page.json")
    args = parser.parse_args()
    index = shards_of(args.work, args.cells)
    page = args.work.resolve() / "review.html"
    write_suggestions(suggested(index), args.work)
    began = time.perf_counter()
    cells = write_review(args.work, page)
    written = round(time.perf_counter() - began, 1)
    driven = browser()
    try:
        version = driven.capabilities["browserVersion"]
        driven.set_script_timeout(120)
        found = {"suggestions": cells, "seconds to write": written, **measure(driven, page, cells)}
    finally:
        driven.quit()
    print(json.dumps(found, indent=1))
    write_result(args.out, {"environment": environment(("selenium",)) | {"chromium": version}, "results": found})


if __name__ == "__main__":
    main()
