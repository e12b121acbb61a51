"""LatentSync as a training of the framework. Light to import: what computes is loaded where it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from latentsync_ray.config.recipe import Recipe, StageConfig
from latentsync_ray.core.terms import Terms
from latentsync_ray.core.training import Inputs, Notes, StepWork, Training, TrainingSetup
from latentsync_ray.core.trial_recipe import STAGES
from latentsync_ray.latentsync.config import LatentSyncRecipe, LatentSyncStage

if TYPE_CHECKING:
    from torch import Tensor


class LatentSync(Training[LatentSyncRecipe]):
    """LatentSync's two stages (Li et al. 2024) on prepared clips; see `stage.Stages`."""

    recipe_type: ClassVar[type[Recipe]] = LatentSyncRecipe

    @classmethod
    def prepare(cls, recipe: LatentSyncRecipe, notes: Notes) -> Inputs[LatentSyncRecipe]:
        """Clips and frozen networks; see `inputs.ready_inputs`."""
        from latentsync_ray.latentsync.inputs import ready_inputs

        return ready_inputs(recipe, notes)

    def __init__(self, setup: TrainingSetup[LatentSyncRecipe]):
        from latentsync_ray.latentsync.data.clips import PreparedClips
        from latentsync_ray.latentsync.stage import Stages, StagesSetup

        recipe = self._recipe = setup.recipe
        self.stages = Stages(
            StagesSetup(
                samples=PreparedClips.open(recipe.data.folder),
                components=recipe.components,
                validation=recipe.validation,
                num_frames=recipe.data.num_frames,
                seed=setup.seed,
                device=setup.device,
                rank=setup.rank,
                world_size=setup.world_size,
            )
        )

    def build(self, stage: str, config: StageConfig, state: Mapping[str, Tensor] | None, state_stage: str) -> None:
        """UNet, optimizer and learning rate; see `Training.build`."""
        assert isinstance(config, LatentSyncStage)
        self.stages.build(stage, config, state, state_stage)

    def rehearse(self, notes: Notes) -> Sequence[str]:
        """Takes a step of each stage on a GPU; see `Training.rehearse`."""
        return self.stages.rehearse({name: getattr(self._recipe, name) for name in STAGES}, notes)

    def work(self) -> StepWork:
        """Samples and FLOPs; see `Training.work`."""
        return self.stages.work()

    def step(self, global_step: int, stage_step: int) -> Mapping[str, float]:
        """One step of AdamW; see `Training.step`."""
        return self.stages.step(global_step, stage_step)

    def validate(self) -> dict[str, float]:
        """Every loss term at fixed timesteps and noise; see `Training.validate`."""
        return self.stages.validate()

    def validation_terms(self) -> Terms | None:
        """Every loss term of each window and timestep; see `Training.validation_terms`."""
        return self.stages.validation_terms()

    def state(self) -> dict[str, Tensor]:
        """Weights, moments, and the average of the weights; see `Training.state`."""
        return self.stages.state()

    def preview(self) -> Tensor:
        """Masked input, generated and true frames; see `Training.preview`."""
        return self.stages.preview()
