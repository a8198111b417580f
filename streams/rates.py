"""Every rate, declared once: what it divides, when it is judged, what is good, what to do where it is not.

The law: a rate has the numerator and the denominator of one view. API, page, terminal and dashboards are made
of this list; the recording rules and the table of the documentation are held to it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import ge, gt
from typing import Literal

from callfunnel.schemas.events import STAGES
from callfunnel.streams.measures import EVENTS, LEADS
from callfunnel.streams.windows import DUE, DUE_SECONDS, MET

Band = Literal["critical", "watch", "standard", "very good"]

Bands = tuple[tuple[Band, Callable[[float, float], bool], float], ...]
"""Best first: a value has the first band whose comparison with the bound holds; critical where none does."""

Terms = Mapping[str, int]
"""Numbers by their names in `FIGURES`, each with the sign with which it counts."""

OBSERVED = (4, 5)
"""A stage is measured where its leads have at least this share of events of the stage: four of five.

A later event proves that a lead passed a stage, so a system that sends `won` and never `qualified` shows a
close rate of 100 % that nobody observed. Each event is of one lead: fewer events than leads prove how many
leads have none, at least.
"""

Observed = Mapping[str, tuple[int, int]]
"""Leads and events of each stage."""

_STAGE_OF = dict(zip((*EVENTS, *LEADS), (*STAGES, *STAGES), strict=True))


@dataclass(frozen=True)
class Rate:
    """A numerator and a denominator. Without a standard it has no band."""

    name: str
    title: str
    view: Literal["activity", "leads"]
    definition: str
    """What is divided, in words."""
    numerator: Terms
    denominator: Terms
    standard: Bands = ()
    enough: int = 0
    """The least denominator that is judged: one call more or less of fewer makes the rate any band."""
    when_red: tuple[str, str] = ("", "")
    """What it says when the rate is below its standard, and what to do first."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that it counts."""
        columns = (*self.numerator, *self.denominator)
        return tuple(_STAGE_OF[column] for column in columns if column in _STAGE_OF)

    def why_unjudged(self, numerator: int, denominator: int, observed: Observed) -> str | None:
        """Why there is no band; None where there is one, or no standard."""
        if not self.standard:
            return None
        if not denominator:
            return "nothing to measure yet"
        if denominator < self.enough:
            return f"too few: judged from {self.enough}"
        few, of = OBSERVED
        for stage in self.stages:
            leads, events = observed[stage]
            if of * events < few * leads:
                missing = f"{leads - events:,} of {leads:,} {stage} leads have no event of their own"
                return f"not measured: {missing}"
        if numerator > denominator:
            above, below = self.stages or (*self.numerator, *self.denominator)
            return f"above 100%: more {above} than {below}"
        return None

    def band(self, numerator: int, denominator: int, observed: Observed) -> Band | None:
        """The band by the standard; None where `why_unjudged` says why, or where there is no standard."""
        if not self.standard or self.why_unjudged(numerator, denominator, observed):
            return None
        value = numerator / denominator
        return next((name for name, holds, bound in self.standard if holds(value, bound)), "critical")


def total(terms: Terms, figures: Mapping[str, int]) -> int:
    """The terms with these numbers."""
    return sum(sign * figures[name] for name, sign in terms.items())


RATES: Mapping[str, Rate] = {
    rate.name: rate
    for rate in (
        Rate(
            "reach",
            "Reach",
            "activity",
            "(reached − immediate hang-ups − calls from leads − repeated reaches) ÷ dials",
            {"events_reached": 1, "dm_hangups": -1, "inbound_reached": -1, "reach_repeated": -1},
            {"events_dialed": 1},
            standard=(("very good", ge, 0.30), ("standard", ge, 0.15), ("watch", gt, 0.10)),
            enough=20,
            when_red=(
                "Too few dials reach whoever decides.",
                "Look at calling hours, caller numbers and the list. Many immediate hang-ups? Listen to the "
                "first ten seconds of calls.",
            ),
        ),
        Rate(
            "qualification",
            "Qualification",
            "leads",
            "qualified ÷ reached",
            {"leads_qualified": 1},
            {"leads_reached": 1},
            standard=(("standard", ge, 0.50),),
            enough=10,
            when_red=(
                "The lead list or the customer profile is poor.",
                "Compare the sources: stop the worst, and find what the best one has.",
            ),
        ),
        Rate(
            "close",
            "Close",
            "leads",
            "won ÷ qualified",
            {"leads_won": 1},
            {"leads_qualified": 1},
            standard=(("standard", ge, 0.50),),
            enough=10,
            when_red=(
                "Product, market, channel, offer or pitch is at fault.",
                "One campaign: its offer. One team: its pitch. All: the market.",
            ),
        ),
        Rate("conversion", "Leads to wins", "leads", "won ÷ created", {"leads_won": 1}, {"leads_created": 1}),
        Rate(
            "response",
            f"Called in {DUE_SECONDS // 60} min",
            "leads",
            f"called within {DUE_SECONDS // 60} minutes ÷ due",
            {MET: 1},
            {DUE: 1},
            standard=(("standard", ge, 0.90), ("watch", ge, 0.80)),
            enough=10,
            when_red=(
                "New leads wait, and each minute costs conversations.",
                "Put people on new leads now, the newest first.",
            ),
        ),
    )
}
