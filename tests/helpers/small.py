"""Options of small networks, from which tests derive theirs."""

from typing import Any

LEVELS: dict[str, Any] = {
    "ch": 8,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "resolution": 16,
    "groups": 4,
}
"""Of encoders and decoders as VQGAN's."""
EMBEDDER = {**LEVELS, "z_channels": 8, "n_embed": 30, "embed_dim": 8, "tokens": 7, "context_dim": 6}
"""Of OSDFace's VisualEmbedder."""
DENOISER: dict[str, Any] = {
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "mid_block_type": None,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 6,
    "attention_head_dim": [2],
    "use_linear_projection": True,
}
"""Of diffusers' UNet2DConditionModel."""
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
}
"""Of diffusers' AutoencoderKL."""
RECOGNIZER: dict[str, Any] = {"layers": [1, 1, 1, 1], "widths": [4, 4, 4, 4], "image_size": 16, "embedding": 6}
"""Of IResNet."""
AUTOENCODER = {**LEVELS, "ch": 4, "groups": 2, "attn_resolutions": [], "resolution": 32}
AUTOENCODER |= {"z_channels": 3, "n_embed": 32, "embed_dim": 3}
"""Of CLR-Face's VQModel."""
IRN: dict[str, Any] = {"model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [], "channel_mult": [1]}
"""Of CLR-Face's recovery network."""
LEARNED_UNET: dict[str, Any] = {"in_channels": 3, "out_channels": 6, "model_channels": 32, "use_scale_shift_norm": True}
LEARNED_UNET |= {"attention_resolutions": [], "channel_mult": [1]}
"""Of a UNet with learned variance."""
