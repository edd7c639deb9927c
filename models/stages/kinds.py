"""Every kind of network that a bundle may hold, by the name that its manifest gives it."""

from typing import Any

from torch import nn

from bfr.models.stages.guide import DecodeStage, EmbedStage, EncodeStage, GuideStage, RecoverStage
from bfr.models.stages.osdface import LatentDecodeStage, LatentEncodeStage, PromptStage
from bfr.models.stages.pgdiff import ReferenceStage, ReferenceStep, SmoothStep
from bfr.models.stages.stage import Stage
from bfr.models.stages.step import (
    ConcatStep,
    ConditionerStage,
    ContextStep,
    EstimatorStage,
    InpaintStage,
    KnownStep,
    LearnedVarianceStep,
    LinearStep,
    ResizeStage,
)
from bfr.runtime.errors import BundleInvalid

STAGES: dict[str, type[Stage]] = {
    stage.kind: stage
    for stage in (
        EstimatorStage,
        InpaintStage,
        LinearStep,
        ConcatStep,
        ContextStep,
        KnownStep,
        LearnedVarianceStep,
        ConditionerStage,
        ResizeStage,
        GuideStage,
        EmbedStage,
        EncodeStage,
        RecoverStage,
        DecodeStage,
        LatentEncodeStage,
        PromptStage,
        LatentDecodeStage,
        SmoothStep,
        ReferenceStage,
        ReferenceStep,
    )
}


def make_stage(kind: str, network: nn.Module, options: dict[str, Any]) -> Stage:
    """The stage of a kind around a network, in eval mode. Raises BundleInvalid for a kind that is not known."""
    if kind not in STAGES:
        raise BundleInvalid(f"a network of kind {kind!r} is unknown to this bfr: upgrade bfr")
    made: Any = STAGES[kind]
    stage: Stage = made(network, **options)
    return stage.eval()
