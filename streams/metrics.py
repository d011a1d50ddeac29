"""Metrics of continual learning, from the matrix of scores, each under its own name.

Where the field disagrees (does backward transfer divide by T or T − 1? does forgetting look at
the last row?) every definition is here by name and none is the silent default. Knows numbers
alone. R[i][j] is the score on task j after stage i, both counted from 1; R0 is the base model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np

Row = Sequence[float | None] | np.ndarray
Matrix = Sequence[Row] | np.ndarray
_Cells = list[list[float | None]]


def continual_metrics(
    R: Matrix,  # noqa: N803  (the field's name)
    R0: Row | None = None,  # noqa: N803
    counts: Row | None = None,
    baselines: Row | None = None,
) -> dict[str, float | None]:
    """Every metric by its exact definition, in the caller's units.

    `R` leaves out the base, which is `R0`. Row i holds at least i + 1 cells counted from 0; the
    cells above the diagonal are unseen tasks and may be missing, None or NaN. `counts` are the
    test items of each task, `baselines` the scores of a random initialisation.

    - `last` = mean_j R[T][j]; also MFN, AP. `last_pooled` weights by `counts`.
    - `learning_accuracy` = mean_i R[i][i]; also MFT, New.
    - `mean_average_accuracy` = mean_i mean_{j≤i} R[i][j] (MCITlib).
    - `backward_transfer` = Σ_{j<T} (R[T][j] − R[j][j]) / (T − 1) (Lopez-Paz and Ranzato 2017);
      `backward_transfer_over_t` is the same sum over T (CoIN).
    - `forgetting_chaudhry` = mean_{j<T} (max_{j≤l<T} R[l][j] − R[T][j]) (Chaudhry et al. 2018);
      `forgetting_with_last` takes the maximum over l ≤ T (Mammoth);
      `forgetting_first_minus_last` = −`backward_transfer` (Avalanche).
    - `forward_transfer` = mean_{j>1} (R[j−1][j] − baselines[j]);
      `forward_transfer_over_base` puts R0, the zero-shot scores, in the place of `baselines`.
    - `unseen_transfer` = mean over the stages that leave tasks unseen of
      mean_{u unseen} (R[i][u] − R0[u]); below 0 is negative transfer.

    A metric whose cells or arguments are absent is None. Raises ValueError for a missing cell on
    or below the diagonal.
    """
    rows = [_cells(row) for row in R]
    if not rows:
        raise ValueError("R: it has no row; row 1 must hold the score on task 1 after stage 1")
    seen = [_seen(row, stage) for stage, row in enumerate(rows)]
    end, first = seen[-1], [row[-1] for row in seen]
    total = len(seen)
    shifts = [end[j] - first[j] for j in range(total - 1)]
    peaks = [max(seen[i][j] for i in range(j, total - 1)) for j in range(total - 1)]
    base = _cells(R0) if R0 is not None else []
    return {
        "last": fmean(end),
        "last_pooled": _pooled(end, _cells(counts) if counts is not None else []),
        "learning_accuracy": fmean(first),
        "mean_average_accuracy": fmean(stage_averages(rows)),
        "backward_transfer": _mean(shifts),
        "backward_transfer_over_t": sum(shifts) / total if shifts else None,
        "forgetting_chaudhry": _mean([p - e for p, e in zip(peaks, end, strict=False)]),
        "forgetting_with_last": _mean([max(p, e) - e for p, e in zip(peaks, end, strict=False)]),
        "forgetting_first_minus_last": _mean([-shift for shift in shifts]),
        "forward_transfer": _forward(rows, _cells(baselines) if baselines is not None else []),
        "forward_transfer_over_base": _forward(rows, base),
        "unseen_transfer": _unseen(rows, base),
    }


def stage_averages(R: Matrix) -> list[float]:  # noqa: N803
    """mean_{j≤i} R[i][j] for each stage i: the average over the tasks seen so far."""
    return [fmean(_seen(_cells(row), stage)) for stage, row in enumerate(R)]


def gains(R: Matrix, R0: Row) -> list[float | None]:  # noqa: N803
    """The unseen-task column: mean_{u unseen} (R[i][u] − R0[u]) for each stage i, else None."""
    rows, base = [_cells(row) for row in R], _cells(R0)
    width = max(map(len, rows), default=0)
    return [
        _mean_gap([(_at(row, u), _at(base, u)) for u in range(stage + 1, width)])
        for stage, row in enumerate(rows)
    ]


def _cells(row: Row) -> list[float | None]:
    """Plain floats; None where a cell is None or NaN."""
    values = [None if cell is None else float(cell) for cell in row]
    return [None if value is None or math.isnan(value) else value for value in values]


def _seen(row: list[float | None], stage: int) -> list[float]:
    found = [cell for cell in row[: stage + 1] if cell is not None]
    if len(found) <= stage:
        at = next(j for j in range(stage + 1) if _at(row, j) is None)
        raise ValueError(
            f"R: the score on task {at + 1} after stage {stage + 1} is missing; "
            f"row {stage + 1} must hold at least {stage + 1} cells"
        )
    return found


def _at(row: list[float | None], index: int) -> float | None:
    return row[index] if index < len(row) else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _mean_gap(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """mean (left − right); None when there is no pair or one is incomplete."""
    gaps = [a - b for a, b in pairs if a is not None and b is not None]
    return fmean(gaps) if gaps and len(gaps) == len(pairs) else None


def _pooled(end: list[float], counts: list[float | None]) -> float | None:
    weights = [count for count in counts[: len(end)] if count is not None and count >= 0]
    if len(weights) < len(end) or not 0 < sum(weights) < math.inf:
        return None
    return fmean(end, weights)


def _forward(rows: _Cells, baselines: list[float | None]) -> float | None:
    return _mean_gap([(_at(rows[j - 1], j), _at(baselines, j)) for j in range(1, len(rows))])


def _unseen(rows: _Cells, base: list[float | None]) -> float | None:
    width = max(map(len, rows))
    stages = gains(rows, base)[: width - 1]
    known = [gain for gain in stages if gain is not None]
    return fmean(known) if known and len(known) == len(stages) else None
