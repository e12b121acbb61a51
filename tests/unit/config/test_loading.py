"""Recipes and searches as they are read, overridden and written; the rules of single values."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from latentsync_ray.config.domains import Choice, Grid, LogUniform
from latentsync_ray.config.errors import UserError
from latentsync_ray.config.loading import Variants, load_recipe, recipe_files, with_overrides
from latentsync_ray.config.recipe import Metric, Recipe, SecondStageConfig, StageConfig
from latentsync_ray.config.search import BudgetConfig, SearchConfig, TrialSchedulerConfig, WorkersConfig
from latentsync_ray.config.searchfiles import load_search, search_of_one
from latentsync_ray.config.transition import BelowConfig, PlateauConfig, TransitionConfig
from latentsync_ray.latentsync.config import (
    ComponentsConfig,
    LatentSyncSecondStage,
    LatentSyncStage,
    LossConfig,
    ValidationConfig,
)
from latentsync_ray.latentsync.data.config import DataConfig, SyntheticConfig
from latentsync_ray.latentsync.optimizer import LRSchedulerConfig, OptimizerConfig

ROOT = Path(__file__).resolve().parents[3]
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))


FILES = {
    "recipe.yaml": """
data: {folder: ../../clips, num_frames: 8}
components: {vae: ../../vae, audio_encoder: org/whisper, syncnet: ../net, lpips: ../lpips, video_encoder: ../video}
validation: {timesteps: [200, 800]}
transition: {plateau: {patience_steps: 60, smoothing: 0.5}, min_step: 160, max_step: 400}
""",
    "first_stage.yaml": """
model: {block_out_channels: [32, 64]}
optimizer: {lr: 1.0e-3}
batch_size: 4
""",
    "second_stage.yaml": """
model: {block_out_channels: [32, 64], motion_module_kwargs: {num_attention_heads: 4}}
trainable_modules: [motion_modules., attentions.]
loss: {recon: 1.0, sync: 0.05, lpips: 0.1, trepa: 10.0}
report_every_steps: 10
num_steps: 40
""",
}


def write_recipe(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("work") / "configs" / "mine")


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Recipe:
    return load_recipe(folder)


def test_a_recipe_is_typed_and_its_defaults_are_filled_in(recipe: Recipe) -> None:
    assert isinstance(recipe.second_stage, LatentSyncSecondStage)
    assert recipe.transition.plateau == PlateauConfig("val/recon", patience_steps=60, min_delta=0.0, smoothing=0.5)
    assert recipe.first_stage.optimizer == OptimizerConfig(lr=1e-3)
    assert recipe.second_stage.trainable_modules == ("motion_modules.", "attentions.")
    assert recipe.validation == ValidationConfig(timesteps=(200, 800))
    assert recipe.first_stage.model == {"block_out_channels": [32, 64]}


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_the_committed_search_spaces_and_their_recipes_are_valid(file: Path) -> None:
    search, _ = load_search(file, [])
    assert search.name == file.stem
    assert search.param_space


@pytest.mark.parametrize(
    ("name", "second"), [("256", "stage2"), ("256_efficient", "stage2_efficient"), ("512", "stage2")]
)
def test_the_official_recipes_have_the_official_values(name: str, second: str, shared: Path) -> None:
    recipe = load_recipe(ROOT / "configs" / name)
    trepa = 0.0 if second == "stage2_efficient" else 10.0
    assert recipe.first_stage.loss == LossConfig(recon=1.0)
    assert recipe.second_stage.loss == LossConfig(recon=1.0, sync=0.05, lpips=0.1, trepa=trepa)
    for stage, official in ((recipe.first_stage, "stage1"), (recipe.second_stage, second)):
        manifest = json.loads((shared / "golden" / f"manifest_unet_{official}.json").read_text())
        assert stage.model == manifest["model"]
        assert (stage.trainable_modules and list(stage.trainable_modules)) == manifest["trainable_modules"]
        assert stage.optimizer == OptimizerConfig(lr=1e-5, max_grad_norm=1.0)
        assert (stage.lr_scheduler.name, stage.mixed_noise_alpha, recipe.data.num_frames) == ("constant", 1.0, 16)


@pytest.mark.parametrize(
    "values",
    [
        {"transition.at_step": 200, "second_stage.optimizer.lr": 1, "second_stage.num_steps": 80},
        {"transition.plateau.patience_steps": 80, "transition.plateau": None},
        {"transition.below.value": 0.5},
        {"second_stage.model.motion_module_kwargs.num_attention_heads": 8, "second_stage.loss": {"sync": 0.1}},
        {"first_stage.optimizer.betas": [0.8, 0.9], "seed": 3, "divergence_factor": None},
    ],
)
def test_variants_are_what_overrides_give(recipe: Recipe, values: dict[str, Any]) -> None:
    assert Variants(recipe).recipe(values) == with_overrides(recipe, values)


def test_a_variant_that_breaks_a_rule_is_refused(recipe: Recipe) -> None:
    with pytest.raises(
        UserError, match=r"at_step: must be a multiple of first_stage.report_every_steps \(20\), got 250"
    ):
        Variants(recipe).recipe({"transition.at_step": 250})


def test_folders_are_relative_to_the_file_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path / "configs" / "mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "space.yaml").write_text("recipe: configs/mine\noverrides: {components.lpips: ./lpips}\n")
    search, recipe = load_search("../space.yaml", ["components.syncnet=./net", "data.folder=here"])
    assert search.recipe == str(tmp_path / "configs" / "mine")
    assert recipe.components == ComponentsConfig(
        vae=str(tmp_path / "vae"),
        audio_encoder="org/whisper",
        syncnet=str(tmp_path / "elsewhere" / "net"),
        lpips=str(tmp_path / "lpips"),
        video_encoder=str(tmp_path / "configs" / "video"),
    )
    assert recipe.data.folder == str(tmp_path / "elsewhere" / "here")
    assert load_recipe("../configs/mine").data.folder == str(tmp_path / "clips")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001"])
def test_numbers_may_be_written_as_people_write_them(text: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        f"recipe: {folder}\n"
        f"overrides: {{first_stage.optimizer.lr: {text}}}\n"
        f"param_space: {{second_stage.optimizer.lr: {{grid: [{text}]}}}}\n"
    )
    search, recipe = load_search(tmp_path / "space.yaml", [f"second_stage.optimizer.eps={text}"])
    assert recipe.first_stage.optimizer.lr == recipe.second_stage.optimizer.eps == 1e-4
    assert search.param_space == {"second_stage.optimizer.lr": Grid((1e-4,))}


def test_arguments_go_to_the_search_or_to_its_recipe(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        f"recipe: {folder}\n"
        "overrides: {transition.plateau: null}\n"
        "param_space: {transition.at_step: {grid: [160, 240]}, second_stage.optimizer.lr: {grid: [1e-4]}}\n"
        "trial_scheduler: {grace_period: 20}\n"
    )
    search, recipe = load_search(
        tmp_path / "space.yaml",
        [
            "num_samples=3",
            "storage=s3://bucket/runs",
            "trial_scheduler.name=fifo",
            "share=false",
            "param_space.second_stage.optimizer.lr={loguniform: [1e-5, 1e-3]}",
            "seed=7",
            "transition={max_step: 240}",
            "second_stage.loss.trepa=0",
        ],
    )
    assert (search.num_samples, search.storage, search.share) == (3, "s3://bucket/runs", False)
    assert search.trial_scheduler == TrialSchedulerConfig("fifo", grace_period=20)
    assert search.param_space == {
        "transition.at_step": Grid((160, 240)),
        "second_stage.optimizer.lr": LogUniform(1e-5, 1e-3),
    }
    assert (recipe.seed, recipe.transition.max_step, recipe.second_stage.loss.trepa) == (7, 240, 0.0)
    assert recipe.transition.plateau is None  # from the file

    search, recipe = load_search(tmp_path / "space.yaml", ["param_space={seed: {grid: [1]}}", "overrides={}"])
    assert search.param_space == {"seed": Grid((1,))}
    assert recipe == load_recipe(folder)


def test_overrides_replace_values_by_dotted_name(recipe: Recipe) -> None:
    changed = with_overrides(
        recipe,
        {
            "transition.plateau": None,
            "transition.below": {"metric": "val/lpips", "value": 0.25},
            "second_stage.optimizer.betas": [0.5, 0.75],
            "second_stage.model.motion_module_kwargs.num_attention_heads": 8,
        },
    )
    assert changed == dataclasses.replace(
        recipe,
        transition=TransitionConfig(400, 160, below=BelowConfig("val/lpips", 0.25)),
        second_stage=dataclasses.replace(
            recipe.second_stage,
            optimizer=OptimizerConfig(betas=(0.5, 0.75)),
            model={"block_out_channels": [32, 64], "motion_module_kwargs": {"num_attention_heads": 8}},
        ),
    )
    # A condition that was switched off begins again with its defaults.
    again = with_overrides(changed, {"transition.plateau.patience_steps": 20})
    assert again.transition.plateau == PlateauConfig(patience_steps=20)


def test_overrides_are_checked_together_not_one_by_one(recipe: Recipe) -> None:
    changed = with_overrides(recipe, {"first_stage.num_workers": 3, "first_stage.batch_size": 3})
    assert (changed.first_stage.num_workers, changed.first_stage.batch_size) == (3, 3)
    with pytest.raises(UserError, match=r"first_stage\.batch_size: must be a multiple of num_workers \(3\), got 4"):
        with_overrides(recipe, {"first_stage.num_workers": 3})


def test_a_recipe_survives_being_written(recipe: Recipe, tmp_path: Path) -> None:
    for name, text in recipe_files(recipe).items():
        (tmp_path / name).write_text(text)
    assert load_recipe(tmp_path) == recipe


def test_a_plain_training_is_a_search_of_one(folder: Path, recipe: Recipe) -> None:
    search, trained = search_of_one(folder, ["seed=1", "name=other"])
    assert (search.name, search.param_space, search.num_samples) == ("other", {}, 1)
    assert (search.trial_scheduler.name, search.workers.max_groups) == ("fifo", 1)
    assert trained == dataclasses.replace(recipe, seed=1)
    assert search_of_one(folder, [])[0].name == "train-mine"


MODEL: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (SyntheticConfig(num_speakers=0), "num_speakers"),
        (SyntheticConfig(num_speakers=2, num_validation_speakers=2), "num_validation_speakers"),
        (SyntheticConfig(num_validation_speakers=0), "num_validation_speakers"),
        (SyntheticConfig(seed=-1), "seed"),
        (DataConfig("clips", num_frames=0), "num_frames"),
        (DataConfig("clips", num_frames=101, synthetic=SyntheticConfig()), "num_frames"),
        (LossConfig(recon=0.0), "recon"),
        (LossConfig(trepa=-1.0), "trepa"),
        (LossConfig(sync=math.inf), "sync"),
        (ValidationConfig(num_samples=0), "num_samples"),
        (ValidationConfig(timesteps=()), "timesteps"),
        (ValidationConfig(timesteps=(0, 1000)), "timesteps"),
        (ValidationConfig(mixed_noise_alpha=-0.5), "mixed_noise_alpha"),
        (PlateauConfig(patience_steps=0), "patience_steps"),
        (PlateauConfig(min_delta=1.0), "min_delta"),
        (PlateauConfig(min_delta=math.nan), "min_delta"),
        (PlateauConfig(smoothing=1.0), "smoothing"),
        (BelowConfig(value=math.nan), "value"),
        (TransitionConfig(max_step=0), "max_step"),
        (TransitionConfig(max_step=20, min_step=40), "min_step"),
        (TransitionConfig(max_step=40, min_step=20, at_step=0), "at_step"),
        (OptimizerConfig(lr=0.0), "lr"),
        (OptimizerConfig(eps=math.nan), "eps"),
        (OptimizerConfig(max_grad_norm=-1.0), "max_grad_norm"),
        (OptimizerConfig(betas=(0.9, 1.0)), "betas"),
        (OptimizerConfig(betas=(0.9,)), "betas"),  # type: ignore[arg-type]
        (OptimizerConfig(weight_decay=-0.1), "weight_decay"),
        (LRSchedulerConfig(num_warmup_steps=-1), "num_warmup_steps"),
        (LRSchedulerConfig("linear"), "num_training_steps"),
        (LRSchedulerConfig("cosine", num_warmup_steps=10, num_training_steps=10), "num_training_steps"),
        (LatentSyncStage(model=MODEL, batch_size=0), "batch_size"),
        (LatentSyncStage(model=MODEL, batch_size=3, num_workers=2), "batch_size"),
        (LatentSyncStage(model=MODEL, num_threads=0), "num_threads"),
        (LatentSyncStage(model=MODEL, report_every_steps=0), "report_every_steps"),
        (LatentSyncStage(model=MODEL, mixed_noise_alpha=math.nan), "mixed_noise_alpha"),
        (LatentSyncStage(model=MODEL, trainable_modules=()), "trainable_modules"),
        (LatentSyncSecondStage(model=MODEL, num_steps=0), "num_steps"),
        (LatentSyncSecondStage(model=MODEL, num_steps=30, report_every_steps=20), "num_steps"),
        (TrialSchedulerConfig(grace_period=0), "grace_period"),
        (TrialSchedulerConfig(reduction_factor=1), "reduction_factor"),
        (TrialSchedulerConfig(reduction_factor=math.nan), "reduction_factor"),
        (TrialSchedulerConfig(rung_interval=0), "rung_interval"),
        (TrialSchedulerConfig("hyperband", rung_interval=10), "rung_interval"),
        (WorkersConfig(max_groups=0), "max_groups"),
        (BudgetConfig(gpu_hours=0), "gpu_hours"),
        (BudgetConfig(wall_hours=float("nan")), "wall_hours"),
        (BudgetConfig(storage_gb=-1), "storage_gb"),
        (WorkersConfig(num_cpus=0), "num_cpus"),
        (WorkersConfig(num_cpus=math.nan), "num_cpus"),
        (WorkersConfig(idle_seconds=-1), "idle_seconds"),
        (SearchConfig("r", "s", num_samples=0), "num_samples"),
        (SearchConfig("r", "s", search_alg="maximin"), "search_alg"),
        (SearchConfig("r", "s", param_space={"seed": Grid((0, 1))}, search_alg="maximin"), "search_alg"),
        (
            SearchConfig("r", "s", param_space={"seed": Choice((0, 1))}, num_samples=3, search_alg="maximin"),
            "num_samples",
        ),
        (SearchConfig("r", "a/b"), "name"),
        (SearchConfig("r", ""), "name"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_rule_that_a_value_breaks_is_named(config: Any, field: str) -> None:
    complaints = list(config.complaints())
    assert complaints[0][0] == field
    assert all(rule and remedy for _, rule, remedy in complaints)


@pytest.mark.parametrize(
    "config",
    [
        SyntheticConfig(num_speakers=2, num_validation_speakers=1, clips_per_speaker=1, num_frames=1, resolution=1),
        DataConfig("clips", num_frames=100, synthetic=SyntheticConfig()),
        LossConfig(recon=0.0, trepa=0.1),
        ValidationConfig(num_samples=1, timesteps=(0, 999), mixed_noise_alpha=0.0),
        PlateauConfig("val/objective", patience_steps=1, min_delta=0.0, smoothing=0.0),
        BelowConfig(value=-1.0),
        TransitionConfig(max_step=20, min_step=20, at_step=20),
        OptimizerConfig(betas=(0.0, 0.0), weight_decay=0.0),
        LRSchedulerConfig("linear", num_warmup_steps=10, num_training_steps=11),
        LatentSyncStage(model=MODEL, batch_size=4, num_workers=4),
        LatentSyncSecondStage(model=MODEL, num_steps=20, report_every_steps=20),
        TrialSchedulerConfig(grace_period=1, reduction_factor=1.5),
        WorkersConfig(max_groups=1, num_cpus=0.5, idle_seconds=0),
        BudgetConfig(gpu_hours=0.5),
        SearchConfig("r", "s", num_samples=1),
    ],
    ids=lambda config: type(config).__name__,
)
def test_values_at_the_edge_of_a_rule_are_fine(config: Any) -> None:
    assert list(config.complaints()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"components.syncnet": None},
            r"components\.syncnet: must be given, since second_stage\.loss\.sync is above 0",
        ),
        (
            {"components.lpips": None, "second_stage.loss.lpips": 0, "validation.objective.lpips": 0}
            | {"transition.below.metric": "val/lpips"},
            r"transition\.below\.metric: needs components\.lpips, got 'val/lpips'",
        ),
        (
            {"transition.plateau.metric": "val/sync_confidence"},
            r"plateau\.metric: must be a validation metric of which less",
        ),
        (
            {"transition.plateau.metric": "train/loss"},
            r"plateau\.metric: must be .*; choose one of val/objective, val/recon",
        ),
        ({"first_stage.report_every_steps": 50}, r"transition\.min_step: must be a multiple of .* \(50\), got 160"),
    ],
)
def test_values_have_to_go_together(overrides: dict[str, Any], message: str, recipe: Recipe) -> None:
    with pytest.raises(UserError, match=message):
        with_overrides(recipe, overrides)


def test_a_value_that_cannot_name_a_recipe_is_one_line() -> None:
    for value in (5, [1]):
        with pytest.raises(UserError):
            load_search(ROOT / "search_spaces/transition.yaml", values={"recipe": value})


def test_every_training_has_the_objective_that_the_framework_adds() -> None:
    class Line(Recipe):
        def metrics(self) -> dict[str, Metric]:
            return {"val/slope": Metric("max")}

    recipe = Line(
        transition=TransitionConfig(max_step=20),
        first_stage=StageConfig(),
        second_stage=SecondStageConfig(num_steps=100),
    )
    assert recipe.metrics_and_objective() == {"val/objective": Metric("min"), "val/slope": Metric("max")}
    plateau = TransitionConfig(max_step=20, plateau=PlateauConfig("val/objective", patience_steps=20))
    assert not list(dataclasses.replace(recipe, transition=plateau).complaints())


@pytest.mark.parametrize("method", ["metrics", "objective"])
def test_a_recipe_of_ones_own_has_to_name_its_metrics(method: str) -> None:
    class Unfinished(Recipe):
        pass

    stages = {"first_stage": StageConfig(), "second_stage": SecondStageConfig()}
    recipe = Unfinished(transition=TransitionConfig(max_step=20), **stages)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"Unfinished\.{method}: must be defined"):
        getattr(recipe, method)()
