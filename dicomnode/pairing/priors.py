"""Chooses what to fetch from a peer for a series that has no partner here, by the rules that pair what is here.

Flow: send > database/priors > [priors] > pairing/service > database/queries > send
Never: a socket, a database, a clock; more than one prior for a series at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dicomnode.database.priors import Prior
from dicomnode.database.series import IdentifiedSeries
from dicomnode.pairing.matches import (
    FIXED_RULES,
    MOVING_RULES,
    NEARNESS_RULES,
    Rank,
    judge,
    match,
    name_rule,
    rank_moving,
)
from dicomnode.settings import PairingSettings

# Some archives do not describe a series, and what is fetched turns out to be a localizer: then the next best is.
FETCHES_AT_MOST = 3
# From the end of a fetch until what it brought is indexed.
ARRIVES_WITHIN_S = 60.0
# A peer describes a series less than its instances do: rules that need those decide nothing.
_RULES = {
    "MR": (*FIXED_RULES, "first peer by name"),
    "PT": (*NEARNESS_RULES, *MOVING_RULES, "first peer by name"),
}


@dataclass(frozen=True)
class PriorDecision:
    """What becomes of one found series, and by which rule."""

    prior: Prior
    state: Literal["chosen", "lost", "refused"]
    reason: str


@dataclass(frozen=True)
class _Seen:
    """A found series from the one that has no partner: why it cannot be that, or its place in the order."""

    prior: Prior
    refusal: str
    rank: Rank


def choose_prior(
    seeker: IdentifiedSeries, priors: Sequence[Prior], settings: PairingSettings
) -> tuple[PriorDecision, ...]:
    """Choose the best of what peers have for a series without a partner.

    Parameters
    ----------
    seeker : IdentifiedSeries
        An MR that needs a PET, or the reverse.
    priors : sequence of Prior
        All that were found for it, at every peer and in any order; those chosen or refused before stay what they are.
    settings : PairingSettings
        Window, site's choices, and the largest prior that is fetched.

    Returns
    -------
    decisions : tuple of PriorDecision
        One for each of the others; at most one is `chosen`. All are `lost` when the series has a partner by now, or
        `FETCHES_AT_MOST` were fetched for it.
    """
    found = [prior for prior in priors if prior.state in ("found", "lost")]
    fetched = sum(prior.state == "chosen" for prior in priors)
    if seeker.row.state != "unpaired":
        return tuple(PriorDecision(prior, "lost", f"not needed: the series is {seeker.row.state}") for prior in found)
    if fetched >= FETCHES_AT_MOST:
        return tuple(PriorDecision(prior, "lost", f"{fetched} were fetched already") for prior in found)
    seen = [_see(seeker, prior, settings) for prior in found]
    fitting = sorted((one for one in seen if not one.refusal), key=lambda one: one.rank)
    rules = _RULES["MR" if seeker.row.modality == "PT" else "PT"]
    decisions = [PriorDecision(one.prior, "refused", one.refusal) for one in seen if one.refusal]
    for number, one in enumerate(fitting):
        if number:
            decisions.append(PriorDecision(one.prior, "lost", name_rule(fitting[0].rank, one.rank, rules)))
        else:
            why = "best by every rule" if fitting[1:] else "only candidate"
            decisions.append(PriorDecision(one.prior, "chosen", why))
    return tuple(decisions)


def _see(seeker: IdentifiedSeries, prior: Prior, settings: PairingSettings) -> _Seen:
    row = prior.series.row
    asking, offered = judge(seeker, settings), judge(prior.series, settings)
    if seeker.row.modality == "PT":
        seen = match(offered, asking, settings)
        rank: Rank = (*seen.rank, prior.peer)
    else:
        seen = match(asking, offered, settings)
        rank = (*seen.rank[: len(NEARNESS_RULES)], *rank_moving(offered), prior.peer)
    refusal = offered.judgement.refusal or seen.refusal
    if row.modality == seeker.row.modality:
        refusal = f"modality {row.modality}, another is needed"
    elif row.instance_count > settings.prior_instances:
        refusal = f"{row.instance_count} instances, at most {settings.prior_instances} are fetched"
    return _Seen(prior, refusal, rank)
