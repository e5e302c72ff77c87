"""What is certain of a coreset's gradient error, whatever way it was chosen: BRIEF, Section 4 and Eqs. 12–20.

With a(i) the pick that represents row i, w_j = #{i : a(i) = j} and d^KN, d^IF true distances

    S_KN = Σ_i d^KN_{i,a(i)}     S_IF likewise        of the assignment
    B_KN = Σ_i min_{j∈C} d^KN_ij B_IF likewise        each space for itself; B <= S
    e_KN = ‖Σ_i g^KN_i − Σ_j w_j g^KN_j‖, e_IF, e_SFT (g^SFT = g^KN + g^IF)

the triangle inequality gives  e_KN <= S_KN,  e_IF <= S_IF,  e_SFT <= S_KN + S_IF  for any assignment, and
with ε̂ = S_KN/α + S_IF/(1−α)  also  S_KN <= α ε̂,  S_IF <= (1−α) ε̂,  S_KN + S_IF <= max(α, 1−α) ε̂.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coretune.select.spaces import Space, paired
from coretune.types import Array, Rows


@dataclass(frozen=True)
class Certificate:
    """Sums over the rows, in the units of the features.

    B_KN, B_IF, S_KN, S_IF      float
    e_KN, e_IF, e_SFT           float
    angle                       degrees between the two error vectors; 90 where one of them is 0
    distance_kn, distance_if    (n,) float64, each row's d^KN and d^IF to its pick
    """

    B_KN: float
    B_IF: float
    S_KN: float
    S_IF: float
    e_KN: float
    e_IF: float
    e_SFT: float
    angle: float
    distance_kn: Array
    distance_if: Array

    def figures(self, alpha: float | None) -> dict[str, float]:
        """Every sum by name, the bounds that alpha gives, and certificate = (S_KN + S_IF)/N.

        At the endpoints ε̂ is one space's alone and bounds nothing else: its bounds are left out.
        """
        named = ("B_KN", "B_IF", "S_KN", "S_IF", "e_KN", "e_IF", "e_SFT", "angle")
        found = {name: float(getattr(self, name)) for name in named}
        found["certificate"] = (self.S_KN + self.S_IF) / len(self.distance_kn)
        if alpha is not None and 0.0 < alpha < 1.0:
            error = self.S_KN / alpha + self.S_IF / (1.0 - alpha)
            found |= {"error": error, "bound_KN": alpha * error, "bound_IF": (1.0 - alpha) * error}
            found["bound_SFT"] = max(alpha, 1.0 - alpha) * error
        return found


def certify(kn: Space, if_: Space, chosen: Rows, represented_by: Array, least: Array) -> Certificate:
    """The certificate of an assignment, from the features themselves.

    chosen       (K,)    rows of the spaces
    represented_by  (n,)    position in `chosen` of each row's a(i)
    least        (2, n)  each row's distance to its nearest pick in KN and in IF
    """
    picks = chosen[represented_by]
    distance_kn, distance_if = paired(kn, picks), paired(if_, picks)
    represents = np.bincount(represented_by, minlength=len(chosen))
    error_kn, error_if = (_error(space, chosen, represents) for space in (kn, if_))
    e_kn, e_if = float(np.linalg.norm(error_kn)), float(np.linalg.norm(error_if))
    cosine = float(error_kn @ error_if) / (e_kn * e_if) if e_kn > 0.0 and e_if > 0.0 else 0.0
    return Certificate(
        B_KN=float(np.minimum(least[0], distance_kn).sum(dtype=np.float64)),
        B_IF=float(np.minimum(least[1], distance_if).sum(dtype=np.float64)),
        S_KN=float(distance_kn.sum()),
        S_IF=float(distance_if.sum()),
        e_KN=e_kn,
        e_IF=e_if,
        e_SFT=float(np.linalg.norm(error_kn + error_if)),
        angle=float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))),
        distance_kn=distance_kn,
        distance_if=distance_if,
    )


def _error(space: Space, chosen: Rows, represents: Array) -> Array:
    """(d,) float64 Σ_i x_i − Σ_j w_j x_j."""
    weight = np.ones(space.n)
    weight[chosen] -= represents
    error = np.zeros(space.d)
    for at in space.slices():
        error += weight[at] @ space.block(at).astype(np.float64)
    return error
