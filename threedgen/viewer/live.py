"""The live view: a run is looked at, stopped and exported from outside while it optimises.

Everything happens between two steps, on the thread that trains, with modes and random generators put back afterwards:
the run does not notice. What shows it to people is a `ViserWindow`.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from threedgen.config.errors import ConfigError, in_a_line
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import opencv_axes
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Speed
from threedgen.run.text import say
from threedgen.train.callbacks import aside
from threedgen.train.progress import details, stage_of

from .options import ViewConfig

if TYPE_CHECKING:
    from .viser_window import ViserWindow

logger = logging.getLogger(__name__)

STOP, EXPORT = "stop", "export"
"""The buttons of a window."""
EVERY = 0.5
"""Seconds between two changes of the figures; reading the loss makes a GPU wait."""
WIDEST = 4.0
"""Width over height of a picture, or height over width, at most; narrower windows show it stretched."""
NARROWEST_FOV, WIDEST_FOV = math.radians(1), math.radians(150)


@dataclass(frozen=True)
class Eye:
    """Somebody who looks: c2w (4, 4) with OpenGL axes, vertical fov in radians, width over height of the picture."""

    name: int
    c2w: Tensor
    fov: float
    aspect: float

    @classmethod
    def opencv(cls, name: int, rotation: ArrayLike, position: ArrayLike, fov: float, aspect: float) -> Eye | None:
        """Makes an eye of a camera-to-world rotation (3, 3) with OpenCV axes; None if its numbers describe none.

        They come from outside: a tab that is just opening has no size yet.
        """
        c2w = np.eye(4)
        c2w[:3, :3], c2w[:3, 3] = rotation, position
        if not np.isfinite(c2w).all() or not math.isfinite(fov) or not (math.isfinite(aspect) and aspect > 0):
            return None
        pose = opencv_axes(torch.from_numpy(c2w).float())
        return cls(name, pose, min(max(fov, NARROWEST_FOV), WIDEST_FOV), min(max(aspect, 1 / WIDEST), WIDEST))

    def camera(self, size: int) -> Cameras:
        """Makes the one camera of a picture of `size` pixels from top to bottom."""
        width = max(1, round(size * self.aspect))
        projection = Projection.perspective(torch.tensor([self.fov]), size, width)
        return Cameras(self.c2w[None], projection, size, width)


class LiveView(pl.Callback):
    """Shows a run in a window, and obeys its buttons.

    `window` opens it, when the first step is about to begin and on one device only; `pictures`: cameras (1) ->
    (1, H, W, 3) in [0, 1]; `export` writes the asset of the present field and returns where it is. Pictures take the
    share of the time that `options` allow, and nothing while nobody looks. Whatever goes wrong with the window after it
    was opened closes it with a warning, and the run goes on. Raises ConfigError if it cannot be opened.
    """

    def __init__(
        self,
        options: ViewConfig,
        window: Callable[[], ViserWindow],
        pictures: Callable[[Cameras], Tensor],
        export: Callable[[], Path],
        interrupts: Interrupts,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options, self.pictures, self.export, self.interrupts = options, pictures, export, interrupts
        self.clock = clock
        self.speed = Speed()
        self._open = window
        self._window: ViserWindow | None = None
        self._note = ""
        self._figures: list[str] = []
        self._shown: dict[int, float] = {}  # when each eye got its last picture
        self._next_picture = self._next_figures = -math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        try:
            self._window = self._open()
        except Exception as error:
            raise ConfigError(f"no window could be opened ({in_a_line(error)}); leave it out", "--view") from error
        self.speed.mark(self.clock(), trainer.global_step)
        say(f"live view: {self._window.url}", sys.stderr)
        self._guarded(lambda window: self._tell(window, trainer, pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.speed.mark(self.clock(), trainer.global_step)
        self._guarded(lambda window: self._serve(window, trainer, pl_module, outputs))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._figures, self._note = [], "no more steps; the results are being made"
        self._guarded(lambda window: self._tell(window, trainer, pl_module, busy=True))

    def close(self) -> None:
        """Shuts the window, if it is open; one that does not close either is left as it is."""
        window, self._window = self._window, None
        if window is not None:
            try:
                window.close()
            except Exception as error:
                logger.debug("the live view", exc_info=error)

    def _guarded(self, action: Callable[[ViserWindow], None]) -> None:
        """Does something with the window as long as there is one; what fails there must not fail the run."""
        if self._window is None:
            return
        try:
            action(self._window)
        except Exception as error:
            logger.warning("the live view was closed, the run goes on: %s", in_a_line(error))
            logger.debug("the live view", exc_info=error)
            self.close()

    def _serve(self, window: ViserWindow, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any) -> None:
        """Obeys the buttons between two steps, and shows the figures and one picture."""
        pressed = window.pressed()
        if EXPORT in pressed and STOP not in pressed:  # a run that stops makes its asset anyway
            self._export(window, trainer, module)
            pressed |= window.pressed()  # in the meantime; who pressed twice wanted it once
        if STOP in pressed:
            self.interrupts.stop = True
            self._note = "stopping after this step"
        if pressed or self.clock() >= self._next_figures:
            left = trainer.max_steps - trainer.global_step
            self._figures = details(self.speed.seconds_a_step(), left, module, outputs, ("opacity",))
            self._tell(window, trainer, module, busy=self.interrupts.stop)
            self._next_figures = self.clock() + EVERY
        if self.clock() >= self._next_picture:
            self._picture(window, module)

    def _picture(self, window: ViserWindow, module: pl.LightningModule) -> None:
        """Draws for whoever has waited longest; then for nobody until pictures have had no more than their share."""
        eyes = window.eyes()
        self._shown = {eye.name: self._shown.get(eye.name, -math.inf) for eye in eyes}
        if not eyes:
            return
        eye, begun = min(eyes, key=lambda eye: self._shown[eye.name]), self.clock()
        with aside(module):
            picture = self.pictures(eye.camera(self.options.size))[0]
        window.show(eye, (picture.clamp(0, 1) * 255).round().byte().cpu().numpy())
        now = self._shown[eye.name] = self.clock()
        self._next_picture = now + (now - begun) * (1 / self.options.share - 1)

    def _export(self, window: ViserWindow, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Makes the asset of the field as it is now; what stands in its way is said and nothing more."""
        step = trainer.global_step
        self._note = f"step {step}: the asset is being made, the run waits"
        self._tell(window, trainer, module, busy=True)
        try:
            with aside(module):
                self._note = f"step {step}: {self.export()}"
        except Exception as error:
            self._note = f"step {step}: no asset: {in_a_line(error)}"
            logger.warning("live view, %s", self._note)
        self.speed = Speed()  # the wait says nothing about the steps to come
        self.speed.mark(self.clock(), step)

    def _tell(self, window: ViserWindow, trainer: pl.Trainer, module: pl.LightningModule, busy: bool = False) -> None:
        stage = f"{stage_of(module)}: step {trainer.global_step} of {trainer.max_steps}"
        done = trainer.global_step / max(1, trainer.max_steps)
        window.tell(min(done, 1.0), [stage, *self._figures, *([self._note] if self._note else [])], busy)
