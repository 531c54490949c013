"""Off-policy evaluation: the value of a policy from data that another policy collected.

    targets            target policies: greedy actions with noise of known density
    behaviour          log-probabilities of the data's actions under the policy that collected them
    episodes           rows of a dataset as padded episodes [E, T]
    importance         trajectory-wise and per-decision importance sampling, self-normalised forms
    fqe                fitted Q-evaluation
    doubly_robust      the direct method and the doubly robust estimator
    estimate           all estimators of the members of a run at once
    imagined           AM-Q: Q along rollouts in a learned model
    during             FQE at each evaluation of a run, for searches
    metrics            how well estimates rank policies: errors, regret, SharpeRatio@k

The value of a policy is J(π) = E Σ_t γ^t r_t over whole episodes. Axis letters: E episodes of the
data, T steps of the longest episode, C candidate policies, K actions per row.
"""
