"""How long the probes take: about 600 items each, drawn, answered, scored by likelihood, judged.

    python benchmarks/probe_speed.py [MODEL] [--probes A,B] [--items N] [--threads N] [--profile]

Loading the model is left out; pictures are encoded anew for each probe. The goal is nano on two
cores: 10 s or less a probe. The CPU seconds tell a busy machine from slow code.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import os
import pstats
import time
from typing import Any

from safety.probing import run_probe
from streams import settings

PROBES = "existence,captions,reading,refusal,bias"
LIMIT_SECONDS = 10.0


def sized(name: str, items: int) -> Any:
    """The probe with about so many items, slices included."""
    probe = settings.from_spec("safety.probes", name, where="--probes")
    found = len(probe.samples(0))
    return dataclasses.replace(probe, items=max(1, round(probe.items * items / found)))


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `clmm probe` has it
    import torch

    from clmm.answering import Answerer
    from clmm.learner import batcher_of
    from clmm.loading import load

    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", nargs="?", default="nano")
    parser.add_argument("--probes", default=PROBES)
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    loaded = load(chosen.model)
    device = next(loaded.model.parameters()).device
    print(f"{chosen.model} on {device}, {chosen.threads} threads; goal {LIMIT_SECONDS:g} s a probe")
    print(f"{'probe':<12}{'items':>6}{'seconds':>9}{'CPU s':>8}{'items/s':>9}")
    for name in chosen.probes.split(","):
        probe = sized(name, chosen.items)
        model = Answerer(loaded.model, batcher_of(loaded))
        run_probe(dataclasses.replace(probe, items=1), model)  # warms kernels
        model = Answerer(loaded.model, batcher_of(loaded))
        profile = cProfile.Profile()
        if chosen.profile:
            profile.enable()
        started, busy = time.perf_counter(), time.process_time()
        count = len(run_probe(probe, model).samples)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        profile.disable()
        print(f"{name:<12}{count:>6}{seconds:>9.2f}{busy:>8.2f}{count / seconds:>9.1f}")
        if chosen.profile:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(40)


if __name__ == "__main__":
    main()
