"""Agents, one file each: pure functions over `jaxrl` records.

`AGENTS` has their names. Importing this file does not import JAX.
"""

if __name__ == "agents":  # found in the working directory, it would be a second module object
    raise ImportError("import jaxrl.agents, not agents")

AGENTS = {
    "pqn": "parallelised Q-network: no replay, no target network (arXiv:2407.04811)",
    "pqn_rnn": "PQN with a memory (GRU or LSTM) for what is not all in the observation",
    "pqn_continuous": "PQN for continuous actions: actor and critic, no replay, no target network",
    "ppo": "proximal policy optimisation: clipped ratios (arXiv:1707.06347)",
    "mdpo": "mirror descent policy optimisation, on-policy (arXiv:2005.09814)",
    "mdpo_offpolicy": "mirror descent policy optimisation, off-policy (arXiv:2005.09814)",
    "sac": "soft actor-critic: twin critics, fixed or learned temperature (arXiv:1812.05905)",
    "bc": "behaviour cloning of a dataset, by regression",
    "td3bc": "TD3 held to the actions of a dataset (arXiv:2106.06860)",
    "cql": "SAC with critics pushed down outside a dataset (arXiv:2006.04779)",
    "edac": "SAC with many diverse critics on a dataset, and SAC-N (arXiv:2110.01548)",
    "ravl": "EDAC's critics on rollouts in a model, and MBPO, MOPO (arXiv:2402.12527)",
    "iql": "implicit Q-learning from a dataset, with fine-tuning (arXiv:2110.06169)",
    "cdsa": "corrects trained policies by scores of a dataset (arXiv:2406.07541)",
    "dql": "Q-learning from a dataset with a diffusion policy (arXiv:2208.06193)",
    "ofql": "Q-learning from a dataset with a one-step flow policy (arXiv:2508.13904)",
    "pgd_iql": "IQL on samples of a policy-guided diffusion model (arXiv:2404.06356)",
    "pgd_td3bc": "TD3+BC on samples of a policy-guided diffusion model (arXiv:2404.06356)",
    "pgd_ofql": "OFQL on samples of a policy-guided diffusion model (arXiv:2404.06356)",
    "dqn": "Q-learning with replay and target network, double and n-step (arXiv:1509.06461)",
}
