"""Time of one training step beside a hand-written PyTorch loop on the same model and data.

    python benchmarks/training_step.py [MODEL] [--steps N] [--tuning full|lora]

Both do the same work: tokenise and collate, forward, backward, clip, AdamW, read the loss. They
take turns step by step in one process, so that a busy machine slows both; the figure is the
median of the paired ratios. The first steps, which warm caches, are left out.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import numpy as np
import torch

from clmm.batching import Batcher, to_model
from clmm.learner import Learner
from clmm.loading import Loaded, load
from clmm.strategies.sequential_full import SequentialFull
from clmm.strategies.sequential_lora import SequentialLora
from clmm.training import TrainSettings
from streams.sample import Image, Provenance, Sample, ask
from streams.stream import Stream, Task
from streams.world import random_scene, render

WARM_UP = 5
LIMIT = 1.05


def samples(count: int) -> list[Sample]:
    generator = np.random.default_rng(0)
    scenes = [random_scene(generator) for _ in range(count)]
    return [
        ask(
            id=f"scene-{i}",
            question="What is in the picture?",
            answer=" and ".join(thing.name for thing in scene.things),
            image=Image(source=render(scene)),
            provenance=Provenance(source="world", split="train", item=str(i)),
        )
        for i, scene in enumerate(scenes)
    ]


def measure(loaded: Loaded, *, steps: int, tuning: str) -> list[tuple[float, float]]:
    """(seconds of our step, seconds of the hand-written step), for every step."""
    data = samples(256)
    stream = Stream(name="benchmark", tasks=(Task(name="scenes", train=data, test=data[:1]),))
    settings = TrainSettings(steps=steps + WARM_UP, batch_size=16, learning_rate=1e-4)
    strategy = SequentialFull() if tuning == "full" else SequentialLora()
    learner = Learner(strategy, loaded, stream, settings, seed=0)
    batcher = Batcher(loaded.processor, encode_images=learner.batcher._encode_images)
    times: list[tuple[float, float]] = []
    hand: dict[str, Any] = {}
    mark = time.perf_counter()

    def begin() -> None:
        twin = copy.deepcopy(loaded.model).train()
        weights = [w for w in twin.parameters() if w.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0, fused=True)
        hand.update(model=twin, weights=weights, optimizer=optimizer)

    def step(chosen: tuple[Sample, ...]) -> None:
        model = hand["model"]
        weight = hand["weights"][0]
        hand["optimizer"].zero_grad()
        batch = to_model(batcher.training(chosen), device=weight.device, dtype=model.dtype)
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hand["weights"], 1.0)
        hand["optimizer"].step()
        loss.item()

    def report(event: dict[str, Any]) -> None:
        nonlocal mark
        ours = time.perf_counter() - mark
        if not hand:
            begin()
        start = time.perf_counter()
        assert learner._trainer is not None
        step(learner._trainer.mb_x.samples)
        times.append((ours, time.perf_counter() - start))
        mark = time.perf_counter()

    with learner:
        learner.train_stage(1, report)
    return times[WARM_UP:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", nargs="?", default="nano")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tuning", choices=["full", "lora"], default="full")
    chosen = parser.parse_args()
    times = measure(load(chosen.model), steps=chosen.steps, tuning=chosen.tuning)
    ours, hand = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(a / b for a, b in times)
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    ratio = statistics.median(ratios)
    print(f"clmm {ours * 1e3:.2f} ms, by hand {hand * 1e3:.2f} ms, {len(times)} pairs")
    print(f"ratio {ratio:.3f} (middle half {low:.3f} to {high:.3f}); limit {LIMIT}")


if __name__ == "__main__":
    main()
