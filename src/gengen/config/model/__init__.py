"""Model configs, a file for each kind of model; importing this package registers them all."""

from gengen.config.model.autoencoder import AUTOENCODER_SIZES, AutoencoderConfig
from gengen.config.model.base import ImageModelConfig, ModelConfig, check_levels
from gengen.config.model.diffusion import (
    LDM_SIZES,
    UNET_SIZES,
    DiffusionConfig,
    DiffusionProcess,
    LDMConfig,
    UNetConfig,
    register_diffusion,
)
from gengen.config.model.dit import DIT_SIZES, DiTConfig, LatentDiTConfig
from gengen.config.model.gan import GAN_SIZES, AdversarialConfig, DCGANConfig, GANConfig
from gengen.config.model.gpt import GPT_SIZES, GPTConfig
from gengen.config.model.lora import LoRAConfig

__all__ = [
    "AUTOENCODER_SIZES",
    "DIT_SIZES",
    "GAN_SIZES",
    "GPT_SIZES",
    "LDM_SIZES",
    "UNET_SIZES",
    "AdversarialConfig",
    "AutoencoderConfig",
    "DCGANConfig",
    "DiTConfig",
    "DiffusionConfig",
    "DiffusionProcess",
    "GANConfig",
    "GPTConfig",
    "ImageModelConfig",
    "LDMConfig",
    "LatentDiTConfig",
    "LoRAConfig",
    "ModelConfig",
    "UNetConfig",
    "check_levels",
    "register_diffusion",
]
