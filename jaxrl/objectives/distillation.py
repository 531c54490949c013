"""Distillation: coefficients of sampled tokens, and losses of whole distributions.

Shapes and names as in `jaxrl.objectives`; `teacher` is log π_T [B, T] of the sampled tokens.
Distributions are log-probabilities [..., A].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrl.objectives.aggregate import log_ratio, sequence_average
from jaxrl.types import Array

Number = Array | float
TINY = 1e-30  # probability below which a token does not count in divergences


def opd(log_prob: Array, behaviour: Array, teacher: Array, mask: Array) -> Array:
    """c = ρ_t (log π_T - log μ): on-policy distillation, KL(π ‖ π_T) as a reward per token.

    The rollouts are the student's own, μ its policy then (GKD, arXiv:2306.13649; as implemented in
    the code of Lightning OPD).
    """
    ratio = jnp.exp(log_ratio(log_prob, behaviour, mask))
    return ratio * (teacher - behaviour)


def lightning_opd(log_prob: Array, proximal: Array, teacher: Array, mask: Array) -> Array:
    """c = ρ_t (log π_T - log π_k), ρ_t = π / π_k, on fixed rollouts of the fine-tuned policy.

    Lightning OPD (arXiv:2604.13010): teacher log-probabilities are computed once, and the advantage
    takes the policy π_k at the start of the update. Fine-tuning and distillation need the same
    teacher.

    Args:
      proximal: log π_k [B, T] of the sampled tokens.
    """
    return opd(log_prob, proximal, teacher, mask)


def scope_opd(
    log_prob: Array,
    behaviour: Array,
    teacher: Array,
    mask: Array,
    correct: Array,
    group: int,
    tau: Number = 1.0,
) -> Array:
    """SCOPE's two paths (arXiv:2604.10688): c = w_S ρ_t for correct responses, and
    c = -w_T ρ_t (log π - log π_T) for wrong ones.

    w_S = softmax(-mean log π / τ) over the correct responses to a prompt: the student's least
    certain ones count most. w_T = softmax(mean log π_T / τ) over the wrong ones. The released code
    has the opposite sign of w_S, and weights that sum to the number of responses.

    Args:
      correct: [B, 1] bool.
      group: static, responses per prompt; rows of a group are adjacent.
    """
    ratio = jnp.exp(log_ratio(log_prob, behaviour, mask))
    student = _weights(-sequence_average(log_prob, mask) / tau, correct, group)
    guide = _weights(sequence_average(teacher, mask) / tau, ~correct, group)
    return jnp.where(correct, student * ratio, -guide * ratio * (log_prob - teacher))


def _weights(score: Array, chosen: Array, group: int) -> Array:
    """Softmax [B, 1] of scores [B, 1] over the chosen rows of each group; 0 for other rows."""
    score, chosen = score.reshape(-1, group), chosen.reshape(-1, group)
    score = jnp.where(chosen, score, -jnp.inf)
    best = jnp.max(score, -1, keepdims=True)
    weight = jnp.where(chosen, jnp.exp(score - jnp.where(jnp.isfinite(best), best, 0.0)), 0.0)
    return (weight / jnp.maximum(jnp.sum(weight, -1, keepdims=True), TINY)).reshape(-1, 1)


def kl(log_p: Array, log_q: Array) -> Array:
    """KL(p ‖ q) [...] of log-probabilities [..., A]; terms with p = 0 count 0."""
    p = jnp.exp(log_p)
    return jnp.sum(jnp.where(p > TINY, p * (log_p - log_q), 0.0), -1)


def jsd(student: Array, teacher: Array, beta: Number = 0.5) -> Array:
    """β KL(p_T ‖ m) + (1 - β) KL(p_S ‖ m) [...], with m = (1 - β) p_S + β p_T.

    The generalised Jensen-Shannon divergence of GKD (arXiv:2306.13649, eq. 1) and OPSD
    (arXiv:2601.18734). At its ends it is the limit divided by its weight: KL(p_T ‖ p_S) for β = 0
    and KL(p_S ‖ p_T) for β = 1, as in the code of OPSD.

    Args:
      student, teacher: log-probabilities [..., A]; the teacher is usually a constant.
    """
    beta = jnp.asarray(beta, student.dtype)
    inner = jnp.clip(beta, 1e-4, 1 - 1e-4)  # finite where the other branch is taken
    mixture = jnp.logaddexp(student + jnp.log1p(-inner), teacher + jnp.log(inner))
    between = inner * kl(teacher, mixture) + (1 - inner) * kl(student, mixture)
    ends = jnp.where(beta <= 0, kl(teacher, student), kl(student, teacher))
    return jnp.where((beta <= 0) | (beta >= 1), ends, between)


def k3(log_prob: Array, reference: Array) -> Array:
    """exp(d) - 1 - d ≥ 0 [...] with d = log π_ref - log π: an estimate of KL(π ‖ π_ref) at tokens
    of π (GRPO, arXiv:2402.03300, eq. 4)."""
    d = reference - log_prob
    return jnp.expm1(d) - d


def pi_distill(student: Array, teacher: Array, alpha: Number, beta: Number) -> tuple[Array, Array]:
    """The two KL terms [...] of π-Distill's loss, weighted (arXiv:2602.04942, eq. 2 to 5).

    J = α J_T + (1 - α) J_S with one network, the teacher being conditioned on privileged
    information. On prefixes of the teacher's responses

      J_T = E[R] - β KL(π_T ‖ sg π_S),  J_S = E[(π_S / sg π_T) R] - β KL(sg π_T ‖ π_S),

    and this function gives α β KL(π_T ‖ sg π_S) and (1 - α) β KL(sg π_T ‖ π_S). The reward terms
    are `ppo` or `reinforce` on log π_T and log π_S of the sampled tokens, with weights α and 1 - α.
    """
    constant = jax.lax.stop_gradient
    to_teacher = alpha * beta * kl(teacher, constant(student))
    to_student = (1 - alpha) * beta * kl(constant(teacher), student)
    return to_teacher, to_student
