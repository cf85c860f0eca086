"""The task train-mvdiffusion: trains attention between the views of a scene, added to a frozen 2D diffusion model.

RUN/single-view/        checkpoints and weights of the first stage, if the config has one
RUN/latents/, masks/, photos/    caches of encoded views, safe to delete; NAME-half/ has them at half image size
RUN/blocks.safetensors  averaged weights of the added modules; the option `prior.blocks` of other tasks takes this file
RUN/samples.png         true views of scenes, above samples

Source: MVDiffusion, arXiv 2307.01097, section 5. The optional first stage trains a LoRA of the 2D model on single
views, so that it takes a further input: depth, or a mask and the known part of the image. The second stage trains the
attention between views and the branch for known views, on which the others are conditioned. All views of a scene have
the same time step.
"""

import logging
from collections.abc import Mapping
from functools import partial

from torch import Tensor

from threedgen.config import registry
from threedgen.config.errors import ConfigError, errors_default_to_key
from threedgen.data.latent_cache import SceneCache
from threedgen.data.scene_views import SceneSource
from threedgen.guidance.losses.lora import ATTENTION, CONVOLUTIONS, LoRA
from threedgen.guidance.priors.mvdiffusion import weights
from threedgen.guidance.priors.mvdiffusion.inputs import Extra
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.guidance.priors.mvdiffusion.unet import Kind, MultiviewUNet
from threedgen.guidance.priors.mvdiffusion.weights import difference
from threedgen.guidance.sampling import REFINE_STRENGTH, check_half_size, check_image_size
from threedgen.guidance.weights.files import read_tensors, sha256
from threedgen.guidance.weights.loading import identify
from threedgen.guidance.weights.plugins import locate
from threedgen.run.disk import writing
from threedgen.run.seeding import generator, seed_networks
from threedgen.train.status import Status
from threedgen.train.task import Task, run_task

from .masks import Hole, MaskCache, MaskedViews, around_a_photo, painted
from .mvdiffusion_systems import RESULT, DataBySize, SceneData, SingleViewSystem, ViewsSystem
from .options import SingleViewConfig, TrainMVDiffusionConfig, Variant

logger = logging.getLogger(__name__)

MAX_AREA_RATIO = 1.5  # pixels of a view, in those of an image of the 2D model, above which a warning is logged
EXTRA: dict[Variant, Extra] = {"panorama": "nothing", "outpaint": "mask", "depth": "depth"}
"""Input that the 2D model of each variant takes in addition to the noisy latents."""


def train(task: Task) -> Status:
    """Train LoRA weights of the 2D model on single views, then the attention between views. Return the final status.

    The first stage is skipped if the section `single_view` of the config is None. Raises ConfigError if the 2D model or
    the attention blocks to start from do not fit the variant of the config (panorama, outpaint or depth).
    """
    config: TrainMVDiffusionConfig = task.config
    o, needed = config.single_view, EXTRA[config.variant]
    model = MVDiffusion.load(config.start)
    file = None if config.blocks is None else locate("blocks", config.blocks)
    blocks = None if file is None else read_tensors(file)
    reused = blocks if o is None else None  # the UNet of another run is used as it is
    if reused is not None:
        with errors_default_to_key("blocks"):
            model.unet = weights.with_difference(model.unet, reused)
    if model.extra != needed and (o is None or model.extra != "nothing"):
        problem = f"the further input of the 2D model is {model.extra}, and variant {config.variant} needs {needed}"
        place = ("start", config.start) if reused is None else ("blocks", config.blocks)
        raise ConfigError(f"{problem}. Use another, or one without any and the stage single_view", *place)
    task.record_weights({"start": identify(config.start)})
    data = scene_data(task, model, registry.build("scene-source", config.scenes, config.seed, "train"))
    lora = None if o is None else train_single_views(task, model, data, o, blocks)
    seed_networks(config.seed, "views")
    kind: Kind = "depth" if config.variant == "depth" else "panorama"
    full = kind == "depth" and not config.training.slim
    network = MultiviewUNet(model.unet, kind, config.training.encoding, condition=full, convolution=full)
    if blocks is not None:
        with errors_default_to_key("blocks"):
            weights.load_blocks(network, blocks, unet=reused is not None)
    model.with_network(network)
    changes = difference(model.unet, lora) if reused is None else weights.difference_in(reused)
    metadata = {} if file is None or reused is None else {"blocks_sha256": sha256(file)}
    return task.train(ViewsSystem(config, model, data, changes, lora, **metadata), metrics=("loss",))


def scene_data(task: Task, model: MVDiffusion, source: SceneSource) -> DataBySize:
    """Return a pair (fraction of the steps, cached data of `source`) for each image size: full and possibly half.

    The option `training.half` is the fraction of the steps that train at half size; if it is 0, the result has only the
    full size. Raises ConfigError if the model cannot take an image size.
    """
    config: TrainMVDiffusionConfig = task.config
    half = config.training.half
    cameras = source.scene(0).views.cameras
    size = (cameras.height, cameras.width)
    check_image_size(size, model.size_multiple, None, ("scenes", "scenes"))
    if (times := size[0] * size[1] / model.image_size**2) > MAX_AREA_RATIO:
        base = f"start={config.start} takes {model.image_size} x {model.image_size}"
        logger.warning("scenes: views of %d x %d pixels, but %s: a step takes %.0f times as long", *size, base, times)
    check_half_size(size, half or None, model.size_multiple, "training.half")
    model.draft = REFINE_STRENGTH if half else None
    if config.variant == "depth" and config.training.encoding == "reference":
        model.check_pairs(size, half > 0, "scenes")

    def at_size(suffix: str) -> SceneData:
        scenes, folder = config.training.scenes, task.folder
        cache = SceneCache(folder / f"latents{suffix}", source, model.vae, scenes, half=bool(suffix))
        if config.variant != "outpaint":
            return SceneData(cache)

        def masked(name: str, hole: Hole) -> MaskCache:
            views = MaskedViews(source, config.seed, hole, first=name == "photos")
            return MaskCache(folder / f"{name}{suffix}", views, model.vae, cache.encoded_size[0])

        return SceneData(cache, masked("masks", painted), masked("photos", around_a_photo))

    with writing(task.folder):
        return [(share, at_size(suffix)) for share, suffix in ((1 - half, ""), (half, "-half")) if share]


def train_single_views(
    task: Task, model: MVDiffusion, data: DataBySize, o: SingleViewConfig, blocks: Mapping[str, Tensor] | None
) -> LoRA:
    """Train the first stage, a LoRA of the UNet on single views, and return the LoRA, which stays attached to the UNet.

    A resumed run that has finished this stage loads its weights instead.

    Args:
        task: run to which the stage belongs.
        model: 2D model whose UNet gets the LoRA and, for depth or outpainting, further input channels.
        data: training examples of each image size.
        o: options of the first stage.
        blocks: tensors {name: tensor} from the result file of another run, or None. Usually they include the first
            convolution of that run's UNet and its LoRA. The stage starts from these two, if the convolution has as many
            input channels as the UNet of this stage. In all other cases (such as None, or a file with a whole UNet) it
            starts from `model` and a new LoRA.

    Raises:
        ConfigError: the stage should start from `blocks`, but their LoRA is missing or does not fit.
    """
    config: TrainMVDiffusionConfig = task.config
    needed = EXTRA[config.variant]
    if model.extra != needed:
        model.unet = weights.widened(model.unet, 1 if needed == "depth" else 1 + model.latent_shape[0])
    targets = ATTENTION if o.layers == "attention" else ATTENTION + CONVOLUTIONS
    lora = LoRA(model.unet, o.rank, generator(config.seed, 0, "lora"), targets=targets)
    changes = (blocks and weights.difference_in(blocks)) or {}
    first = changes.get("unet.conv_in.weight")
    if first is not None and first.shape == model.unet.conv_in.weight.shape:
        with errors_default_to_key("blocks"):
            weights.load_difference(model.unet, lora, changes)
    lora.attach(model.unet)
    system = SingleViewSystem(config, o, model, data, lora)
    task.train_network("single-view", system.learning, system, "loss")
    system.learning.requires_grad_(False)
    return lora


run = partial(run_task, train, result=RESULT, files=(RESULT, "samples.png"))
