"""A study as a script: two strategies on the default stream, three seeds each.

    python examples/study.py [--quick] [FOLDER]

`--quick` takes one seed and few items, to see that everything works.
"""

from __future__ import annotations

import argparse

from clmm import Experiment
from clmm.strategies.isolated_lora import IsolatedLora
from clmm.strategies.replay import Replay
from safety import standard_probes
from streams.sources.default import Default

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", nargs="?", default="runs/first-study")
parser.add_argument("--quick", action="store_true")
options = parser.parse_args()

study = Experiment(
    model="nano",
    stream=Default(train_items=16, test_items=10) if options.quick else "default",
    strategies=[Replay(budget=0.05), IsolatedLora(rank=8, router="prototype")],
    probes=standard_probes(items=4 if options.quick else None),
    seeds=[0] if options.quick else [0, 1, 2],
    train={"learning_rate": 2e-3, "epochs": 1},
)
result = study.run(options.folder)  # resumes what is there
print(result.table())  # last accuracy, backward transfer, refusal drift, with intervals
print(result.report())
