"""Objectives of language-model reinforcement learning, as pure functions on arrays.

Every objective on sampled tokens has exactly the gradient of

    L = -Agg[sg(c) log π],

with stop-gradient sg and a coefficient c per token. The functions give c:

    from jaxrl.objectives import surrogate, token_mean, topr

    c = topr(log_prob, behaviour, advantage, mask)
    loss = surrogate(log_prob, c, mask, token_mean)

Arguments that all have in common, for B responses of up to T tokens:

    log_prob: log π(a_t | prefix) [B, T] of the sampled tokens under the policy that is updated.
    behaviour: log μ(a_t | prefix) [B, T] when the response was sampled.
    advantage: [B, 1], one number per response, or [B, T].
    mask: [B, T] bool, the tokens of the response.

All other numbers may be traced. Nothing here depends on the rest of jaxrl; any trainer in JAX can
use the functions. Where a rule of a paper could not be verified, the docstring says so.
"""

from jaxrl.objectives.advantages import (
    batch_normalised,
    group_mean,
    group_normalised,
    log_partition,
    red_drop,
    sign,
    soft_advantage,
)
from jaxrl.objectives.aggregate import (
    log_ratio,
    log_sequence_ratio,
    sequence_mean,
    sequence_sum,
    surrogate,
    token_mean,
)
from jaxrl.objectives.distillation import jsd, k3, kl, lightning_opd, opd, pi_distill, scope_opd
from jaxrl.objectives.offpolicy import asymre, opmd, opmd_token, red_weight, reinforce, topr
from jaxrl.objectives.perturbation import perturb
from jaxrl.objectives.ratios import (
    bapo,
    bapo_bounds,
    cispo,
    gspo,
    minpro,
    ppo,
    rec,
    rec_is,
    remix,
    sequence_is,
)
from jaxrl.objectives.traces import (
    chord,
    chord_weight,
    first_error,
    otr,
    splice,
    suffix_mask,
)
from jaxrl.objectives.tracker import (
    SpoTracker,
    spo_begin,
    spo_forgetting,
    spo_priority,
    spo_track,
)

__all__ = [
    "SpoTracker",
    "asymre",
    "bapo",
    "bapo_bounds",
    "batch_normalised",
    "chord",
    "chord_weight",
    "cispo",
    "first_error",
    "group_mean",
    "group_normalised",
    "gspo",
    "jsd",
    "k3",
    "kl",
    "lightning_opd",
    "log_partition",
    "log_ratio",
    "log_sequence_ratio",
    "minpro",
    "opd",
    "opmd",
    "opmd_token",
    "otr",
    "perturb",
    "pi_distill",
    "ppo",
    "rec",
    "rec_is",
    "red_drop",
    "red_weight",
    "reinforce",
    "remix",
    "scope_opd",
    "sequence_is",
    "sequence_mean",
    "sequence_sum",
    "sign",
    "soft_advantage",
    "splice",
    "spo_begin",
    "spo_forgetting",
    "spo_priority",
    "spo_track",
    "suffix_mask",
    "surrogate",
    "token_mean",
    "topr",
]
