"""Live view: watch and stop a run while it trains. `ViserWindow` is the user interface.

Images are rendered on the training thread, between two steps. Afterwards the training modes of the modules and the
states of the random generators are restored, so that the result of the run does not change.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor

from threedgen.config.errors import ConfigError, one_line
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import to_uint8
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Speed
from threedgen.run.text import say
from threedgen.train.callbacks import isolated_eval
from threedgen.train.progress import details, stage_of

from .options import ViewConfig

if TYPE_CHECKING:
    from .viser_window import ViserWindow

logger = logging.getLogger(__name__)

UPDATE_SECONDS = 0.5  # seconds between two updates of the metrics, as reading the loss synchronises the GPU


class LiveView(Callback):
    """Lightning callback that shows a training run in a browser window with a button to stop it.

    Rendering takes at most the fraction `options.share` of the run time, and no time while no browser is connected. If
    an open window raises an error, the window is closed with a warning and the run continues. If the window cannot be
    opened, the run ends with a ConfigError.

    Args:
        options: options of the live view.
        window: function that opens the window; called before the first step, on rank 0 only.
        render: function that renders a camera (a batch of one) as an image (1, H, W, 3) in [0, 1].
        interrupts: handler of Ctrl-C. Its attribute `stop` is set to True when the user stops the run.
        on_stop: function that is called when the user stops the run, before its results are written.
    """

    def __init__(
        self,
        options: ViewConfig,
        window: Callable[[], ViserWindow],
        render: Callable[[Cameras], Tensor],
        interrupts: Interrupts,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.options, self.render, self.interrupts, self.on_stop = options, render, interrupts, on_stop
        self.clock, self.speed = time.monotonic, Speed()
        self._open = window
        self._window: ViserWindow | None = None
        self._note = ""
        self._metrics: list[str] = []
        self._images = 0
        self._next_image = self._next_metrics = -math.inf

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        try:
            self._window = self._open()
        except (OSError, RuntimeError) as error:  # no free port, or a viser that cannot be protected
            raise ConfigError(f"cannot open the window: {one_line(error)}. Run without --view.", "--view") from error
        self.speed.mark(self.clock(), trainer.global_step)
        say(f"live view: {self._window.url}", sys.stderr)
        self._guarded(lambda window: self._update(window, trainer, pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        self.speed.mark(self.clock(), trainer.global_step)
        self._guarded(lambda window: self._serve(window, trainer, pl_module, outputs))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._metrics, self._note = [], "optimisation ended; writing the results"
        self._guarded(lambda window: self._update(window, trainer, pl_module, busy=True))

    def close(self) -> None:
        window, self._window = self._window, None
        if window is not None:
            try:
                window.close()
            except Exception as error:
                logger.debug("error in the live view", exc_info=error)

    def _guarded(self, action: Callable[[ViserWindow], None]) -> None:
        # an error closes the window and does not end the run
        if self._window is None:
            return
        try:
            action(self._window)
        except Exception as error:
            logger.warning("live view closed after an error, the run continues: %s", one_line(error))
            logger.debug("error in the live view", exc_info=error)
            self.close()

    def _serve(self, window: ViserWindow, trainer: Trainer, module: LightningModule, outputs: STEP_OUTPUT) -> None:
        stop = window.stop_clicked
        if stop:
            self.interrupts.stop = True
            self.on_stop()
            self._note = "stopping after this step"
        if stop or self.clock() >= self._next_metrics:
            self._metrics = details(self.speed, trainer.max_steps, module, outputs, ("opacity",))
            self._update(window, trainer, module, busy=self.interrupts.stop)
            self._next_metrics = self.clock() + UPDATE_SECONDS
        if self.clock() >= self._next_image:
            self._send_image(window, module)

    def _send_image(self, window: ViserWindow, module: LightningModule) -> None:
        # the clients take turns; the next image waits until rendering takes the fraction `options.share` of the time
        clients = list(window.cameras(self.options.size).items())
        if not clients:
            return
        client, camera = clients[self._images % len(clients)]
        self._images, start = self._images + 1, self.clock()
        with isolated_eval(module):
            image = self.render(camera)[0]
        window.show(client, to_uint8(image))
        now = self.clock()
        self._next_image = now + (now - start) * (1 / self.options.share - 1)

    def _update(self, window: ViserWindow, trainer: Trainer, module: LightningModule, busy: bool = False) -> None:
        stage = f"{stage_of(module)}: step {trainer.global_step} of {trainer.max_steps}"
        progress = trainer.global_step / max(1, trainer.max_steps)
        window.update(min(progress, 1.0), [stage, *self._metrics, *([self._note] if self._note else [])], busy)
