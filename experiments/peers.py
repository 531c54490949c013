"""Names of other libraries for settings of jaxrl, for the hint after an unknown option."""

from __future__ import annotations

from collections.abc import Container

# Names of Stable-Baselines3, CleanRL, PureJaxRL, rejax, d3rlpy and CORL -> ours, the first that
# the agent has. In lower case, with underscores; a leading "agent." is dropped.
PEERS: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "lr_actor": ("actor_lr", "lr"),
    "actor_learning_rate": ("actor_lr", "lr"),
    "policy_lr": ("actor_lr", "lr"),
    "lr_critic": ("lr",),
    "critic_learning_rate": ("lr",),
    "q_lr": ("lr",),
    "anneal_lr": ("lr_end",),
    "lr_linear_decay": ("lr_end",),
    "discount": ("gamma",),
    "discount_factor": ("gamma",),
    "gae_lambda": ("lam",),
    "lambda": ("lam",),
    "q_lambda": ("lam",),
    "batch_size": ("batch_size", "minibatches"),
    "minibatch_size": ("batch_size", "minibatches"),
    "num_minibatches": ("minibatches",),
    "n_minibatches": ("minibatches",),
    "update_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "n_epochs": ("epochs",),
    "buffer_size": ("capacity",),
    "replay_buffer_size": ("capacity",),
    "memory_size": ("capacity",),
    "learning_starts": ("warmup",),
    "start_timesteps": ("warmup",),
    "fill_buffer": ("warmup",),
    "train_freq": ("num_steps",),
    "train_frequency": ("num_steps",),
    "n_steps": ("num_steps", "n_step"),
    "rollout_length": ("num_steps",),
    "unroll_length": ("num_steps",),
    "n_envs": ("num_envs",),
    "num_environments": ("num_envs",),
    "total_timesteps": ("total_steps", "updates"),
    "num_timesteps": ("total_steps", "updates"),
    "max_timesteps": ("total_steps", "updates"),
    "timesteps": ("total_steps", "updates"),
    "steps": ("total_steps", "updates"),
    "n_gradient_steps": ("updates", "gradient_steps"),
    "num_updates": ("updates", "gradient_steps"),
    "utd_ratio": ("gradient_steps",),
    "target_update_interval": ("target_every",),
    "target_network_frequency": ("target_every",),
    "policy_frequency": ("policy_every",),
    "policy_freq": ("policy_every",),
    "polyak": ("tau",),
    "target_tau": ("tau",),
    "clip_range": ("clip",),
    "clip_coef": ("clip",),
    "clip_eps": ("clip",),
    "clip_range_vf": ("value_clip",),
    "clip_vloss": ("clip_value",),
    "ent_coef": ("entropy_weight", "temperature"),
    "entropy_coef": ("entropy_weight", "temperature"),
    "entropy_coeff": ("entropy_weight", "temperature"),
    "target_kl": ("max_kl",),
    "cg_max_steps": ("cg_steps",),
    "cg_damping": ("damping",),
    "line_search_max_iter": ("backtracks",),
    "vf_coef": ("value_weight",),
    "vf_coeff": ("value_weight",),
    "autotune": ("learn_temperature",),
    "alpha": ("temperature",),
    "cql_alpha": ("weight",),
    "exploration_fraction": ("eps_decay",),
    "exploration_initial_eps": ("eps_start",),
    "exploration_final_eps": ("eps_end",),
    "start_e": ("eps_start",),
    "end_e": ("eps_end",),
    "n_critics": ("critics",),
    "num_critics": ("critics",),
    "num_qs": ("critics",),
    "hidden_sizes": ("hidden", "actor"),
    "hidden_dims": ("hidden", "actor"),
    "hidden_dim": ("hidden", "actor"),
    "hidden_layer_sizes": ("hidden", "actor"),
    "hidden_size": ("hidden", "actor"),
    "net_arch": ("hidden", "actor"),
    "iql_tau": ("expectile",),
    "env_id": ("env",),
    "env_name": ("env",),
    "task": ("env",),
    "num_seeds": ("seeds",),
    "n_seeds": ("seeds",),
    "random_seed": ("seed",),
    "eval_freq": ("evals",),
    "num_evals": ("evals",),
    "n_evals": ("evals",),
    "n_eval_episodes": ("eval_episodes",),
    "num_eval_episodes": ("eval_episodes",),
    "n_episodes": ("eval_episodes",),
    "dataset": ("data",),
    "dataset_path": ("data",),
    "output_dir": ("out",),
    "save_dir": ("out",),
    "log_dir": ("out",),
    "logdir": ("out",),
    "save_path": ("out",),
    "tracker": ("track",),
    "logger": ("track",),
    "wandb": ("track",),
}

# Names of wrappers elsewhere -> what to pass.
ENV_OPTIONS = {
    "normalise_obs": "normalise_obs=true",
    "normalise_observations": "normalise_obs=true",
    "norm_obs": "normalise_obs=true",
    "normalise_reward": "normalise_reward=0.99",
    "normalise_rewards": "normalise_reward=0.99",
    "norm_reward": "normalise_reward=0.99",
    "max_steps": "max_steps=200",
    "max_episode_steps": "max_steps=200",
    "time_limit": "max_steps=200",
    "sticky": "sticky=0.25",
    "sticky_actions": "sticky=0.25",
    "hide": "hide=[1,3]",
    "env_kwargs": "NAME=VALUE",
    "env_params": "NAME=VALUE",
}


def ours(name: str, known: Container[str]) -> str:
    """The option, without dashes, that `name` of another library stands for, or "".

    Args:
      name: such as "learning_rate" or "agent.learning-rate".
      known: dotted names of our options, as {"seeds", "agent.lr"}.
    """
    bare = name.lower().replace("-", "_").removeprefix("agent.")
    for found in PEERS.get(bare, ()):
        for full in (f"agent.{found}", found):
            if full in known:
                return full.replace("_", "-")
    pairs = ENV_OPTIONS.get(bare.replace("ize", "ise"), "")
    return f"env-options {pairs}" if pairs and "env_options" in known else ""
