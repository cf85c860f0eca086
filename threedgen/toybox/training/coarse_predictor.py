"""Training of the coarse predictor, which predicts latents from caption and camera in one step (`guidance/coarse.py`).

It trains on one image of each object, without the random variation that captions do not describe: the predictor could
not predict it.
"""

from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional as F

from threedgen.data.bank import LatentBank
from threedgen.guidance.attention.joined import camera_vector
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.run.dtypes import autocast_bf16
from threedgen.train.muon import Muon
from threedgen.train.system import AveragedSystem

from .options import CoarseConfig

TWO_D, NO_TEXT = 0.15, 0.1
"""Fraction of the steps without cameras, and fraction of the captions that are dropped."""
WEIGHT_DECAY, EMA_DECAY = 0.05, 0.998


class CoarseSystem(AveragedSystem):
    """LightningModule that trains the predictor `coarse` in place, by the squared error of its latents.

    Args:
        prior: model whose frozen text encoder is used.
        bank: cached latents, captions and cameras of objects with one view each.
    """

    stage = "coarse predictor"
    prior: LatentDiffusion

    def __init__(
        self,
        options: CoarseConfig,
        seed: int,
        coarse: CoarsePredictor,
        prior: LatentDiffusion,
        bank: LatentBank,
        bf16: bool,
    ) -> None:
        super().__init__(options, seed, options.max_steps)
        self.options, self.bank, self.bf16 = options, bank, bf16
        self.coarse = coarse.requires_grad_(True).train()
        self.keep_average(self.coarse, EMA_DECAY)
        self.set_unregistered(prior=prior)

    def setup(self, stage: str) -> None:
        self.prior.to(self.device)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, bank = int(batch), self.options, self.bank
        rng = self.numpy_rng(step, "coarse")
        chosen = rng.integers(0, min(bank.count, o.first + step * o.fresh), o.batch)
        captions = [text if rng.random() >= NO_TEXT else "" for text in bank.captions(chosen)]
        z = bank.latents(chosen)[:, 0].to(self.device)
        camera = None if rng.random() < TWO_D else camera_vector(bank.c2w(chosen)[:, 0]).to(self.device)
        with autocast_bf16(self.device, self.bf16):
            predicted = self.coarse(self.prior.encode_prompt(captions), camera).float()
        loss = F.mse_loss(predicted, z)
        self.metrics = {"coarse": float(loss.detach())} if camera is not None else {}
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = Muon(self.coarse.parameters(), 1.0, weight_decay=WEIGHT_DECAY)
        return self.scheduled(optimizer, self.options.learning_rate)
