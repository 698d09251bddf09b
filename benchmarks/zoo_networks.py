"""The networks of the zoo: architectures from torchvision, timm, segmentation-models-pytorch, MONAI and Hugging Face.

All weights are random. Every network is the smallest of its family, at a small image size. A network whose forward
takes several inputs or does not return a tensor appears twice: unchanged, and inside a module that supplies the other
inputs and returns one tensor. The name of the second ends in ``picked``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Attributes:
        build: function that builds the network with random weights.
        shape: shape of the example input.
        tokens: size of the vocabulary if the input holds token indices; 0 if it holds pixels.
        export: whether to export the network to ONNX.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 3, 64, 64)
    tokens: int = 0
    export: bool = False

    def example(self) -> Tensor:
        """Return an example input, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        if self.tokens:
            return torch.randint(self.tokens, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator)


class Picked(nn.Module):
    """Wrapper that gives a network one input tensor and one output tensor.

    Args:
        network: the network to call.
        key: attribute or key of the network's output to return.
        named: further inputs of the network.
    """

    def __init__(self, network: nn.Module, key: str, named: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self.key, self.named = network, key, dict(named)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor under ``key`` in the network's output."""
        output = self.network(x, **self.named)
        found: Tensor = output[self.key] if isinstance(output, dict) else getattr(output, self.key)
        return found


def make(module: str, name: str, *arguments: Any, **named: Any) -> nn.Module:
    """Call ``name`` of ``module``. The import happens here, so that one network needs only its own library."""
    importlib.import_module("common.torchvision_compat")  # must come before any import of torchvision
    built: nn.Module = getattr(importlib.import_module(module), name)(*arguments, **named)
    return built


def make_picked(build: Callable[[], nn.Module], key: str, named: Mapping[str, Any]) -> nn.Module:
    """Build a network inside a :class:`Picked`."""
    return Picked(build(), key, named)


def make_transformer(model: str, config: str, named: Mapping[str, Any]) -> nn.Module:
    """Build a network of Hugging Face's transformers; a nested configuration is a pair (class name, values)."""
    transformers = importlib.import_module("transformers")
    values = {
        key: getattr(transformers, value[0])(**value[1]) if isinstance(value, tuple) else value
        for key, value in named.items()
    }
    return make("transformers", model, getattr(transformers, config)(**values))


def square(size: int, channels: int = 3) -> tuple[int, ...]:
    """Return the shape of a batch of two square images."""
    return (2, channels, size, size)


TORCHVISION = {  # name -> image size in pixels; a star marks networks to export
    "alexnet": "64*", "vgg11": "32", "resnet18": "64*", "resnet50": "64", "resnext50_32x4d": "64",
    "wide_resnet50_2": "64", "squeezenet1_1": "64*", "densenet121": "64", "inception_v3": "299", "googlenet": "64*",
    "shufflenet_v2_x0_5": "64*", "mobilenet_v2": "64*", "mobilenet_v3_small": "64*", "mnasnet0_5": "64*",
    "efficientnet_b0": "64", "efficientnet_v2_s": "64", "regnet_y_400mf": "64*", "regnet_x_400mf": "64",
    "convnext_tiny": "64*", "swin_t": "64*", "swin_v2_t": "64", "maxvit_t": "224",
}  # fmt: skip
TIMM = {  # as above; an i marks networks that take the image size as an argument
    "tf_efficientnet_b0": "64*", "tf_mixnet_s": "64", "tf_mobilenetv3_small_075": "64", "resnetv2_18": "64",
    "resnetv2_50x1_bit": "64*", "nf_resnet26": "64*", "nf_regnet_b0": "64", "eca_nfnet_l0": "64", "dm_nfnet_f0": "64",
    "xcit_nano_12_p16_224": "64i*", "edgenext_xx_small": "64*", "mobilevit_xxs": "64*", "mobilevitv2_050": "64",
    "cait_xxs24_224": "64i", "convnext_atto": "64*", "convnextv2_atto": "64", "convnext_atto_ols": "64",
    "ghostnet_050": "64*", "ghostnetv2_100": "64", "hrnet_w18_small": "64", "dla34": "64", "dla46x_c": "64",
    "ese_vovnet19b_slim": "64", "repvgg_a0": "64*", "res2net50_14w_8s": "64", "resnest14d": "64*", "skresnet18": "64",
    "mixer_s32_224": "64i*", "resmlp_12_224": "64i", "gmlp_ti16_224": "64i", "levit_128s": "224",
    "levit_conv_128s": "224", "coat_lite_tiny": "64i", "poolformer_s12": "64*", "davit_tiny": "64",
    "regnetz_005": "64", "mobileone_s0": "64", "efficientformer_l1": "224", "efficientformerv2_s0": "224",
    "fastvit_t8": "64", "twins_svt_small": "64i", "twins_pcpvt_small": "64i", "pvt_v2_b0": "64*",
    "vit_tiny_patch16_224": "64i*", "deit_tiny_distilled_patch16_224": "64i", "beit_base_patch16_224": "64i",
    "eva02_tiny_patch14_224": "56i", "crossvit_9_240": "240", "coatnet_nano_rw_224": "224",
    "maxvit_rmlp_pico_rw_256": "256", "volo_d1_224": "224", "focalnet_tiny_srf": "64", "gcvit_xxtiny": "224",
    "swiftformer_xs": "224", "tiny_vit_5m_224": "224", "repvit_m0_9": "64", "hgnetv2_b0": "64", "lcnet_050": "64",
    "mobilenetv4_conv_small": "64", "mobilenetv4_hybrid_medium": "64", "rexnet_100": "64", "visformer_tiny": "224",
    "sequencer2d_s": "224", "convmixer_768_32": "64", "pit_ti_224": "224", "tnt_s_patch16_224": "224",
    "nest_tiny": "224", "halonet26t": "256", "botnet26t_256": "256", "lambda_resnet26t": "256", "convit_tiny": "224",
    "efficientvit_b0": "64", "efficientvit_m0": "224", "dpn48b": "64", "xception41": "64", "inception_v4": "128",
    "cs3darknet_focus_s": "64", "selecsls42": "64", "fbnetc_100": "64", "gernet_s": "64", "starnet_s050": "64",
    "mambaout_femto": "64", "hiera_tiny_224": "224", "nextvit_small": "64", "fasternet_t0": "64",
    "inception_next_atto": "64", "tf_efficientnet_cc_b0_4e": "64", "shvit_s1": "224", "legacy_seresnet18": "64",
    "bat_resnext26ts": "256",
}  # fmt: skip
SMP = {  # a star marks networks to export
    "Unet": "*", "UnetPlusPlus": "*", "FPN": "*", "PSPNet": "", "DeepLabV3": "", "DeepLabV3Plus": "*", "Linknet": "*",
    "MAnet": "", "PAN": "", "UPerNet": "", "Segformer": "",
}  # fmt: skip


def _torchvision() -> dict[str, Network]:
    models, named = "torchvision.models", {"weights": None, "num_classes": 10}
    found = {}
    for name, size in TORCHVISION.items():
        more = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        build = partial(make, models, name, **named, **more)
        found[name] = Network(build, square(int(size.rstrip("*"))), export="*" in size)
    vit = partial(make, models, "VisionTransformer", 64, 16, 4, 3, 96, 192, num_classes=10)
    found["vit"] = Network(vit, export=True)
    segmentation = {"weights": None, "weights_backbone": None, "num_classes": 4}
    for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
        build = partial(make, f"{models}.segmentation", name, **segmentation)
        found |= _both(name, build, "out")
    for name in ("fasterrcnn_mobilenet_v3_large_320_fpn", "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn"):
        found[name] = Network(partial(make, f"{models}.detection", name, **segmentation))
    for name, pixels in (("r3d_18", 32), ("mc3_18", 32), ("r2plus1d_18", 32), ("swin3d_t", 64)):
        found[name] = Network(partial(make, f"{models}.video", name, **named), (2, 3, 4, pixels, pixels))
    return found


def _timm() -> dict[str, Network]:
    found = {}
    for name, size in TIMM.items():
        pixels = int(size.rstrip("i*"))
        named = {"img_size": pixels} if "i" in size else {}
        build = partial(make, "timm", "create_model", name, pretrained=False, num_classes=10, **named)
        found[name] = Network(build, square(pixels), export="*" in size)
    features = partial(make, "timm", "create_model", "resnet18", pretrained=False, features_only=True)
    return found | {"resnet18 features_only": Network(features, export=True)}


def _smp() -> dict[str, Network]:
    found = {}
    for name, mark in SMP.items():
        encoder = {"Segformer": "mit_b0", "Unet": "resnet18"}.get(name, "mobilenet_v2")
        build = partial(make, "segmentation_models_pytorch", name, encoder_name=encoder, encoder_weights=None)
        found[name] = Network(build, square(128 if name == "PAN" else 64), export=bool(mark))
    auxiliary = partial(
        make, "segmentation_models_pytorch", "Unet", "mobilenet_v2", encoder_weights=None, aux_params={"classes": 3}
    )
    return found | {"Unet with a classifier": Network(auxiliary)}


def _monai() -> dict[str, Network]:
    flat, deep = square(64, 1), (1, 1, 32, 32, 32)
    narrow = {"channels": (8, 16, 32), "strides": (2, 2)}
    kernels = {"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2)}
    found = {}
    for axes, shape in ((2, flat), (3, deep)):
        ends = {"spatial_dims": axes, "in_channels": 1, "out_channels": 2}
        given: dict[str, dict[str, Any]] = {
            "UNet": narrow | {"num_res_units": 2},
            "BasicUNet": {"features": (8, 8, 16, 32, 32, 8)},
            "SegResNet": {"init_filters": 8},
            "DynUNet": kernels | {"filters": (8, 16, 32)},
            "AttentionUnet": narrow,
            "UNETR": {"img_size": shape[-1], "feature_size": 8, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4},
        }
        for name, named in given.items():
            build = partial(make, "monai.networks.nets", name, **ends, **named)
            found[f"{name} {axes}-D"] = Network(build, shape, export=axes == 2)
    return found


def _diffusers() -> dict[str, Network]:
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    coders = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    narrow = {"block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 32}
    unet = partial(make, "diffusers", "UNet2DModel", **narrow, **blocks)
    coder = partial(make, "diffusers", "AutoencoderKL", **narrow, **coders)
    return {
        **_both("UNet2DModel", unet, "sample", {"timestep": 10}, square(32)),
        **_both("AutoencoderKL", coder, "sample", shape=square(32)),
    }


def _transformers() -> dict[str, Network]:
    narrow = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
    viewer = narrow | {"image_size": 64, "patch_size": 16}
    stages = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1]}
    detr: dict[str, Any] = {
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
    }
    backbone = ("ResNetConfig", {"embedding_size": 16, **stages, "out_features": ["stage4"]})
    detr |= {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    windows = {"embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "image_size": 64}
    factors = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
    given: dict[str, tuple[str, str, dict[str, Any], str]] = {
        "ViT": ("ViTForImageClassification", "ViTConfig", viewer, "logits"),
        "DeiT": ("DeiTForImageClassification", "DeiTConfig", viewer, "logits"),
        "CLIP vision": ("CLIPVisionModel", "CLIPVisionConfig", viewer, "pooler_output"),
        "MobileNetV2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"image_size": 64}, "logits"),
        "ResNet": ("ResNetForImageClassification", "ResNetConfig", {"embedding_size": 16, **stages}, "logits"),
        "ConvNext": ("ConvNextForImageClassification", "ConvNextConfig", stages, "logits"),
        "Segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", {}, "logits"),
        "BiT": ("BitForImageClassification", "BitConfig", {"embedding_size": 16, "num_groups": 4, **stages}, "logits"),
        "EfficientNet": ("EfficientNetForImageClassification", "EfficientNetConfig", factors, "logits"),
        "Swin": ("SwinForImageClassification", "SwinConfig", windows, "logits"),
        "DETR": ("DetrForObjectDetection", "DetrConfig", detr | {"backbone_config": backbone}, "pred_boxes"),
    }
    found: dict[str, Network] = {}
    for name, (model, config, named, key) in given.items():
        found |= _both(name, partial(make_transformer, model, config, named), key)
    bert = partial(make_transformer, "BertModel", "BertConfig", narrow | {"vocab_size": 100})
    return found | _both("BERT", bert, "last_hidden_state", shape=(2, 16), tokens=100)


def _both(
    name: str,
    build: Callable[[], nn.Module],
    key: str,
    named: Mapping[str, Any] | None = None,
    shape: tuple[int, ...] = (2, 3, 64, 64),
    tokens: int = 0,
) -> dict[str, Network]:
    """Return a network unchanged, and picked; only the second is exported."""
    picked = partial(make_picked, build, key, named or {})
    return {name: Network(build, shape, tokens), f"{name} picked": Network(picked, shape, tokens, export=True)}


LIBRARIES: dict[str, Callable[[], dict[str, Network]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "smp": _smp,
    "monai": _monai,
    "diffusers": _diffusers,
    "transformers": _transformers,
}
NETWORKS = {
    f"{library}/{name}": network for library, networks in LIBRARIES.items() for name, network in networks().items()
}
"""All networks by library and name. The libraries are imported only when a network is built."""
