"""Classifiers of torchvision and timm, each at a small resolution that it runs at."""

from collections.abc import Mapping
from functools import partial

import torchvision
from torch import nn

from training.benchmarks.coverage.subject import IMAGES, Subject

TOO_LARGE = ("regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32")
"""torchvision's classifiers of more than 200 M parameters."""
SIDE = 64
_SIDES = {"alexnet": 64, "inception_v3": 96, "maxvit_t": 224}
_SMALLEST = 32
"""Of the other classifiers of torchvision."""
_DEEP = frozenset({"efficientnet"})
"""Designs so deep and narrow at their ends that they need `_DEEP_SIDE` and `_MANY` images.

With the statistics of four images of `_SMALLEST` their outputs on others are 1e10, and rounding
grows ten million times: no law can be told there.
"""
_DEEP_SIDE, _MANY = 64, 64
_BUILT_FOR = {"vit_b_16": 32, "vit_b_32": 64}
"""Networks whose parameters depend on the resolution: the one that they are built for."""


def torchvision_subjects() -> dict[str, Subject]:
    """All classifiers of torchvision but the largest."""
    names = torchvision.models.list_models(module=torchvision.models)
    subjects = [_torchvision(name) for name in names if name not in TOO_LARGE]
    return {subject.name: subject for subject in subjects}


def _torchvision(name: str) -> Subject:
    options: dict[str, object] = {}
    family = family_of(name)
    side = _BUILT_FOR.get(name, _SIDES.get(name, _DEEP_SIDE if family in _DEEP else _SMALLEST))
    if name in _BUILT_FOR:
        options["image_size"] = side
    if name in ("inception_v3", "googlenet"):
        # Their second and third outputs exist in training mode only, at 299 pixels.
        options |= {"aux_logits": False, "init_weights": False}
    return Subject(
        name=f"torchvision/{name}",
        source="torchvision",
        family=family,
        build=partial(_made_by_torchvision, name, options),
        shape=(3, side, side),
        images=2 if name == "maxvit_t" else IMAGES,
        statistics=_MANY if family in _DEEP else None,
    )


def _made_by_torchvision(name: str, options: Mapping[str, object]) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def family_of(name: str) -> str:
    """The design that a name begins with.

    >>> family_of("resnext50_32x4d"), family_of("vit_b_16"), family_of("efficientnet_v2_s")
    ('resnext', 'vit', 'efficientnet')
    """
    letters = name.split("_")[0].rstrip("0123456789")
    known = ("mobilenet", "densenet", "efficientnet", "resnext", "wide", "swin", "vgg", "convnext")
    return next((design for design in known if name.startswith(design)), letters)


_TIMM_FIXED = {
    "beitv2_base_patch16_224",
    "botnet26t_256",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "coatnet_nano_rw_224",
    "convit_tiny",
    "deit_tiny_distilled_patch16_224",
    "efficientformerv2_s0",
    "gcvit_xxtiny",
    "gmlp_ti16_224",
    "hiera_tiny_224",
    "levit_128s",
    "maxvit_rmlp_pico_rw_256",
    "mixer_s32_224",
    "nest_tiny_jx",
    "pit_ti_224",
    "resmlp_12_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_224",
    "test_vit_relpos",
    "tnt_s_legacy_patch16_224",
    "visformer_tiny",
    "vit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "volo_d1_224",
}
"""Networks whose parameters depend on the resolution, and so are built for `SIDE`."""
TIMM = (
    "botnet26t_256",
    "gernet_s",
    "repvgg_a0",
    "mobileone_s0",
    "gcresnext26ts",
    "convmixer_768_32",
    "convnext_atto",
    "convnextv2_atto",
    "cs3darknet_focus_s",
    "cspresnet50",
    "darknet53",
    "cspnext_tiny",
    "densenet121",
    "dla46_c",
    "dla60_res2net",
    "dpn48b",
    "edgenext_xx_small",
    "efficientnet_b0",
    "tf_efficientnetv2_b0",
    "mixnet_s",
    "mnasnet_small",
    "hardcorenas_a",
    "fasternet_t0",
    "fastvit_t8",
    "ghostnet_050",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_next_atto",
    "lcnetv2_small",
    "mambaout_femto",
    "poolformer_s12",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_050",
    "mobilenetv2_050",
    "nf_regnet_b0",
    "pvt_v2_b0",
    "regnetx_002",
    "regnety_002",
    "repghostnet_050",
    "repvit_m0_9",
    "res2net50_14w_8s",
    "resnest14d",
    "resnet10t",
    "seresnet50",
    "ecaresnet26t",
    "resnetv2_50x1_bit",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "tresnet_m",
    "vgg11_bn",
    "ese_vovnet19b_slim_dw",
    "xception41",
    "legacy_xception",
    "efficientvit_b0",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
    "levit_128s",
    "pit_ti_224",
    "mixer_s32_224",
    "resmlp_12_224",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "convit_tiny",
    "efficientformerv2_s0",
    "maxvit_rmlp_pico_rw_256",
    "mvitv2_tiny",
    "twins_svt_small",
    "visformer_tiny",
    "xcit_nano_12_p16_224",
)
"""One or a few small networks of as many of timm's families as can be built at `SIDE` pixels."""


def timm_subjects() -> dict[str, Subject]:
    """Small networks of timm, with random weights."""
    subjects = [_timm(name) for name in TIMM]
    return {subject.name: subject for subject in subjects}


def _timm(name: str) -> Subject:
    options = {"img_size": SIDE} if name in _TIMM_FIXED else {}
    return Subject(
        name=f"timm/{name}",
        source="timm",
        family=family_of(name),
        build=partial(_made_by_timm, name, options),
        shape=(3, SIDE, SIDE),
    )


def _made_by_timm(name: str, options: Mapping[str, int]) -> nn.Module:
    import timm  # Of the extra `benchmarks`.

    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model
