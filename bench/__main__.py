"""`python -m bench`: runs the benchmarks and writes `bench/results.json`."""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

from bench import demo_stages, loading, measures, normalising, recipe, scoring, service, sessions, training_step
from pipelines.common.files import read_json, write_json

RESULTS = Path(__file__).with_name("results.json")  # those that are run replace their own, the others stay
BENCHES = {
    "demo_vs_reference": demo_stages.run,
    "scoring_vs_naive": scoring.run,
    "training_step_vs_forward_backward": training_step.run,
    **{f"step_with_{name}": partial(measures.run, name) for name in measures.NAMES},
    "normalise_vs_decode": normalising.run,
    "shards_vs_brief_recipe": recipe.word_for_word,
    "shards_vs_shared_recipe": recipe.shared,
    "loader_vs_jpegs": loading.vs_jpegs,
    "loader_vs_raw_video": loading.vs_raw_video,
    "cost_of_32_sessions": sessions.flat,
    "added_session": sessions.added,
    "service_throughput_vs_plain_handler": service.throughput,
    "service_p99_vs_plain_handler": service.p99,
    "service_cold_start": service.cold_start,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the benchmarks; each compares two sides in one run.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHES)}; all by default")
    names = parser.parse_args().names or list(BENCHES)
    results = {}
    for name in names:
        began = time.perf_counter()
        results[name] = BENCHES[name]()
        print(f"{name}: {results[name]}, in {time.perf_counter() - began:.0f} s", flush=True)
    kept = read_json(RESULTS) if RESULTS.is_file() else {}
    if (name := "demo_vs_reference") in results:
        print(*demo_stages.slow(results[name], kept.get(name, {})), sep="\n", flush=True)
    write_json(RESULTS, {name: (kept | results)[name] for name in BENCHES if name in kept | results})


if __name__ == "__main__":
    main()
