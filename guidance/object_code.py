"""Object codes: vectors that hold what a caption leaves unspecified, such as unnamed colours and the exact shape.

A code is encoded from views of an object, or sampled for a caption as in unCLIP (Ramesh et al. 2022, arXiv 2204.06125),
whose prior samples an image embedding. `guidance.coarse` predicts latents of any view from caption and code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS = 8
"""Number of tokens into which the networks split a code."""
ENCODER_WIDTH, SAMPLER_WIDTH, HEADS = 192, 96, 4
"""Features per token of the encoder and of the sampler, and attention heads of both."""
ENCODER_LAYERS, TEXT_LAYERS, SAMPLER_LAYERS = 3, 1, 4
PATCH = 4
"""Side in latent pixels of the patch that is one token of the encoder."""
FREQUENCIES = 32
SAMPLING_STEPS, GUIDANCE = 24, 2.0
"""Euler steps from noise to a code, and scale of the classifier-free guidance."""
EDIT_STRENGTH = 0.75
"""Noise strength in (0, 1] with which an object's code is resampled for another caption (SDEdit); 1: pure noise."""
SUBJECT_STRENGTH, SUBJECT_GUIDANCE = 0.5, 4.0
"""Noise strength and guidance scale with which the code of a DreamBooth subject is resampled for another caption.

More of either adds accessories more often, but keeps less of the subject (docs/experiments/mvdreambooth.md)."""


def transformer(layers: int, width: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, HEADS, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)


def sinusoids(t: Tensor) -> Tensor:
    """Encode numbers `t` (B,) in [0, 1], times or noise levels, as sines and cosines (B, 2 FREQUENCIES).

    The angles in radians are t times each of FREQUENCIES (32) factors, spaced geometrically from 1 to e^5. All sines
    come first.
    """
    angles = t[:, None] * torch.exp(torch.linspace(0, 5, FREQUENCIES, device=t.device))
    return torch.cat([angles.sin(), angles.cos()], 1)


class ObjectEncoder(nn.Module):
    """Transformer that computes object codes from clean latents of one or more views of each object.

    An object code is a vector for what a caption leaves unspecified, such as colours and the exact shape. `forward`
    maps latents (B, V, C, h, h) and camera features (B, V, F) of V views per object to codes (B, code_width). The
    camera features describe azimuth and height (`view_fusion.camera_harmonics`). `TOKENS` (8) learned queries and the
    latent patches of all views attend to each other; each query gives a part of the code.
    """

    def __init__(self, latent_channels: int, size: int, camera_features: int, code_width: int) -> None:
        """Build the encoder for latents (C, h, h) with C = `latent_channels` and h = `size`.

        `camera_features` is the number F of values that describe a camera: sines and cosines of multiples of its
        azimuth, and z and z^2 of its position on the unit sphere (`view_fusion.camera_harmonics`). `code_width` is the
        length of an object code.
        """
        super().__init__()
        width = ENCODER_WIDTH
        self.patches = nn.Linear(latent_channels * PATCH**2, width)
        self.positions = nn.Parameter(0.02 * torch.randn((size // PATCH) ** 2, width))
        self.camera = nn.Sequential(nn.Linear(camera_features, width), nn.SiLU(), nn.Linear(width, width))
        self.queries = nn.Parameter(torch.randn(TOKENS, width))
        self.body = transformer(ENCODER_LAYERS, width)
        self.out = nn.Linear(width, code_width // TOKENS)

    def forward(self, latents: Tensor, camera: Tensor) -> Tensor:
        """Return the object codes (B, code_width) of B objects, float32, with mean square 1.

        A code is a vector for what a caption leaves unspecified. `latents` are clean latents (B, V, C, h, h) of V views
        per object, `camera` their F camera features (B, V, F) from `view_fusion.camera_harmonics`.
        """
        x = F.pixel_unshuffle(latents.flatten(0, 1), PATCH).flatten(2).transpose(1, 2)
        x = self.patches(x) + self.positions + self.camera(camera.flatten(0, 1))[:, None]
        x = x.unflatten(0, latents.shape[:2]).flatten(1, 2)
        queries = self.queries.expand(len(x), -1, -1).to(x.dtype)
        code = self.out(self.body(torch.cat([queries, x], 1))[:, :TOKENS]).float().flatten(1)
        return code * (code.square().mean(1, keepdim=True) + 1e-6).rsqrt()


class CodeSampler(nn.Module):
    """Network that samples object codes for captions, by flow matching (Lipman et al. 2023, arXiv 2210.02747).

    An object code z (B, code_width) is a vector for what a caption leaves unspecified, such as colours and the exact
    shape. `sample` takes embeddings of captions (B, L, D) and of the empty prompt, for guidance, and Gaussian noise e
    (B, code_width). It returns codes. For this, it integrates the velocity z - e along x_t = (1 - t) e + t z, from
    t = 0 to 1. `forward` predicts this velocity (B, code_width) from x_t, t (B,) and the encoded captions
    (`encode_text`). It splits x_t into `TOKENS` (8) equal slices, which are tokens that attend to each other and to
    those of the caption.
    """

    def __init__(self, text_width: int, code_width: int) -> None:
        super().__init__()
        width = SAMPLER_WIDTH
        self.words = nn.Linear(text_width, width)
        self.text = transformer(TEXT_LAYERS, width)
        self.code = nn.Linear(code_width // TOKENS, width)
        self.positions = nn.Parameter(torch.randn(TOKENS, width))
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        layer = nn.TransformerDecoderLayer(width, HEADS, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.body = nn.TransformerDecoder(layer, SAMPLER_LAYERS, nn.LayerNorm(width))
        self.out = nn.Linear(width, code_width // TOKENS)

    def encode_text(self, text: Tensor) -> Tensor:
        """Let the tokens of text embeddings (B, L, D) attend to each other; return (B, L, 96), input of `forward`."""
        return self.text(self.words(text))

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Predict the velocity z - e (B, code_width), float32, from Gaussian noise e to clean object codes z.

        Args:
            x: noisy codes (1 - t) e + t z, (B, code_width). An object code is a vector for what a caption leaves
                unspecified.
            t: times (B,) in [0, 1]; 0: noise, 1: clean code.
            text: features (B, L, 96) of the L tokens of each caption, from `encode_text`.
        """
        time = self.time(sinusoids(t))
        tokens = self.code(x.unflatten(1, (TOKENS, -1))) + self.positions + time[:, None]
        return self.out(self.body(tokens, text)).float().flatten(1)

    @torch.no_grad()
    def sample(
        self,
        text: Tensor,
        empty: Tensor,
        noise: Tensor,
        similar_to: Tensor | None = None,
        strength: float = EDIT_STRENGTH,
        guidance: float = GUIDANCE,
    ) -> Tensor:
        """Sample object codes (B, code_width), vectors for what a caption leaves unspecified, for B captions.

        Args:
            text: embeddings (B, L, D) of the captions.
            empty: embedding (1, L, D) of the empty prompt, for classifier-free guidance.
            noise: Gaussian noise (B, code_width).
            similar_to: codes (B, code_width) to which the results become similar: sampling starts from these with noise
                (SDEdit, Meng et al. 2022). None: sampling starts from noise.
            strength: noise strength in (0, 1] of that start; 1: pure noise.
            guidance: scale of the classifier-free guidance.
        """
        words, x, first = self.encode_text(torch.cat([text, empty.expand_as(text)])), noise, 0
        if similar_to is not None:
            first = round((1 - strength) * SAMPLING_STEPS)
            x = torch.lerp(noise, similar_to, first / SAMPLING_STEPS)
        for step in range(first, SAMPLING_STEPS):
            t = torch.full((2 * len(x),), step / SAMPLING_STEPS, device=x.device)
            conditional, unconditional = self(x.repeat(2, 1), t, words).chunk(2)
            x = x + torch.lerp(unconditional, conditional, guidance) / SAMPLING_STEPS
        return x
