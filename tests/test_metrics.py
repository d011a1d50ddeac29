"""The continual metrics against every published matrix and number, and against their identities."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from streams.metrics import continual_metrics, gains, stage_averages

GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "golden_matrices.json").read_text())
LONG = GOLDEN["olora_repo/long_olora"]
LONG_COUNTS = (
    7600, 7600, 7600, 56, 100, 7600, 277, 7600, 872, 7600, 7600, 7600, 4848, 3270, 638,
)  # fmt: skip
NAMES = {
    "last", "last_pooled", "learning_accuracy", "mean_average_accuracy", "backward_transfer",
    "backward_transfer_over_t", "forgetting_chaudhry", "forgetting_with_last",
    "forgetting_first_minus_last", "forward_transfer", "unseen_transfer",
}  # fmt: skip


def test_mcitlib_lora_ucit() -> None:
    matrix = GOLDEN["mcitlib_issue6_lora_ucit"]
    found = continual_metrics(matrix)
    published = [90.97, 91.49, 73.25667, 61.27, 63.678, 56.72667]
    assert stage_averages(matrix) == pytest.approx(published, abs=5e-6)
    assert found["last"] == pytest.approx(56.72667, abs=5e-6)
    assert found["learning_accuracy"] == pytest.approx(70.602, abs=5e-4)
    assert found["mean_average_accuracy"] == pytest.approx(72.899, abs=5e-4)
    assert found["backward_transfer"] == pytest.approx(-16.650, abs=5e-4)
    assert found["backward_transfer_over_t"] == pytest.approx(-13.875, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "last", "transfer", "average"),
    [("olora_order1", 78.3651, -1.180, 82.702), ("seqft_order1", 67.7664, -14.50, 75.947)],
)
def test_olora_order_1(name: str, last: float, transfer: float, average: float) -> None:
    found = continual_metrics(GOLDEN[name], counts=[7600] * 4)
    assert found["last_pooled"] == pytest.approx(last, abs=1e-4)
    assert found["last_pooled"] == pytest.approx(found["last"])
    assert found["backward_transfer"] == pytest.approx(transfer, abs=5e-3)
    assert found["mean_average_accuracy"] == pytest.approx(average, abs=5e-4)


def test_long_olora() -> None:
    found = continual_metrics(LONG["R"], counts=LONG_COUNTS)
    assert found["last"] == pytest.approx(72.175, abs=5e-4)
    assert found["last_pooled"] == pytest.approx(LONG["pooled_last"], abs=1e-4)
    assert found["learning_accuracy"] == pytest.approx(72.859, abs=5e-4)
    assert found["mean_average_accuracy"] == pytest.approx(67.825, abs=5e-4)
    assert found["backward_transfer"] == pytest.approx(-0.733, abs=5e-4)
    assert found["forgetting_chaudhry"] == pytest.approx(1.744, abs=5e-4)
    assert found["forgetting_with_last"] == pytest.approx(2.049, abs=5e-4)


@pytest.mark.parametrize(
    ("tasks", "last", "forgetting", "new"),
    [
        (15, 45.06, 11.62, 55.91),
        (15, 46.93, 9.72, 56.01),
        (15, 46.23, 10.19, 55.74),
        (15, 44.24, 12.29, 55.70),
        (15, 46.99, 8.06, 54.51),
        (4, 78.99, 27.45, 99.58),  # published as 27.59, which no matrix can give
        (6, 69.66, 7.45, 75.87),
    ],
)
def test_published_triples(tasks: int, last: float, forgetting: float, new: float) -> None:
    """A matrix with the published Avg and New has the published forgetting."""
    matrix = [[new] * stage for stage in range(1, tasks + 1)]
    matrix[-1] = [new - tasks * (new - last) / (tasks - 1)] * (tasks - 1) + [new]
    found = continual_metrics(matrix)
    assert found["last"] == pytest.approx(last)
    assert found["learning_accuracy"] == pytest.approx(new)
    assert found["forgetting_first_minus_last"] == pytest.approx(forgetting, abs=0.016)


@pytest.mark.parametrize("tasks", [2, 5, 9])
def test_identities(tasks: int) -> None:
    matrix = np.random.default_rng(tasks).random((tasks, tasks))
    found = continual_metrics(matrix, R0=matrix[0], counts=[3] * tasks, baselines=[0.0] * tasks)
    assert set(found) >= NAMES
    values = {name: value for name, value in found.items() if value is not None}
    assert values.keys() == found.keys()
    gap = values["last"] - values["learning_accuracy"]
    assert values["backward_transfer"] == pytest.approx(tasks / (tasks - 1) * gap)
    assert values["backward_transfer_over_t"] == pytest.approx(gap)
    assert values["forgetting_first_minus_last"] == -values["backward_transfer"]
    assert values["forgetting_with_last"] == pytest.approx(
        np.mean([matrix[j:, j].max() - matrix[-1, j] for j in range(tasks - 1)])
    )
    assert values["forgetting_chaudhry"] == pytest.approx(
        np.mean([matrix[j:-1, j].max() - matrix[-1, j] for j in range(tasks - 1)])
    )
    assert values["forward_transfer"] == pytest.approx(np.mean(np.diag(matrix, 1)))


def test_transfer_to_tasks_not_yet_seen() -> None:
    matrix = [[0.8, 0.3, 0.1], [0.7, 0.9, 0.4], [0.6, 0.8, 0.9]]
    found = continual_metrics(matrix, R0=[0.1, 0.2, 0.2], baselines=[0.0, 0.1, 0.0])
    assert found["forward_transfer"] == pytest.approx(((0.3 - 0.1) + (0.4 - 0.0)) / 2)
    assert found["forward_transfer_over_base"] == pytest.approx(((0.3 - 0.2) + (0.4 - 0.2)) / 2)
    assert gains(matrix, [0.1, 0.2, 0.2]) == [pytest.approx(0.0), pytest.approx(0.2), None]
    assert found["unseen_transfer"] == pytest.approx(0.1)


def test_a_run_cut_short_has_unseen_tasks_at_its_last_stage_too() -> None:
    found = continual_metrics([[0.8, 0.3, 0.1], [0.7, 0.9, 0.4]], R0=[0.0, 0.0, 0.2])
    assert found["last"] == pytest.approx(0.8)
    assert found["unseen_transfer"] == pytest.approx((0.1 + 0.2) / 2)


def test_what_is_absent_is_none() -> None:
    found = continual_metrics([[1.0], [0.5, 1.0]])
    absent = {"last_pooled", "forward_transfer", "forward_transfer_over_base", "unseen_transfer"}
    assert {name for name, value in found.items() if value is None} == absent
    one = continual_metrics([[0.5]], R0=[0.1], counts=[7], baselines=[0.0])
    present = {"last", "last_pooled", "learning_accuracy", "mean_average_accuracy"}
    assert {name for name, value in one.items() if value is not None} == present
    short = continual_metrics([[1.0, 0.2], [0.5, 1.0]], R0=[0.1], counts=[1], baselines=[0.1])
    assert {name for name, value in short.items() if value is None} == absent
    gap = continual_metrics([[1.0, None, 0.1], [0.5, 1.0, math.nan], [1, 1, 1]], R0=[0, 0, 0])
    assert gap["unseen_transfer"] is None
    assert gap["forward_transfer_over_base"] is None


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([], "no row"),
        ([[]], "task 1 after stage 1"),
        ([[1.0], [0.5]], "task 2 after stage 2"),
        ([[1.0], [None, 1.0]], "task 1 after stage 2"),
        ([[1.0], [0.5, math.nan]], "task 2 after stage 2"),
    ],
)
def test_a_missing_lower_cell_is_an_error(matrix: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        continual_metrics(matrix)
