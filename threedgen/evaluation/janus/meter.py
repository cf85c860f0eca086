"""Janus meter: counts the fronts of an object.

The meter renders views of the object from a ring of cameras, classifies which side each view shows, and counts the
fronts. The classifier is the toybox probe or zero-shot CLIP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from threedgen.config import registry
from threedgen.data.coloured_mesh import ColouredMesh, EmptyMesh
from threedgen.evaluation.features import CLIP_MEAN, CLIP_STD, encoder_input, load_hub, unit_vectors
from threedgen.evaluation.metrics.figures import SIDES
from threedgen.evaluation.metrics.fronts import RingResult, classify_ring
from threedgen.export.renders import field_renderer
from threedgen.export.run_field import load_field
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w
from threedgen.run.arrays import Array

from .options import CLIP, WITHOUT_CLIP, CLIPSidesConfig, MeterConfig

SENTENCES = ("{prompt}, front view", "{prompt}, side view facing left", "{prompt}, back view",
             "{prompt}, side view facing right")  # fmt: skip
"""Prompts of CLIP for the sides front, left, back and right, in the order of ``figures.SIDES``."""
CLIP_BATCH = 16
"""Number of views per batch of CLIP."""
MIN_OPACITY = 0.1
"""A field is empty if the opacity of each of its pixels is below this value."""


class ViewClassifier(Protocol):
    """Classifier of square images (V, S, S, 3) in [0, 1], one by one; registered as "view-classifier"."""

    def sides(self, images: Tensor, prompt: str) -> Tensor:
        """Return the probabilities (V, 4) of front, left, back and right for views of an object of the prompt."""

    def likeness(self, images: Tensor, prompts: Sequence[str]) -> Tensor | None:
        """Return the similarity (V, N) of each view to each of N prompts; None if a prompt is not supported."""


class CLIPSides:
    """Zero-shot CLIP classifier: softmax over the similarities of a view to four sentences, at the temperature of CLIP.

    The constructor raises ConfigError if CLIP cannot be loaded.
    """

    def __init__(self, config: CLIPSidesConfig) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.config = config
        example = f"{CLIP}; {WITHOUT_CLIP}"
        self.net, self.tokenizer = load_hub(
            config.weights, "CLIP", example, "meter.classifier.weights", CLIPModel, AutoTokenizer
        )
        self.size = int(self.net.config.vision_config.image_size)
        self.max_tokens = int(self.net.config.text_config.max_position_embeddings)

    def sides(self, images: Tensor, prompt: str) -> Tensor:
        sentences = [sentence.replace("{prompt}", prompt) for sentence in SENTENCES]
        return (self.net.logit_scale.exp() * self.likeness(images, sentences)).softmax(1)

    @torch.no_grad()
    def likeness(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosine similarities (V, N), in [-1, 1], of views (V, S, S, 3) in [0, 1] and N prompts."""
        views = []
        for part in images.split(CLIP_BATCH):
            x = encoder_input(part, self.size, CLIP_MEAN, CLIP_STD)
            views.append(unit_vectors(self.net.get_image_features(pixel_values=x)))
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        texts = self.net.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return torch.cat(views) @ unit_vectors(texts).T


class RunField:
    """Neural field of the newest checkpoint of a run. Raises ConfigError if there is no checkpoint."""

    plain = False

    def __init__(self, folder: Path) -> None:
        config, field, occupancy, _ = load_field(folder)
        self.renderer, self.folder = field_renderer(field, occupancy, config.march), folder

    def render(self, c2w: Array, fov: float, size: int, background: float = 0.5, light: bool = False) -> Array:
        """Render unlit images (V, size, size, 3) in [0, 1]. Raises EmptyMesh if the field is empty.

        ``c2w`` are camera-to-world poses (V, 4, 4), ``fov`` is vertical in radians, and ``light`` is unused.
        """
        pose = torch.from_numpy(np.asarray(c2w, np.float32))
        projection = Projection.perspective(torch.full((len(pose),), fov), size, size)
        colours, opacity = self.renderer(Cameras(pose, projection, size, size))
        if opacity.max() < MIN_OPACITY:
            raise EmptyMesh(f"the field of {self.folder} is empty")
        alpha = opacity[..., None]
        views: Array = colours * alpha + background * (1 - alpha)
        return views


@dataclass(frozen=True)
class Reading:
    """Views (V, S, S, 3) of an object and, for each view, the probabilities (V, 4) of front, left, back and right."""

    views: Array
    sides: Array


def view_labels(sides: Array) -> list[str]:
    """Format the most probable side of each view like "front 0.93", from side probabilities (V, 4)."""
    return [f"{SIDES[int(view.argmax())]} {view.max():.2f}" for view in np.asarray(sides)]


class Meter:
    """Renderer and classifier of the views of an object. Raises ConfigError if the classifier cannot be loaded.

    Attributes:
        azimuth: evenly spaced azimuths (V,) of the cameras, radians, from 0 on.
        c2w: camera-to-world poses (V, 4, 4).
    """

    def __init__(self, config: MeterConfig) -> None:
        self.config = config
        self.classifier: ViewClassifier = registry.build("view-classifier", config.classifier)
        self.azimuth = 2 * np.pi * np.arange(config.n_view) / config.n_view
        ones = torch.ones(config.n_view)
        azimuth = torch.from_numpy(self.azimuth).float()
        self.c2w = orbit_c2w(np.deg2rad(config.elevation) * ones, azimuth, config.distance * ones).numpy()

    def classify(self, mesh: ColouredMesh | RunField, prompt: str, light: bool | None = None) -> Reading:
        """Render an object in the unit sphere and classify its views.

        Args:
            light: whether to shade the mesh like a toybox object; None: shade only a mesh without colours.
        """
        config, light = self.config, mesh.plain if light is None else light
        views = mesh.render(self.c2w, np.deg2rad(config.fov), config.size, config.background, light)
        sides = self.classifier.sides(torch.from_numpy(views), prompt).double().numpy()
        return Reading(views, sides)

    def evaluate(self, sides: Array, threshold: float, free: bool = False) -> RingResult:
        """Count the fronts of an object from the side probabilities (V, 4) of its views with `classify_ring`."""
        return classify_ring(sides, self.azimuth, threshold, free)

    def likeness(self, views: Array, prompts: Sequence[str]) -> list[float] | None:
        """Return the mean similarity of the views (V, S, S, 3) to each prompt; None if a prompt is not supported."""
        scores = self.classifier.likeness(torch.from_numpy(views), prompts)
        return None if scores is None else scores.double().mean(0).tolist()
