"""Replay of a network as a CUDA graph: one launch by the CPU in place of hundreds of kernel launches."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

WARM_UP = 2
"""Number of calls with the same shapes that run normally before the capture, so that rare shapes get no graph."""
Recording = tuple[Callable[[], object], Tensor]
"""Function that replays a graph, and the tensor in which each replay writes its result."""


class GraphedCalls:
    """Wrapper that calls one function of tensors on a GPU without gradients, from the third call on as a CUDA graph.

    A graph is valid for fixed shapes, dtypes and devices of the tensor arguments and fixed values of the other
    arguments. Calls in which one of these differs run normally, until the third of them in a row captures a new graph;
    the old one and its memory for all activations are then freed. If a capture fails, the reason is logged, and all
    later calls run normally. Everything else that the function uses, such as weights, must not change without a call of
    `clear`, since a replay may ignore the change.
    """

    def __init__(self) -> None:
        self.failed = False
        self._key: object = None
        """Key of the last call, with the number of such calls in a row."""
        self._calls = 0
        self._captured: object = None
        """Key of the calls that replay the graph."""
        self._inputs: list[Tensor] = []
        self._recording: Recording | None = None

    def __call__(self, function: Callable[..., Tensor], *inputs: Tensor | int | None) -> Tensor:
        """Return `function(*inputs)`, computed by the function itself or by replaying its captured CUDA graph.

        Calls are equal if their tensors have equal shapes, dtypes and devices and their other arguments equal values.
        The third of consecutive equal calls captures a graph and replays it. Equal calls replay it too, until other
        calls capture their graph. All others, and all after a failed capture, run the function. The result of a replay
        is copied, so later calls do not overwrite it.

        All calls must pass the same function. It is an argument and not an attribute to avoid a reference cycle: it may
        be a method of the object that owns this one.
        """
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        key = tuple((v.shape, v.dtype, v.device) if isinstance(v, Tensor) else v for v in inputs)
        if key != self._key:
            self._key, self._calls = key, 0
        self._calls += 1
        if key != self._captured and self._calls > WARM_UP and not self.failed:
            self._capture(function, inputs)
        if self._recording is None or key != self._captured:
            return function(*inputs)
        replay, output = self._recording
        for static, value in zip(self._inputs, tensors, strict=True):
            static.copy_(value)
        replay()
        return output.clone()

    def clear(self) -> None:
        """Free the graph; the next call counts as the first. Call this when weights move: a replay reads old memory."""
        self._key, self._calls = None, 0
        self._captured, self._recording, self._inputs = None, None, []

    def _capture(self, function: Callable[..., Tensor], inputs: tuple[Tensor | int | None, ...]) -> None:
        self._captured, self._recording, self._inputs = None, None, []  # frees the old graph first
        static = [value.clone() if isinstance(value, Tensor) else value for value in inputs]
        try:
            self._inputs = [value for value in static if isinstance(value, Tensor)]
            self._recording = record(lambda: function(*static), self._inputs[0].device)
            self._captured = self._key
        except RuntimeError as error:  # also out of memory
            self.failed = True
            reason = str(error).split("\n")[0]
            logger.warning("The UNet runs without a CUDA graph, which launches more kernels: %s", reason)


def record(function: Callable[[], Tensor], device: torch.device) -> Recording:
    """Capture the kernels of `function` as a CUDA graph; return a function that replays it, and the output tensor.

    `function` is called once before the capture and once for it, and computes on `device`, which need not be the
    current one. Each replay reads the tensors that `function` used, and overwrites the output tensor. Raises
    RuntimeError if `function` cannot be captured.
    """
    with torch.cuda.device(device):
        current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):  # libraries allocate their memory for this stream
            function()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(current):  # a failed capture leaves another stream current
            # other threads may allocate memory meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                output = function()
        return graph.replay, output
