"""Averaging by gossip: Metropolis weights, and how many rounds they need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from hffm_flower.routes import Link


def metropolis(nodes: Sequence[int], links: Iterable[Link]) -> dict[Link, float]:
    r"""Share that each node sends to each neighbour, for the links among ``nodes``.

    :math:`W_{ij} = 1 / (1 + \max(d_i, d_j))`; what a node does not send it keeps, so that W
    is symmetric and doubly stochastic.

    Source: Metropolis weights, Xiao, Boyd & Lall 2005, "A scheme for robust distributed
    sensor fusion based on average consensus".
    """
    inside = set(nodes)
    among = [(i, j) for i, j in sorted(links) if i in inside and j in inside]
    degree = dict.fromkeys(nodes, 0)
    for i, _ in among:
        degree[i] += 1
    return {(i, j): 1.0 / (1 + max(degree[i], degree[j])) for i, j in among}


def rounds(nodes: Sequence[int], weights: Mapping[Link, float], accuracy: float) -> int:
    r"""Rounds after which :math:`\|x - \bar x\| \le \epsilon \|x(0) - \bar x\|`.

    0 for one node; 1 if :math:`\rho \le \epsilon`; else
    :math:`\lceil \log\epsilon / \log\rho \rceil` with
    :math:`\rho = \max(|\lambda_2|, |\lambda_N|)` of the weights, the convergence factor of
    Xiao & Boyd 2004, "Fast linear iterations for distributed averaging".

    Args:
        nodes: One connected component.
        weights: From `metropolis`.
        accuracy: :math:`\epsilon` in (0, 1).
    """
    if len(nodes) < 2:
        return 0
    place = {node: n for n, node in enumerate(nodes)}
    matrix = np.zeros((len(nodes), len(nodes)))
    for (i, j), share in weights.items():
        matrix[place[i], place[j]] = share
    matrix += np.diag(1.0 - matrix.sum(axis=1))
    eigenvalues = np.linalg.eigvalsh(matrix)
    rho = max(abs(float(eigenvalues[0])), abs(float(eigenvalues[-2])))
    return 1 if rho <= accuracy else math.ceil(math.log(accuracy) / math.log(rho))
