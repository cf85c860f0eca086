import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_configs, gpu_stage
from benchmarks.gpu import STAGES, Stage
from threedgen.config import load
from threedgen.guidance.weights.meta_networks import meta_networks
from threedgen.systems.memory import measure_sampling_task


def results(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


COUNTS = dict.fromkeys(("machine", "kernels", "step-64", "step-256"), 4)
COUNTS |= {"step-shading": 8, "sampling": 1, "unet": 9, "loop": 7}


@pytest.mark.parametrize(("stage", "count"), COUNTS.items())
def test_stage_in_small_form(stage: str, count: int, tmp_path: Path) -> None:
    gpu_stage.main(stage, str(tmp_path), "--small")
    rows = results(tmp_path)
    assert len(rows) >= count and all(row["stage"] == stage and row.get("ok", True) for row in rows), rows


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["step-64", "loop"])
def test_full_size_stage_on_a_gpu(stage: str, tmp_path: Path) -> None:
    """A step of mvdream-sd21; its training in 16-mixed: resumed, and with a loss that is NaN."""
    gpu_stage.main(stage, str(tmp_path))
    assert all(row.get("ok", True) for row in results(tmp_path)), results(tmp_path)


RECORD = 'print(1); open({!r}, \'a\').write(\'{{"stage": "a", "case": "x", "ms": 2.5}}\\n\')'


def test_a_stage_that_hangs_or_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(stage.seconds for stage in STAGES.values()) <= 360 and list(STAGES)[-1] == "tests"
    record = RECORD.format(str(tmp_path / "results.jsonl"))
    code = {"a": record, "b": "import time; time.sleep(60)", "c": "raise SystemExit(3)", "d": record}
    monkeypatch.setattr(gpu, "STAGES", {name: Stage("", "", 1.0 if name == "b" else 30.0) for name in code})
    monkeypatch.setattr(gpu, "SHORTEST", 0.0)
    monkeypatch.setattr(gpu, "command", lambda name, folder, small: [sys.executable, "-c", code[name]])
    rows = gpu.table(1.0, True, tmp_path, []).rows
    assert [row["stage"] for row in rows] == list(code) and [rows[0]["status"], rows[3]["status"]] == ["finished"] * 2
    assert "1 s" in str(rows[1]["status"]) and "3" in str(rows[2]["status"])
    table = (tmp_path / "table.md").read_text()
    assert "ms 2.5" in table and all(f"| {name} " in table for name in code)
    assert [row["status"] for row in gpu.table(0.0, True, tmp_path, ["a"]).rows] != ["finished"]


def test_memory_of_configs_is_that_of_released_sizes(tmp_path: Path) -> None:
    unet, vae = 865_910_724, 83_653_863  # parameters of Stable Diffusion 2.1
    found = meta_networks(str(gpu_configs.write_weights(tmp_path / "sd", gpu_configs.SD21, gpu_configs.CLIP_H)))
    assert found.parameters == unet + vae + gpu_configs.CLIP_H
    assert sum(8 * 64 * path.stat().st_blocks for path in tmp_path.rglob("*.safetensors")) < 10_000_000
    words = [f"prior.weights={tmp_path / 'sd'}", "prior.image_size=256"]
    plain, graph = (
        measure_sampling_task(load("preview-mvdream-sd21", [*words, *more]), gpu_configs.CUDA)
        for more in (["prior.cuda_graph=false"], [])
    )
    weights = 2 * unet + 4 * (vae + gpu_configs.CLIP_H)
    assert plain is not None and weights < plain.peak < weights + 1.2e9 and 700 < plain.launches < 800
    assert graph is not None and plain.peak + 0.2e9 < graph.peak < plain.peak + 1e9 and graph.launches < 20
