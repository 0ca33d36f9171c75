"""TrialConfig: the complete configuration of a trial, as one frozen, typed tree.

A recipe is such a tree in YAML. Each field declares by `hashed` or `unhashed` whether it can change
the trial's figures (chip_core/config/fields.py).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from chip_core.config.benchmark import BenchmarkConfig as BenchmarkConfig
from chip_core.config.benchmark import BenchmarksConfig as BenchmarksConfig
from chip_core.config.benchmark import EvaluationConfig as EvaluationConfig
from chip_core.config.benchmark import GeneratorConfig
from chip_core.config.benchmark import JudgeConfig as JudgeConfig
from chip_core.config.fields import Section, Shorthand, hashed, unhashed
from chip_core.config.pairs import PairsConfig
from chip_core.config.strategies import (
    STRATEGIES,
    BlurParameters,
    CropParameters,
    DiffusionParameters,
    InpaintParameters,
    LightingParameters,
    MixupParameters,
    NoParameters,
    OcclusionParameters,
    RotateParameters,
)
from chip_core.objectives.config import ObjectiveConfig
from chip_core.utils import registry
from chip_core.utils.files import expand_path
from chip_core.utils.registry import suggest

#: Increased whenever code changes figures; part of every fingerprint.
BEHAVIOUR = 1

#: Transparent parts of a picture: shown on white, or with their colours as stored.
Transparency = Literal["white", "drop"]

#: The largest seed of random number generators.
LARGEST_SEED = 2**63 - 1


class ModelConfig(Shorthand):
    """The model that is trained, and frozen as the reference. A bare string is its path."""

    shorthand = "path"

    path: str = hashed(doc="'shapes' (the embedded tiny LLaVA), a folder, or a hub name")
    revision: str | None = hashed(None, doc="a hub revision")
    dtype: Literal["fp32", "bf16"] = hashed(
        "fp32", doc="dtype of the model's weights and computation"
    )
    quantize: Literal["none", "nf4"] = hashed(
        "none",
        doc="'nf4': 4-bit linear layers in the language model, under its adapters (QLoRA); needs "
        "bitsandbytes",
    )
    trust_remote_code: bool = hashed(
        False,
        doc="true: run the code in the model's folder, with all your rights; a hub name needs a "
        "commit as `revision`",
    )


class DataConfig(Section):
    """The preference pairs."""

    source: str = hashed(
        "shapes",
        min_length=1,
        doc="'shapes' (the embedded world), a file, folder or glob of parquet or JSON lines, or "
        "a hub name; the fingerprint contains its content",
    )
    split: str | None = hashed(
        None, doc="split of a folder or a hub name; null: all files, or 'train'"
    )
    revision: str | None = hashed(None, doc="a hub revision")
    format: Literal["auto", "rlhf-v", "rlaif-v", "trl", "jsonl"] = hashed(
        "auto", doc="format of the rows; 'auto': detected from the columns"
    )
    limit: int | None = hashed(None, ge=1, doc="only the first N rows")
    image_root: str | None = unhashed(
        None, doc="folder that image paths are relative to; null: the data file's own"
    )
    transparency: Transparency = hashed(
        "white",
        doc="transparent parts of an image: 'white': shown on white; 'drop': with their stored "
        "colours",
    )
    on_bad_row: Literal["fail", "skip"] = hashed(
        "fail",
        doc="what to do about bad rows: 'fail': list them before the first step; 'skip': "
        "leave them out and count them",
    )


def _load_plugin_section(name: str) -> type[Section]:
    """Return the settings section of a user's own strategy."""
    strategy = registry.load_plugin(name)
    section = getattr(strategy, "parameters", None)
    if not hasattr(strategy, "traits"):
        raise ValueError(f"'{name}' is not a rejected-image strategy: it has no `traits`")
    if not (isinstance(section, type) and issubclass(section, Section)):
        raise ValueError(
            f"'{name}': `parameters` is not a subclass of chip_core.config.fields.Section"
        )
    return section


def _validate_strategy(name: str) -> str:
    if registry.is_plugin(name):
        _load_plugin_section(name)
    elif name not in STRATEGIES:
        raise ValueError(f"unknown level '{name}': {suggest(name, [*STRATEGIES, 'module:attr'])}")
    return name


Strategy = Annotated[
    str,
    AfterValidator(_validate_strategy),
    WithJsonSchema({"anyOf": [{"enum": list(STRATEGIES)}, {"type": "string", "pattern": ":"}]}),
]


class RejectedImageConfig(Shorthand):
    """How the visual term's rejected image is made. A bare string is the strategy."""

    shorthand = "strategy"

    strategy: Strategy = hashed("diffusion", doc="a strategy's name, or module:attr of your own")
    diffusion: DiffusionParameters = hashed(DiffusionParameters, doc="settings of 'diffusion'")
    crop: CropParameters = hashed(CropParameters, doc="settings of 'crop'")
    rotate: RotateParameters = hashed(RotateParameters, doc="settings of 'rotate'")
    lighting: LightingParameters = hashed(LightingParameters, doc="settings of 'lighting'")
    occlusion: OcclusionParameters = hashed(OcclusionParameters, doc="settings of 'occlusion'")
    blur: BlurParameters = hashed(BlurParameters, doc="settings of 'blur'")
    mixup: MixupParameters = hashed(MixupParameters, doc="settings of 'mixup'")
    inpaint: InpaintParameters = hashed(InpaintParameters, doc="settings of 'inpaint'")
    parameters: Mapping[str, Any] = hashed({}, doc="settings of a strategy of your own")
    redraw: Literal["once", "each_epoch"] = hashed(
        "once", doc="'once': the same draw in every epoch; 'each_epoch': a new draw in each epoch"
    )
    corruption_seed: Literal["shared", "per_trial"] = hashed(
        "shared",
        doc="'shared': the same draws for every seed; 'per_trial': drawn with the trial's seed",
    )

    @field_validator("parameters")
    @classmethod
    def _validate_parameters(
        cls, value: Mapping[str, Any], info: ValidationInfo
    ) -> Mapping[str, Any]:
        """Validate a user's own settings with the strategy's own section, and fill in defaults."""
        name = info.data.get("strategy", "")  # missing if it is invalid itself
        if not registry.is_plugin(name):
            return value
        try:
            return _load_plugin_section(name).model_validate(dict(value)).model_dump(mode="json")
        except ValidationError as error:
            raise ValueError(_format_error(error)) from None

    @model_validator(mode="after")
    def _check_inpaint_path(self) -> RejectedImageConfig:
        path = self.inpaint.path
        if self.strategy != "inpaint":
            return self
        if path is None:
            raise ValueError("'inpaint' needs rejected_image.inpaint.path: a pipeline's folder")
        if not os.path.isfile(expand_path(path) / "model_index.json"):
            raise ValueError(f"inpaint.path: no diffusers pipeline in {path}: name its folder")
        return self

    @property
    def settings(self) -> Section:
        """The settings of the chosen strategy."""
        if registry.is_plugin(self.strategy):
            return _load_plugin_section(self.strategy).model_validate(dict(self.parameters))
        section: Section = getattr(self, self.strategy, NoParameters())
        return section


def _format_error(error: ValidationError) -> str:
    return "; ".join(
        ": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors()
    )


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    """AdamW, its schedule, clipping."""

    lr: float = hashed(5e-7, gt=0, doc="peak learning rate")
    betas: tuple[Decay, Decay] = hashed((0.9, 0.999), doc="AdamW's betas")
    eps: float = hashed(1e-8, gt=0, doc="AdamW's epsilon")
    weight_decay: float = hashed(0.0, ge=0, doc="decoupled weight decay")
    schedule: Literal["cosine", "constant"] = hashed(
        "cosine", doc="shape after the warm-up: a cosine to 0, or constant"
    )
    warmup: float = hashed(0.03, ge=0, lt=1, doc="fraction of the steps with a rising rate")
    clip: float | None = hashed(20.0, gt=0, doc="maximum global gradient norm; null: no clipping")
    vision_lr: float | None = hashed(None, gt=0, doc="the vision encoder's own peak rate; null: lr")
    projector_lr: float | None = hashed(None, gt=0, doc="the projector's own peak rate; null: lr")
    states: Literal["fp32", "int8"] = hashed(
        "fp32",
        doc="precision of AdamW's two moments; 'int8': blocks of 256 with a scale each; needs "
        "torchao",
    )


class LoraConfig(Section):
    """Low-rank adapters on linear layers of parts set to 'lora'; dropout is 0, as everywhere."""

    rank: int = hashed(16, ge=1, doc="rank of each update")
    alpha: float = hashed(32.0, gt=0, doc="an update is scaled by alpha / rank")
    targets: Literal["all"] | tuple[str, ...] = hashed(
        "all",
        doc="in the language model: 'all' linear layers of the decoder, or the last parts of "
        "their names, e.g. [q_proj, v_proj]; the vision encoder and the projector always "
        "have them on all layers",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _wrap_single_target(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all" else value

    @field_validator("targets")
    @classmethod
    def _require_target(cls, value: Any) -> Any:
        if not value:
            raise ValueError("names no layer: write all, or names such as [q_proj, v_proj]")
        return value


class StagedConfig(Section):
    """The vision encoder alone first, then everything that is trained."""

    share: float = hashed(0.3, gt=0, lt=1, doc="fraction of the steps that train only the encoder")


class ConstraintConfig(Section):
    """The condition, relative to the untrained model, that a checkpoint must meet to be picked."""

    metric: str = hashed(doc="a figure under `select`, such as select/shapes/cover")
    max_drop: float = hashed(
        ge=0,
        doc="how much worse than the untrained model's it may be, in percentage points for a "
        "rate, otherwise in its own unit",
    )


class PickConfig(Shorthand):
    """Which checkpoint of a training becomes the trial's model. A bare string is the rule."""

    shorthand = "rule"

    rule: Literal["last", "best"] = hashed(
        "last", doc="'last': the end of the training; 'best': by `metric`, within the constraint"
    )
    metric: str | None = hashed(None, doc="for 'best': a figure under `select`")
    constraint: ConstraintConfig | None = hashed(
        None, doc="for 'best': the condition that it must meet; null: none"
    )

    @model_validator(mode="after")
    def _check_rule_settings(self) -> PickConfig:
        if self.rule == "best" and self.metric is None:
            raise ValueError("'best' needs a metric: write `metric: select/BENCHMARK/METRIC`")
        if self.rule == "last" and (self.metric, self.constraint) != (None, None):
            raise ValueError("'last' uses no metric: write `rule: best`, or leave out the others")
        return self


class TrainingConfig(Section):
    """The length of a training and its batches."""

    epochs: int = hashed(1, ge=1, doc="passes over the pairs")
    max_steps: int | None = hashed(None, ge=1, doc="stop after this many updates")
    batch_size: int = hashed(32, ge=1, doc="global batch: pairs per update")
    max_length: int = hashed(2048, ge=16, doc="longest sequence; only responses are cut")
    label_rule: Literal["clean", "released"] = hashed(
        "clean",
        doc="which tokens are scored: 'clean': those of the response; 'released': as in the "
        "model family's released training, if that differs (docs/muffin.md)",
    )
    augment: Literal["off", "released"] = hashed(
        "off",
        doc="'released': a new random augmentation of every image in each epoch, as in Muffin's "
        "released training (docs/muffin.md)",
    )
    master: Literal["fp32"] = hashed(
        "fp32",
        doc="precision of the weights that the optimizer updates: fp32, whatever model.dtype is",
    )
    gradients: Literal["fp32", "bf16"] = hashed(
        "fp32",
        doc="precision in which a batch's gradient is accumulated; 'bf16' takes half the memory "
        "and needs model.dtype bf16",
    )
    score_at: tuple[float, ...] = hashed(
        (),
        doc="fractions of the steps after which the model is kept and answers `select`, such as "
        "[0.25, 0.5]; the end is always included",
    )
    pick: PickConfig = hashed(PickConfig, doc="which of those models becomes the trial's")

    @field_validator("score_at")
    @classmethod
    def _validate_score_at(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        outside = [share for share in value if not 0 < share <= 1]
        if outside:
            raise ValueError(
                f"{outside[0]:g} is not a fraction of a training: write one above 0, up to 1"
            )
        if list(value) != sorted(set(value)):
            raise ValueError("must increase: write the smallest first, and each once")
        return value

    @model_validator(mode="after")
    def _check_pick(self) -> TrainingConfig:
        if not self.score_at and self.pick != PickConfig():
            raise ValueError("pick has no effect without score_at: write it, such as [0.5, 1.0]")
        return self

    def scored_steps(self, steps: int) -> tuple[int, ...]:
        """Return the steps of a training after which its model is scored, including the last."""
        if not self.score_at:
            return ()
        return tuple(sorted({*(max(1, round(share * steps)) for share in self.score_at), steps}))


class EngineConfig(Section):
    """How the work is done. Nothing here changes what is computed, except for rounding."""

    micro_batch: int = unhashed(4, ge=1, doc="pairs per forward pass; gradients are accumulated")
    device: Literal["auto", "cpu", "cuda"] = unhashed("auto", doc="'auto': CUDA if there is a GPU")
    threads: int | None = unhashed(None, ge=1, doc="CPU threads of a worker; null: torch's own")
    workers_per_trial: int = unhashed(1, ge=1, doc="processes that share a training")
    gpus_per_worker: float = unhashed(
        0.0,
        ge=0,
        le=1,
        doc="GPUs per process: one, or a fraction of one if a trial has one worker",
    )
    cpus_per_worker: int = unhashed(1, ge=1, doc="CPUs per process")
    parallel: Literal["auto", "ddp", "fsdp", "hsdp"] = unhashed(
        "auto",
        doc="how several workers share a model: 'ddp': each has the whole model; 'fsdp': each "
        "has a part; 'hsdp': each has a part, and each machine has all parts; 'auto': 'fsdp' "
        "if the model does not fit one GPU, or 'hsdp' if it then fits the GPUs of each of "
        "several machines",
    )
    bucket: bool = unhashed(True, doc="whether pairs of similar length are computed together")
    loader_workers: int | None = unhashed(
        None, ge=0, doc="processes that read and encode pairs ahead; null: 2 with a GPU, else none"
    )
    generation_batch: int = unhashed(64, ge=1, doc="items decoded together")
    log_every: int = unhashed(1, ge=1, doc="steps between points of the training curves")
    checkpoint_every: int | None = unhashed(
        None, ge=1, doc="steps between checkpoints of a training; null: none"
    )
    fresh_process: bool = unhashed(
        False,
        doc="whether each trial on Ray has its own process; otherwise a process runs one trial "
        "after another, with the same figures",
    )
    retries: int = unhashed(
        3,
        ge=0,
        doc="further attempts of a trial within a run after its worker or node was lost",
    )
    stall_after: float | None = unhashed(
        3600.0,
        gt=0,
        doc="seconds without progress after which a worker on Ray counts as hanging, and is lost; "
        "null: never",
    )
    gradient_checkpointing: bool = unhashed(
        False, doc="whether layers are recomputed in the backward pass, to save memory"
    )
    prefix_sharing: Literal["auto", "off"] = unhashed(
        "auto",
        doc="'auto': chosen and rejected share one prompt's computation if that is exact; 'off': "
        "one pass per response",
    )
    feature_cache: Literal["auto", "on", "off"] = unhashed(
        "auto",
        doc="whether a frozen vision encoder's output is cached for all trials; 'auto': only for "
        "trials without a GPU",
    )
    logits_chunk: int | None = unhashed(
        512,
        ge=1,
        doc="response positions whose logits are in memory at the same time; null: as many as "
        "fit 1/32 of a GPU's memory, at least 512; 512 on a CPU",
    )
    compile: Literal["off", "layers"] = unhashed(
        "off",
        doc="'layers': the decoder's layers are compiled one by one (torch.compile), for a "
        "training of one worker",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = (
        unhashed("auto", doc="kind of attention; 'auto': transformers' choice for the model")
    )

    @property
    def uses_gpu(self) -> bool:
        """Whether a worker computes on a GPU; under 'auto', if one is reserved for it."""
        return self.device == "cuda" or (self.device == "auto" and self.gpus_per_worker > 0)

    @field_validator("gpus_per_worker", mode="before")
    @classmethod
    def _validate_gpus_per_worker(cls, value: Any) -> Any:
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 1:
            raise ValueError(
                f"{value:g} GPUs are requested, but a worker uses one: write 1, and set "
                "workers_per_trial to the number of workers that share a training"
            )
        return value

    @model_validator(mode="after")
    def _check_compile_workers(self) -> EngineConfig:
        if self.compile == "layers" and self.workers_per_trial > 1:
            raise ValueError(
                f"compile is layers, which is for one worker, but workers_per_trial is "
                f"{self.workers_per_trial}: write compile: off, or workers_per_trial: 1"
            )
        return self

    @model_validator(mode="after")
    def _check_gpu_sharing(self) -> EngineConfig:
        if self.workers_per_trial > 1 and 0 < self.gpus_per_worker < 1:
            raise ValueError(
                f"{self.workers_per_trial} workers of a trial cannot share a GPU (NCCL refuses "
                f"it), but gpus_per_worker is {self.gpus_per_worker:g}: write gpus_per_worker: 1, "
                "or workers_per_trial: 1"
            )
        return self


class TrialConfig(Section):
    """One trial: a model trained with one objective and one seed, and its benchmarks."""

    model: ModelConfig = hashed(doc="the model")
    data: DataConfig = hashed(DataConfig, doc="the preference pairs")
    pairs: PairsConfig = hashed(
        PairsConfig, doc="pairs of the model's own answers, instead of the data's"
    )
    objective: ObjectiveConfig = hashed(ObjectiveConfig, doc="the training objective")
    rejected_image: RejectedImageConfig = hashed(
        RejectedImageConfig, doc="the visual term's rejected image"
    )
    vision_encoder: Literal["frozen", "trained", "staged", "lora"] = hashed(
        "frozen",
        doc="whether the vision encoder is trained, and how; 'staged': alone first, then with "
        "all parts",
    )
    staged: StagedConfig = hashed(StagedConfig, doc="settings of vision_encoder 'staged'")
    projector: Literal["frozen", "trained", "lora"] = hashed(
        "trained", doc="whether the projector is trained, and how"
    )
    language_model: Literal["frozen", "full", "lora"] = hashed(
        "full", doc="whether the language model is trained, and how"
    )
    lora: LoraConfig = hashed(LoraConfig, doc="settings of the parts that are 'lora'")
    reference_cache: Literal["fp32", "bf16", "off"] = hashed(
        "fp32",
        doc="precision of the reference's hidden states, which are computed once and cached for "
        "all trials; 'off': nothing is cached, and they are fp32. With model.dtype bf16 they "
        "are bf16",
    )
    optimizer: OptimizerConfig = hashed(OptimizerConfig, doc="the optimizer")
    training: TrainingConfig = hashed(TrainingConfig, doc="length and batches of the training")
    benchmarks: BenchmarksConfig = hashed(
        BenchmarksConfig, doc="the benchmarks of the trained model"
    )
    evaluation: EvaluationConfig = hashed(EvaluationConfig, doc="the engine that answers")
    seed: int = hashed(0, ge=0, le=LARGEST_SEED, doc="seed of every random draw")
    engine: EngineConfig = unhashed(EngineConfig, doc="how the work is done")

    @property
    def has_adapters(self) -> bool:
        """Whether any part is trained with adapters."""
        return "lora" in (self.vision_encoder, self.projector, self.language_model)

    @property
    def reference_precision(self) -> Literal["fp32", "bf16"]:
        """The precision that the reference's hidden states are rounded to, stored or not."""
        bf16 = self.reference_cache == "bf16" or self.model.dtype == "bf16"
        return "bf16" if bf16 else "fp32"

    @model_validator(mode="after")
    def _require_trained_part(self) -> TrialConfig:
        if (self.vision_encoder, self.projector, self.language_model) == ("frozen",) * 3:
            raise ValueError(
                "nothing is trained: vision_encoder, projector and language_model are all frozen"
            )
        return self

    @model_validator(mode="after")
    def _check_quantize(self) -> TrialConfig:
        if self.model.quantize == "none":
            return self
        if self.language_model != "lora":
            raise ValueError(
                "model.quantize is nf4, which is for adapters (QLoRA), but language_model is "
                f"{self.language_model}: write language_model: lora, or model.quantize: none"
            )
        if self.engine.parallel in ("fsdp", "hsdp"):
            raise ValueError(
                "model.quantize is nf4, but its weights cannot be sharded over workers: write "
                "engine.parallel: ddp, or model.quantize: none"
            )
        return self

    @model_validator(mode="after")
    def _check_compile_quantize(self) -> TrialConfig:
        if self.engine.compile == "layers" and self.model.quantize != "none":
            raise ValueError(
                f"engine.compile is layers, but layers with model.quantize {self.model.quantize} "
                "are not compiled: write engine.compile: off, or model.quantize: none"
            )
        return self

    @model_validator(mode="after")
    def _check_pair_rounds(self) -> TrialConfig:
        if self.pairs.rounds == 0:
            return self
        objective, unavailable = self.objective, []
        if objective.needs_rejected_image and self.rejected_image.strategy == "given":
            unavailable.append("a rejected image (rejected_image is given)")
        unavailable += ["other"] if objective.needs_third_response else []
        unavailable += ["second_image"] if objective.reads_image("second_image") else []
        unavailable += objective.fields
        if unavailable:
            raise ValueError(
                f"pairs.rounds is {self.pairs.rounds}, but pairs of the model's answers do not "
                f"have {', '.join(unavailable)}: choose another objective, or pairs.rounds: 0"
            )
        return self

    @model_validator(mode="after")
    def _check_gradients(self) -> TrialConfig:
        if self.training.gradients == "bf16" and self.model.dtype != "bf16":
            raise ValueError(
                "training.gradients is bf16, but model.dtype is fp32: write model.dtype: bf16, or "
                "training.gradients: fp32"
            )
        return self


#: A bare string at these keys sets the named key below it.
SHORTHANDS = {
    name: field.annotation.shorthand
    for name, field in TrialConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Shorthand)
} | {"evaluation.generator": GeneratorConfig.shorthand}
