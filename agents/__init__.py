"""Agents, one file each: pure functions over `jaxrl` records.

`AGENTS` has their names. Importing this file does not import JAX.
"""

if __name__ == "agents":  # found in the working directory, it would be a second module object
    raise ImportError("import jaxrl.agents, not agents")

AGENTS = {
    "pqn": "parallelised Q-network: no replay buffer, no target network (arXiv:2407.04811)",
    "pqn_rnn": "PQN with a GRU or LSTM, for partial observability (arXiv:2407.04811)",
    "pqn_vdn": "PQN for teams: sums of the agents' Q-values, VDN (arXiv:2407.04811, 1706.05296)",
    "pqn_vdn_rnn": "PQN for teams of recurrent agents (VDN; arXiv:2407.04811, 1706.05296)",
    "pqn_continuous": "PQN for continuous actions, with an actor and critics (arXiv:2407.04811)",
    "ppo": "proximal policy optimisation with clipped probability ratios (arXiv:1707.06347)",
    "trpo": "trust region policy optimisation by natural gradients (arXiv:1502.05477)",
    "props": "PPO whose behaviour policy corrects sampling error, and ROS (arXiv:2311.08290)",
    "hnpg": "hybrid natural policy gradient: TRPO per step, with offline data (arXiv:2311.08384)",
    "dac": "adversarial imitation of demonstrations by SAC (arXiv:1809.02925)",
    "ailboost": "adversarial imitation by boosting, on DAC (arXiv:2404.08513)",
    "mdpo": "mirror descent policy optimisation, on-policy (arXiv:2005.09814)",
    "mdpo_offpolicy": "mirror descent policy optimisation, off-policy (arXiv:2005.09814)",
    "sac": "soft actor-critic: twin critics, fixed or learned temperature (arXiv:1812.05905)",
    "td3": "twin delayed DDPG: deterministic policy, clipped double Q (arXiv:1802.09477)",
    "bc": "behaviour cloning by regression (offline)",
    "td3bc": "TD3 with a behaviour cloning term, offline (arXiv:2106.06860)",
    "rebrac": "TD3+BC with a critic penalty, LayerNorm and deeper nets, offline (arXiv:2305.09836)",
    "prdc": "TD3 drawn to nearest pairs of the dataset, offline (arXiv:2306.06569)",
    "cql": "conservative Q-learning, offline, with online fine-tuning (arXiv:2006.04779)",
    "edac": "SAC with an ensemble of diverse critics, and SAC-N, offline (arXiv:2110.01548)",
    "ravl": "model-based offline RL with EDAC's critics, and MBPO, MOPO (arXiv:2402.12527)",
    "awac": "advantage-weighted actor-critic, offline, then online (arXiv:2006.09359)",
    "calql": "CQL calibrated by the data's returns, offline, then online (arXiv:2303.05479)",
    "rlpd": "SAC with RED-Q critics, half of each batch from a dataset (arXiv:2302.02948)",
    "resfit": "off-policy residual on a trained base policy (arXiv:2509.19301)",
    "rlif": "SAC whose reward is that an expert does not intervene (arXiv:2311.12996)",
    "dagger": "clones an expert in the states of the clone, and HG-DAgger (arXiv:1011.0686)",
    "iql": "implicit Q-learning, offline, with online fine-tuning (arXiv:2110.06169)",
    "famo2o": "IQL with a balance of improvement and constraint per state (arXiv:2310.17966)",
    "uni_o4": "offline and online PPO, gated by off-policy evaluation (arXiv:2311.03351)",
    "cdsa": "corrects trained policies with scores of a dataset (arXiv:2406.07541)",
    "dql": "offline Q-learning with a diffusion policy (arXiv:2208.06193)",
    "ofql": "offline Q-learning with a one-step flow policy (arXiv:2508.13904)",
    "fql": "one-step policy distilled from a cloned flow, offline, then online (arXiv:2502.02538)",
    "pgd_iql": "IQL on samples of a policy-guided diffusion model (arXiv:2404.06356)",
    "pgd_td3bc": "TD3+BC on samples of a policy-guided diffusion model (arXiv:2404.06356)",
    "pgd_ofql": "OFQL on samples of a policy-guided diffusion model (arXiv:2404.06356)",
    "token_pg": "objectives of language-model RL (GRPO, TOPR, OPMD, ...) on token tasks",
    "dqn": "deep Q-network with replay, double and n-step (arXiv:1509.06461)",
}
