"""Fewer cases than the full product of a test's parameters."""

from itertools import combinations, product
from typing import Any

import pytest


def pairwise(**factors: Any) -> pytest.MarkDecorator:
    """Parametrize a test so that every two values of two parameters meet in at least one case.

    Greedy: each case takes the combination that has the most pairs not met yet, the first of equal ones.
    """
    names, cases = list(factors), list(product(*(range(len(list(values))) for values in factors.values())))
    pairs = {case: set(combinations(enumerate(case), 2)) for case in cases}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        missing -= pairs[best]
        chosen.append(tuple(list(factors[name])[index] for name, index in zip(names, best, strict=True)))
    return pytest.mark.parametrize(names, chosen)
