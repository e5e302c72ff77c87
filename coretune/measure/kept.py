"""What rows are compared with, measured once for as long as the weights stay."""

from __future__ import annotations

from collections.abc import Callable

from coretune.measure.meter import References

#: Given how references are measured, gives them: measured now, or those of a moment ago.
Once = Callable[[Callable[[], References]], References]


def anew(measure: Callable[[], References]) -> References:
    """Measured every time: nothing has to be known of when weights move."""
    return measure()


class Kept:
    """Measured at the first measurement of a moment, the same for those after it.

    moment  a number that changes whenever the weights do, as the number of steps. All measurements of one
            refresh are of one moment.

    Holds projected gradients, or embeddings, of the target's examples until others are measured.
    """

    def __init__(self, moment: Callable[[], int]) -> None:
        self.moment = moment
        self._held: tuple[int, References] | None = None

    @property
    def at_hand(self) -> bool:
        """Whether a measurement now would measure none."""
        return self._held is not None and self._held[0] == self.moment()

    def __call__(self, measure: Callable[[], References]) -> References:
        if self._held is None or not self.at_hand:
            self._held = self.moment(), measure()
        return self._held[1]
