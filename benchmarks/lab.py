"""Measure how long the page "Lab" computes for an image, in Chromium, and how large the page is.

    make docs
    python benchmarks/lab.py [--runs 50] [--site site]

The times are of one image: the forward pass with the class activation map, the gradient of a logit,
and the mean of six views. Appends JSON lines to benchmarks/results/lab.jsonl. Needs playwright and
Chromium; a Chromium on the path is preferred.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from machine import RESULTS, ROOT, append, machine

sys.path.insert(0, str(ROOT / "docs"))

WARM_UP = 10  # runs that are not counted, until the browser has compiled the code
MEASURE = """async ([runs, warmUp]) => {
  const load = (name) => import(new URL(`javascripts/lab/${name}.js`, location.href));
  const { loadNetwork, normalize } = await load("network");
  const { hiResCam, meanOfViews, viewOf, VIEWS } = await load("explanation");
  const { drawScene } = await load("scenes");
  const network = await loadNetwork(new URL("javascripts/lab/quarter.safetensors", location.href));
  const pixels = drawScene("ship");
  const input = normalize(pixels);
  const outputs = network.forward(input);
  const logits = network.layers.length - 1;
  const tasks = {
    "forward pass and class activation map": () =>
      hiResCam(network, network.forward(normalize(pixels)), 8),
    "gradient of a logit": () => network.gradient(input, outputs, logits, 8),
    "mean of six views": () =>
      meanOfViews(VIEWS.map((view) => network.forward(normalize(viewOf(pixels, view))).at(-1))),
  };
  const times = {};
  for (const [name, task] of Object.entries(tasks)) {
    times[name] = [];
    for (let run = -warmUp; run < runs; run++) {
      await new Promise((resolve) => setTimeout(resolve));
      const begin = performance.now();
      task();
      if (run >= 0) times[name].push(performance.now() - begin);
    }
  }
  return times;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="built by `make docs`")
    parser.add_argument("--results", type=Path, default=RESULTS / "lab.jsonl")
    args = parser.parse_args()
    if not (args.site / "lab.html").is_file():
        parser.error(f"{args.site} does not contain lab.html; build the site with `make docs`")

    from check_site import served
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    with served(args.site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        responses: list[Any] = []
        page.on("response", lambda response: responses.append(response))
        page.goto(f"{address}lab.html")
        page.wait_for_selector("#lab-page[data-settled=true]", timeout=120_000)
        bodies = [response.body() for response in responses]
        load = os.getloadavg()[0]
        times = page.evaluate(MEASURE, [args.runs, WARM_UP])
        common = {"n": args.runs, "warm_up": WARM_UP, "browser": f"Chromium {browser.version}"}
        browser.close()
    common |= {"cores": len(os.sched_getaffinity(0)), "load_average": load}
    for name, milliseconds in times.items():
        quartiles = statistics.quantiles(milliseconds, n=4)
        spread = {"median": quartiles[1], "quartiles": [quartiles[0], quartiles[2]]}
        line = {"benchmark": f"lab: {name}", "unit": "ms", "milliseconds": milliseconds, **spread}
        append(args.results, line | common | machine())
        print(f"{name:40} {quartiles[1]:6.1f} ms ({quartiles[0]:.1f} to {quartiles[2]:.1f})")
    plain, compressed = (sum(map(len, each)) for each in (bodies, map(gzip.compress, bodies)))
    size = {"benchmark": "lab: page with all its files", "unit": "bytes", "bytes": plain}
    append(args.results, size | {"bytes_gzip": compressed, "files": len(bodies)} | machine())
    print(f"page with all its files: {plain / 1e6:.2f} MB, {compressed / 1e6:.2f} MB with gzip")


if __name__ == "__main__":
    main()
