"""How far two people agree: raw agreement, Cohen's kappa, a bootstrap interval, and the table behind them.

kappa = (p_o − p_e) / (1 − p_e): p_o is the share of items on which both say the same, p_e the share that two people
would agree on by chance who each use the values as often as they did (Cohen 1960). The estimate is
scikit-learn's; those of resamples are computed from tables all at once, and a test holds the two together. Where both
gave one and the same value throughout, p_e is 1 and kappa is not defined. Knows nothing of files or verdicts.
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
# Resamples without a kappa are left out; where they are many, those that are left are no sample of anything.
LEAST_DEFINED = 0.95
_CELLS = 4_000_000  # of the tables that are in memory at a time


def agree(pair: Pair, *, seed: int = 0) -> tuple[CriterionAgreement, ...]:
    """The agreement of two annotators on each criterion, in the order of the form."""
    results = []
    for criterion in criteria_for(pair.first.categories):
        first = [item.answers[criterion.name] or "" for item in pair.first.items]
        second = [pair.second.by_id[item.id].answers[criterion.name] or "" for item in pair.first.items]
        results.append(agreement(criterion.name, first, second, criterion.values, seed=seed))
    return tuple(results)


def agree_with_data(pair: Pair, data: DataSet, *, seed: int = 0) -> tuple[AgainstData, ...]:
    """The agreement of each annotator with the data's categories; items that have none there are left out."""
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
    """Agreement of two sequences of values, item by item; `values` orders the table, which has those that occur."""
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
    """Counts of items, (values of the first, values of the second), int64."""
    index = {value: number for number, value in enumerate(values)}
    table = np.zeros((len(values), len(values)), dtype=np.int64)
    np.add.at(table, ([index[value] for value in first], [index[value] for value in second]), 1)
    return table


def _kappa(
    first: Sequence[str], second: Sequence[str], table: NDArray[np.int64], seed: int
) -> tuple[float | None, tuple[float, float] | None, str]:
    """The estimate, its interval, and why one of them is missing."""
    if len(table) == 1:
        return (
            None,
            None,
            "both gave one and the same value throughout: chance alone agrees, kappa is undefined",
        )
    from sklearn.metrics import cohen_kappa_score

    kappa = float(cohen_kappa_score(list(first), list(second)))
    resampled = bootstrap(table, seed=seed)
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < LEAST_DEFINED * len(resampled):
        left = 1 - len(defined) / len(resampled)
        return kappa, None, f"no interval: {left:.0%} of the resamples hold one value alone and have no kappa"
    low, high = np.percentile(defined, LEVEL)
    return kappa, (float(low), float(high)), ""


def bootstrap(table: NDArray[np.int64], *, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Kappas of as many items drawn with replacement, (resamples,) float64; NaN where one is not defined."""
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
    """Cohen's kappa of each of (count, values, values) tables, (count,) float64; NaN where it is not defined."""
    items = tables.sum(axis=(1, 2))
    same = np.trace(tables, axis1=1, axis2=2) * items
    chance = (tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1)
    room = items * items - chance
    result = np.full(len(tables), np.nan)
    np.divide(same - chance, room, out=result, where=room > 0)
    return result
