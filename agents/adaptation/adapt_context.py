"""`AdaptContext`: an SB3 callback by which the Perceiver follows the policy to where its offline data never was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from agents.adaptation.adaptable import check_adaptable, context_env, renew_fingerprints, replay_buffer
from agents.adaptation.online_episodes import EPISODES_FILE, OnlineEpisodes
from agents.adaptation.prior_rollouts import fill, prior_episodes
from agents.adaptation.replay_contexts import catch_up, find_spans, reencode_buffer
from agents.wrappers.vec_context import FramesSeen, VecPerceiverContext
from perceiver_obs.causal_perceiver import CausalPerceiverIO
from perceiver_obs.data.data_record import describe_datasets, offline_frames
from perceiver_obs.data.rollouts import RolloutDataset, deduplicate
from perceiver_obs.frame_contract import FrameContract
from perceiver_obs.settings import whole_number
from perceiver_obs.training.adaptation import Adaptation, OnlineData
from perceiver_obs.training.settings import TrainPredictorSettings

ADAPTATION_FILE = "adaptation.safetensors"


@dataclass(frozen=True)
class FrameBudget:
    """Control steps (agent steps times action repeat) spent: `offline` before and `online` while a policy learned."""

    offline: int
    online: int

    def __str__(self) -> str:
        return f"{self.offline:,} offline + {self.online:,} online"


class AdaptContext(BaseCallback):
    """Trains the Perceiver on the frames that the policy sees, and keeps everything that holds contexts in step.

    Every `every` agent steps, after the transitions are stored and before the policy learns from them, a copy of the
    Perceiver takes `steps` gradient steps on clips of all episodes so far, rewards included, and of the offline
    rollouts. Then it takes the place of the one in the environment, mid-episode, and all observations in the replay
    buffer become the contexts that it gives. The tokenizer and the statistics that contexts are centred by stay as
    they were.

    The fingerprint in the observation spaces follows: a policy that is saved names the Perceiver as it is then, and SB3
    refuses to load it on another. So save that too, by `callback.save_perceiver(directory)`.

    All frames are kept in memory as uint8: H·W·C bytes a frame, 12 kB at 64×64 (0.6 GB for 50,000 agent steps),
    and once trained on, their code vectors beside them (2·h·w·code_dim bytes).

    Works with SAC, TD3 and other off-policy algorithms with "MlpPolicy" on a `VecPerceiverContext`; `VecMonitor` may
    lie around it. No adaptation comes at the very end, where no policy would learn to read the new contexts.

    Args:
        data: directories of offline rollouts to mix in, best those that the Perceiver was trained on, each with a
            sampling weight where it is written "directory=2"; none trains on online frames alone.
        every: agent steps (all rows together) between adaptations.
        steps: gradient steps of an adaptation. Where heads are learned anew, the first takes as many again for these.
        batch_size: clips of a gradient step.
        learning_rate: of AdamW, constant.
        online_share: of the clips of each batch, 0 to 1.
        training: settings that the Perceiver was trained with, for the same objective; None predicts tokens
            (cross-entropy) and edge targets. See `perceiver_obs.training.adaptation.training_settings`. Where they
            have a `state_weight`, states come from `info["state"]` and from the rollouts; unknown ones count for
            nothing.
        heads: directory of the model whose training left `objective.safetensors`, the heads of that objective; None
            learns heads anew.
        token_cache: directory for the tokens of the offline rollouts.
        prior_data: directories of rollouts that the replay buffer begins with, as by `add_rollouts`. They are kept and
            trained on like the policy's own episodes.
        evaluation_envs: environments whose Perceiver is replaced too, such as those of evaluations; their episodes
            must begin anew after that.
        seed: of all random choices in adaptations.

    Attributes:
        adaptations: how many there have been.
        frames: the budget spent so far: every online frame is trained on, and counts once.

    Raises:
        ValueError: an argument is out of range; or, when training starts, environments, algorithms or rollouts are
            such that it does not work with them; or something else steps or resets the training environment.

    Example:
        >>> from stable_baselines3 import SAC
        >>> from stable_baselines3.common.vec_env import DummyVecEnv
        >>> from agents import AdaptContext, VecPerceiverContext
        >>> from envs import make_dmc
        >>> venv = VecPerceiverContext(DummyVecEnv([lambda: make_dmc("walker-walk")]))
        >>> policy = SAC("MlpPolicy", venv).learn(50_000, callback=AdaptContext(every=5000))
    """

    def __init__(
        self,
        data: Sequence[str | Path] = (),
        every: int = 5000,
        steps: int = 300,
        batch_size: int = 16,
        learning_rate: float = 3e-4,
        online_share: float = 0.5,
        *,
        training: TrainPredictorSettings | None = None,
        token_cache: str | Path = "runs/token_cache",
        prior_data: Sequence[str | Path] = (),
        heads: str | Path | None = None,
        evaluation_envs: Sequence[VecEnv] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, paths in (("data", data), ("prior_data", prior_data)):
            if isinstance(paths, (str, Path)):
                raise ValueError(f"{name} must be a sequence of directories, got {paths!r} alone")
        for name, number, high in (("learning_rate", learning_rate, 1e3), ("online_share", online_share, 1.0)):
            if not (isinstance(number, int | float) and 0 <= number <= high):
                raise ValueError(f"{name} must be a number from 0 to {high:g}, got {number!r:.80}")
        self.adaptations = 0
        self._data, self._prior_data = [str(path) for path in data], [str(path) for path in prior_data]
        self._every, self._steps = whole_number("every", every, 1), whole_number("steps", steps, 1)
        self._batch_size, self._seed = whole_number("batch_size", batch_size, 1), whole_number("seed", seed, 0)
        self._learning_rate, self._online_share = learning_rate, online_share
        self._training = training
        self._token_cache = Path(token_cache)
        self._evaluation_envs = [context_env(venv) for venv in evaluation_envs]
        self._heads = None if heads is None else Path(heads)
        self._resume_from: Path | None = None
        self._venv: VecPerceiverContext | None = None
        self._last_seen: FramesSeen | None = None
        self._adapted_at = 0

    # ---- what it reports and stores -------------------------------------------------------------------------

    @property
    def perceiver(self) -> CausalPerceiverIO:
        """The Perceiver as it is now. Training must have started."""
        return self._adaptation.model

    @property
    def frames(self) -> FrameBudget:
        """Offline frames of `data` and `prior_data`, and online frames so far. Training must have started."""
        # Of a row that does not say, a step counts once, as in offline frames.
        repeats = [int(contract.only("action_repeat") or 1) for contract in self._contracts()]
        datasets = deduplicate([*self._adaptation.datasets, *self._prior_datasets])
        offline = offline_frames(describe_datasets(datasets))
        return FrameBudget(offline.control_steps, round(self.num_timesteps * mean(repeats)))

    @property
    def gradient_steps(self) -> int:
        """Gradient steps taken in all adaptations together."""
        return self._adaptation.steps

    def save_perceiver(self, directory: str | Path) -> None:
        """Writes the Perceiver as it is now, and beside it the settings and heads that it was trained with."""
        self._adaptation.save_model(Path(directory))

    def save(self, directory: Path) -> None:
        """Stores all that a later run needs to go on: the online episodes, and the Perceiver with its optimiser."""
        self._online.save(directory / EPISODES_FILE)
        self._adaptation.save(directory / ADAPTATION_FILE, adaptations=self.adaptations, adapted_at=self._adapted_at)

    def load(self, directory: Path) -> None:
        """Has the next `learn` go on from what `save` stored, with the algorithm and the replay buffer of that time."""
        for name in (EPISODES_FILE, ADAPTATION_FILE):
            if not (directory / name).is_file():
                raise FileNotFoundError(f"{directory / name} is missing: the run cannot go on adapting")
        self._resume_from = directory

    # ---- following the training -----------------------------------------------------------------------------

    def _on_training_start(self) -> None:
        venv = check_adaptable(self.model)
        if self._venv is None:
            self._start(venv)
        elif venv is not self._venv:
            raise ValueError("AdaptContext belongs to the environment it began with; make another one")
        seen = venv.seen
        assert seen is not None  # `learn` resets the environment before its first step
        if seen is not self._last_seen:
            if seen.rewards is not None:
                raise ValueError("the environment took steps that AdaptContext has not seen: reset it before `learn`")
            self._online.begin(seen)
            self._last_seen = seen
            self._catch_up()  # where somebody else has reset the environment, the algorithm holds an old observation
        if self._resume_from is not None:
            self._resume_from = None
            self._install()
        for row, episodes in enumerate(self._online.rows()):
            find_spans(replay_buffer(self.model), row, episodes)

    def _on_step(self) -> bool:
        assert self._venv is not None
        seen = self._venv.seen
        assert seen is not None
        self._check_all_seen(steps=1)
        self._online.add(seen)
        self._last_seen = seen
        return True

    def _on_rollout_end(self) -> None:
        """Adapts here: the transition of the last step is in the buffer only now."""
        self._check_all_seen(steps=0)
        due = self.num_timesteps // self._every > self._adapted_at // self._every
        if due and self.num_timesteps < self.locals["total_timesteps"]:
            self._adapt()

    def _start(self, venv: VecPerceiverContext) -> None:
        self._venv = venv
        self._online = OnlineEpisodes(venv.num_envs, venv.action_size)
        self._adaptation = Adaptation(
            venv.encoder.model,
            self._data,
            self._settings(venv.encoder.model),
            OnlineData(
                "+".join(FrameContract.join(self._contracts()).tasks) or None, self._online_share, venv.state_names
            ),
            self._token_cache,
            venv.encoder.device,
            self._heads,
        )
        self.logger.info(self._adaptation.heads)
        self._prior_datasets = [RolloutDataset(path) for path in self._prior_data]
        self._adapted_at = self.num_timesteps
        if self._resume_from is not None:
            self._online.load(self._resume_from / EPISODES_FILE)
            progress = self._adaptation.load(self._resume_from / ADAPTATION_FILE)
            self.adaptations, self._adapted_at = progress["adaptations"], progress["adapted_at"]
        elif self._prior_data:
            rows = prior_episodes(self._prior_datasets, venv)
            fill(self.model, rows, venv)
            names = [dataset.meta["state_names"] for dataset in self._prior_datasets]
            same = all(tuple(each or ()) == venv.state_names for each in names)
            self._online.begin_with(rows, states=same)

    def _settings(self, model: CausalPerceiverIO) -> TrainPredictorSettings:
        training = self._training
        if training is None:
            length = model.video_shape[0] + TrainPredictorSettings.latent_horizon
            training = TrainPredictorSettings(edge_weight=1.0, clip_length=length)
        return replace(training, batch_size=self._batch_size, learning_rate=self._learning_rate, seed=self._seed)

    def _contracts(self) -> list[FrameContract]:
        assert self._venv is not None
        return [contract or FrameContract() for contract in self._venv.frame_contracts]

    def _check_all_seen(self, steps: int) -> None:
        """Raises ValueError unless the environment took so many steps since the last that was kept, and no reset."""
        assert self._venv is not None
        assert self._venv.seen is not None
        assert self._last_seen is not None
        others = self._venv.seen.number - self._last_seen.number - steps
        if others:
            raise ValueError(
                f"the training environment was stepped or reset {others} times by something else than the training, "
                "such as an EvalCallback: give that an environment of its own, and name it in evaluation_envs"
            )

    def _adapt(self) -> None:
        rows = self._online.rows()
        losses = self._adaptation.learn([episode for episodes in rows for episode in episodes], self._steps)
        self._install()
        assert self._venv is not None
        encoder = self._venv.encoder
        reencode_buffer(replay_buffer(self.model), rows, encoder.model, encoder.device)
        self.adaptations += 1
        self._adapted_at = self.num_timesteps
        for name, value in losses.items():
            self.logger.record(f"adaptation/{name}", value)
        self.logger.record("adaptation/number", self.adaptations)

    def _install(self) -> None:
        """Puts the Perceiver into the environments; the running episodes of the policy's go on under it."""
        assert self._venv is not None
        for venv in (self._venv, *self._evaluation_envs):
            venv.encoder.set_model(self._adaptation.model)
        renew_fingerprints(self.model, self._venv.encoder.fingerprint)
        self._catch_up()

    def _catch_up(self) -> None:
        assert self._venv is not None
        self._venv.encoder.reset()
        self.model._last_obs = catch_up(self._venv.encoder, [episodes[-1] for episodes in self._online.rows()])
