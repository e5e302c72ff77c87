"""Pool -> Coreset: every method by the name it has in a configuration."""

from __future__ import annotations

from coretune.select.brief import Brief
from coretune.select.craig import Craig
from coretune.select.d2 import D2
from coretune.select.facility_location import FacilityLocation
from coretune.select.grace import Grace
from coretune.select.gradient_norm import GradientNorm
from coretune.select.gradmatch import GradMatch
from coretune.select.gtp import Gtp
from coretune.select.ifd import Ifd
from coretune.select.kcenter import KCenter
from coretune.select.less import Less
from coretune.select.loss import Loss
from coretune.select.loss_drop import LossDrop
from coretune.select.random import Random
from coretune.select.rds import Rds

SELECTORS: dict[str, type] = {
    selector.name: selector
    for selector in (
        Brief,
        Craig,
        D2,
        FacilityLocation,
        Grace,
        GradientNorm,
        GradMatch,
        Gtp,
        Ifd,
        KCenter,
        Less,
        Loss,
        LossDrop,
        Random,
        Rds,
    )
}
