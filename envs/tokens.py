"""Token tasks: a prompt of digits, a response of L tokens, reward 1 if a verifier accepts it.

They stand for the reinforcement learning of language models from verifiable rewards, and are small
enough to enumerate: M^L responses to each of M^P prompts, with digits and tokens 0 .. M-1.

    modsum      P = digits; the last token is Σ prompt mod M, the others are free.
                A random response succeeds with probability 1/M.
    carry-add   P = 2 digits, two numbers, lowest digit first; L = digits + 1, their sum.
    reverse     P = L = digits; the prompt backwards.
    lock        P = digits; each prompt has a secret code of L tokens, drawn by `lock`, a parameter.

In the last three tasks all tokens are checked: a random response succeeds with probability M^-L,
which makes `alphabet` and `digits` a knob for the difficulty of exploration.

Observations hold the prompt, the previous token (zeros at first) and the position, one-hot each:
[P M + M + L]. Episodes have L steps and terminate; the reward comes with the last token. The
previous tokens of a response are not observed, so that policies need memory where they matter.

`Env.expert` gives the tokens after which success is still possible. It is an exact step verifier, a
source of expert traces, the privileged context of a teacher, and with noise a teacher policy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.envs.names import EnvError
from jaxrl.envs.wrappers import positive
from jaxrl.types import Array, Discrete, Env, EnvSpec, PyTree, TimeStep

LARGEST = 10**6  # sequences that `enumerate_tokens` lists


@dataclasses.dataclass(frozen=True)
class TokenTask:
    """A task: the prompt's length P, the response's length L, and which responses are accepted.

    answer(prompt [P], params) -> [L] int32, an accepted response.
    free(t) -> whether position t [...] is not checked.
    """

    name: str
    alphabet: int
    prompt_length: int
    length: int
    answer: Callable[[Array, PyTree], Array]
    free: Callable[[Array], Array]

    def step_correct(self, prompt: Array, response: Array, params: PyTree) -> Array:
        """[L] bool: the step verifier; whether each token of a response [L] is right."""
        return (response == self.answer(prompt, params)) | self.free(jnp.arange(self.length))

    def verify(self, prompt: Array, response: Array, params: PyTree) -> Array:
        """[] bool: whether the response [L] is accepted."""
        return jnp.all(self.step_correct(prompt, response, params))

    def expert(self, prompt: Array, t: Array, params: PyTree) -> Array:
        """[M] the expert's probabilities of token t []: uniform over the right ones."""
        at = jnp.minimum(t, self.length - 1)
        right = jax.nn.one_hot(self.answer(prompt, params)[at], self.alphabet)
        return jnp.where(self.free(at), 1 / self.alphabet, right)

    def observe(self, state: TokenState) -> Array:
        """[P M + M + L]: prompt, previous token and position, one-hot."""
        size = self.alphabet
        prompt = jax.nn.one_hot(state.prompt, size).reshape(-1)
        last, at = jax.nn.one_hot(state.last, size), jax.nn.one_hot(state.t, self.length)
        return jnp.concatenate([prompt, last, at])


class TokenState(NamedTuple):
    prompt: Array  # [P] int32
    correct: Array  # [] bool: no token so far is wrong
    last: Array  # [] int32, the previous token; -1 at first
    t: Array  # [] int32, tokens so far


def make(name: str, alphabet: int = 5, digits: int | None = None, length: int | None = None) -> Env:
    """The environment of the task `name`, a key of `TASKS`; for the options see `task`."""
    rule = task(name, alphabet, digits, length)
    size, count = rule.alphabet, rule.length

    def reset(key: Array, params: PyTree) -> tuple[TokenState, Array]:
        prompt = jax.random.randint(key, (rule.prompt_length,), 0, size)
        state = TokenState(prompt, jnp.ones((), bool), jnp.int32(-1), jnp.int32(0))
        return state, rule.observe(state)

    def step(
        key: Array, state: TokenState, action: Array, params: PyTree
    ) -> tuple[TokenState, TimeStep]:
        token = action.astype(jnp.int32)
        right = rule.expert(state.prompt, state.t, params)[token] > 0
        after = TokenState(state.prompt, state.correct & right, token, state.t + 1)
        over = after.t >= count
        reward = (over & after.correct).astype(jnp.float32)
        return after, TimeStep(rule.observe(after), reward, over, jnp.zeros((), bool))

    def expert(state: TokenState, params: PyTree) -> Array:
        return rule.expert(state.prompt, state.t, params)

    params = {"lock": jnp.int32(0)} if name == "lock" else {}
    shape = (rule.prompt_length * size + size + count,)
    spec = EnvSpec(f"tokens:{name}", shape, Discrete(size), count)
    return Env(spec, params, reset, step, expert=expert)


def task(
    name: str, alphabet: int = 5, digits: int | None = None, length: int | None = None
) -> TokenTask:
    """The task `name`, a key of `TASKS`.

    Args:
      alphabet: M, at least 2.
      digits: of the prompt, or of each number in carry-add; by default 3 in reverse, otherwise 2.
      length: L, in modsum and lock only; by default 3.

    Raises:
      EnvError: an option is not a positive whole number, alphabet is 1, or the task has no
        `length`.
    """
    what = lambda option: f"{option} of tokens:{name}"
    size = positive(alphabet, what("alphabet"))
    if size < 2:
        raise EnvError(f"{what('alphabet')} must be at least 2")
    count = positive((3 if name == "reverse" else 2) if digits is None else digits, what("digits"))
    if length is not None and name in ("carry-add", "reverse"):
        raise EnvError(f"tokens:{name} has no option 'length': it follows from digits")
    total = positive(3 if length is None else length, what("length"))
    return TASKS[name](size, count, total)


def _modsum(alphabet: int, digits: int, length: int) -> TokenTask:
    def answer(prompt: Array, params: PyTree) -> Array:
        return jnp.zeros(length, jnp.int32).at[-1].set(jnp.sum(prompt) % alphabet)

    return TokenTask("modsum", alphabet, digits, length, answer, lambda t: t < length - 1)


def _carry_add(alphabet: int, digits: int, length: int) -> TokenTask:
    def answer(prompt: Array, params: PyTree) -> Array:
        carry, tokens = jnp.int32(0), []
        for a, b in zip(prompt[:digits], prompt[digits:], strict=True):
            tokens.append((a + b + carry) % alphabet)
            carry = (a + b + carry) // alphabet
        return jnp.stack([*tokens, carry])

    return TokenTask("carry-add", alphabet, 2 * digits, digits + 1, answer, _all_checked)


def _reverse(alphabet: int, digits: int, length: int) -> TokenTask:
    return TokenTask("reverse", alphabet, digits, digits, lambda x, _: x[::-1], _all_checked)


def _lock(alphabet: int, digits: int, length: int) -> TokenTask:
    def answer(prompt: Array, params: PyTree) -> Array:
        key = jax.random.fold_in(jax.random.key(0), params["lock"])
        for digit in prompt:
            key = jax.random.fold_in(key, digit)
        return jax.random.randint(key, (length,), 0, alphabet)

    return TokenTask("lock", alphabet, digits, length, answer, _all_checked)


def _all_checked(t: Array) -> Array:
    return jnp.zeros(jnp.shape(t), bool)


TASKS: dict[str, Callable[[int, int, int], TokenTask]] = {
    "modsum": _modsum,
    "carry-add": _carry_add,
    "reverse": _reverse,
    "lock": _lock,
}
TOKENS: dict[str, Callable[..., Env]] = {
    f"tokens:{name}": functools.partial(make, name) for name in TASKS
}


def enumerate_tokens(alphabet: int, length: int) -> np.ndarray:
    """All sequences [alphabet^length, length] int32, in lexical order: all prompts or responses.

    Raises:
      EnvError: there are more than 10^6.
    """
    count = alphabet**length
    if count > LARGEST:
        raise EnvError(f"{alphabet}^{length} sequences are too many to enumerate")
    digits: Any = np.unravel_index(np.arange(count), (alphabet,) * length)
    return np.stack(digits, -1).astype(np.int32)


def teacher(probabilities: Array, noise: Array | float) -> Array:
    """Log-probabilities [..., M] of an expert that errs: uniform tokens with probability `noise`.

    Args:
      probabilities: of the expert [..., M].
      noise: above 0.
    """
    return jnp.log((1 - noise) * probabilities + noise / probabilities.shape[-1])
