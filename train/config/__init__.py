"""Typed options of training; imports neither torch nor diffusers."""

from typing import TYPE_CHECKING

from inference.lazy import lazy

if TYPE_CHECKING:
    from train.config.checks import rule_sentences, strategy_faults, zero_faults
    from train.config.clips import Bucket, ClipDataConfig, ImageConditionConfig
    from train.config.concepts import FILEWORDS, ConceptConfig
    from train.config.containers import (
        ColumnsConfig,
        ContainerConfig,
        StreamingConfig,
        is_address,
        is_commit,
    )
    from train.config.data import DataConfig, ExampleConfig, SubsetConfig, has_streamed
    from train.config.devices import TrainMemoryConfig, TrainParallelConfig
    from train.config.examples import (
        CaptionConfig,
        ColorJitterConfig,
        MaskConfig,
        PictureBucketsConfig,
        Size,
        parse_size,
    )
    from train.config.objectives import (
        OBJECTIVE_CONFIGS,
        AutoencoderConfig,
        CombinedConfig,
        DreamboothConfig,
        HypernetworkConfig,
        LoraConfig,
        MemberConfig,
        ObjectiveConfig,
        TextualInversionConfig,
        WholePartsConfig,
    )
    from train.config.optimization import (
        LR_SCHEDULES,
        OPTIMIZERS,
        GuardConfig,
        LRSchedulerConfig,
        OptimizerConfig,
        Registry,
        function_of,
        parse_schedule,
    )
    from train.config.recipe import (
        LossConfig,
        MetadataConfig,
        TrainRecipe,
        named_stages,
        recipe_in,
        stage_recipes,
    )
    from train.config.schema import (
        MOVED,
        choices,
        plugin_options,
        schema_text,
        train_schema,
        with_plugins,
    )
    from train.config.stages import ValidationConfig

__all__ = [
    "FILEWORDS", "LR_SCHEDULES", "MOVED", "OBJECTIVE_CONFIGS", "OPTIMIZERS", "AutoencoderConfig",
    "Bucket", "CaptionConfig", "ClipDataConfig", "ColorJitterConfig", "ColumnsConfig",
    "CombinedConfig", "ConceptConfig", "ContainerConfig", "DataConfig", "DreamboothConfig",
    "ExampleConfig", "GuardConfig", "HypernetworkConfig", "ImageConditionConfig",
    "LRSchedulerConfig", "LoraConfig", "LossConfig", "MaskConfig", "MemberConfig", "MetadataConfig",
    "ObjectiveConfig", "OptimizerConfig", "PictureBucketsConfig", "Registry", "Size",
    "StreamingConfig", "SubsetConfig", "TextualInversionConfig", "TrainMemoryConfig",
    "TrainParallelConfig", "TrainRecipe", "ValidationConfig", "WholePartsConfig", "choices",
    "function_of", "has_streamed", "is_address", "is_commit", "named_stages", "parse_schedule",
    "parse_size", "plugin_options", "recipe_in", "rule_sentences", "schema_text", "stage_recipes",
    "strategy_faults", "train_schema", "with_plugins", "zero_faults",
]  # fmt: skip

__getattr__ = lazy(__name__, __file__)
