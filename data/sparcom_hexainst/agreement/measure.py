"""Agreement of two annotators: raw agreement, Cohen's kappa with a bootstrap interval, and the confusion matrix.

kappa = (p_o − p_e) / (1 − p_e) (Cohen 1960): p_o is the observed proportion of agreement, p_e the proportion expected
by chance from the two annotators' marginal frequencies. The estimate is scikit-learn's. Kappas of resamples are
computed from all matrices at once; a test compares the two. If both annotators gave one and the same value throughout,
p_e is 1 and kappa is undefined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparcom_hexainst.agreement.schema import AgainstData, CriterionAgreement
from sparcom_hexainst.annotation.criteria import CATEGORY, criteria_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sparcom_hexainst.annotation.make import DataSet
    from sparcom_hexainst.annotation.read import Pair
    from sparcom_hexainst.annotation.schema import Answers

RESAMPLES = 10_000
LEVEL = (2.5, 97.5)  # percentiles: 95 %
# Resamples with undefined kappa are dropped; if too many are, the rest gives no valid interval.
LEAST_DEFINED = 0.95
_CELLS = 4_000_000  # cells of the matrices in memory at a time


def agree(pair: Pair, *, seed: int = 0) -> tuple[CriterionAgreement, ...]:
    """Return the agreement of two annotators per criterion, in the order of the form."""
    results = []
    for criterion in criteria_for(pair.first.categories):
        first = [item.answers[criterion.name] or "" for item in pair.first.items]
        second = [pair.second.by_id[item.id].answers[criterion.name] or "" for item in pair.first.items]
        results.append(agreement(criterion.name, first, second, criterion.values, seed=seed))
    return tuple(results)


def agree_with_data(pair: Pair, data: DataSet, *, seed: int = 0) -> tuple[AgainstData, ...]:
    """Return the agreement of each annotator with the data's categories; items without a category are left out."""
    if not data.categories:
        return ()
    return tuple(_with_data(answers, data, seed) for answers in (pair.first, pair.second))


def _with_data(answers: Answers, data: DataSet, seed: int) -> AgainstData:
    items = [item for item in answers.items if data.by_id[item.id].category]
    given = [data.by_id[item.id].category for item in items]
    said = [item.answers[CATEGORY] or "" for item in items]
    (criterion,) = [criterion for criterion in criteria_for(data.categories) if criterion.name == CATEGORY]
    result = agreement(CATEGORY, given, said, criterion.values, seed=seed)
    return AgainstData(annotator=answers.annotator, agreement=result)


def agreement(
    criterion: str, first: Sequence[str], second: Sequence[str], values: Sequence[str], *, seed: int = 0
) -> CriterionAgreement:
    """Return the agreement of two sequences of values; `values` orders the matrix, which holds those that occur."""
    used = [value for value in values if value in first or value in second]
    table = confusion(first, second, used)
    kappa, interval, note = _kappa(first, second, table, seed)
    agreed = int(np.trace(table))
    return CriterionAgreement(
        criterion=criterion,
        items=len(first),
        agreed=agreed,
        raw_agreement=agreed / len(first),
        kappa=kappa,
        interval=interval,
        note=note,
        values=tuple(used),
        table=tuple(tuple(int(count) for count in row) for row in table),
    )


def confusion(first: Sequence[str], second: Sequence[str], values: Sequence[str]) -> NDArray[np.int64]:
    """Return the confusion matrix, int64 (values of the first, values of the second)."""
    index = {value: number for number, value in enumerate(values)}
    table = np.zeros((len(values), len(values)), dtype=np.int64)
    np.add.at(table, ([index[value] for value in first], [index[value] for value in second]), 1)
    return table


def _kappa(
    first: Sequence[str], second: Sequence[str], table: NDArray[np.int64], seed: int
) -> tuple[float | None, tuple[float, float] | None, str]:
    """Return the estimate, its interval, and the reason if one of them is missing."""
    if len(table) == 1:
        return (
            None,
            None,
            "both gave one and the same value throughout: expected agreement is 1, kappa is undefined",
        )
    from sklearn.metrics import cohen_kappa_score

    kappa = float(cohen_kappa_score(list(first), list(second)))
    resampled = bootstrap(table, seed=seed)
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < LEAST_DEFINED * len(resampled):
        left = 1 - len(defined) / len(resampled)
        return kappa, None, f"no interval: kappa is undefined in {left:.0%} of the resamples, which hold only one value"
    low, high = np.percentile(defined, LEVEL)
    return kappa, (float(low), float(high)), ""


def bootstrap(table: NDArray[np.int64], *, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Return kappas of resamples of the items with replacement, float64 (resamples,); NaN where undefined."""
    items, size = int(table.sum()), len(table)
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS // table.size)
    found = []
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = generator.multinomial(items, table.ravel() / items, size=count).reshape(count, size, size)
        found.append(kappas(drawn))
    return np.concatenate(found)


def kappas(tables: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return Cohen's kappa per matrix of (count, values, values), float64 (count,); NaN where undefined."""
    items = tables.sum(axis=(1, 2))
    same = np.trace(tables, axis1=1, axis2=2) * items
    chance = (tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1)
    room = items * items - chance
    result = np.full(len(tables), np.nan)
    np.divide(same - chance, room, out=result, where=room > 0)
    return result
