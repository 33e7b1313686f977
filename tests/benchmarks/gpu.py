"""The GPU's share: a U-Net in bfloat16 over a large image, beside the bare model loop on the device.

    python -m tests.benchmarks.gpu [--size 16384] [--encoder resnet34] [--batch 16] [--repeats 3] [--compile] [--device cuda]

The bare loop has its scaled tiles on the device already: same batch, autocast, channels last. Printed are both speeds, the GPU's
busy share as nvidia-smi sees it, and how fast tiles can be read and cut without any model: what is slower than the device
shows. Where there is no GPU it says so and measures nothing; `--device cpu --size 1024` walks the same way without one.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from functools import partial
from statistics import mean, median
from typing import Any

import torch

from pipeline.card import read_card
from pipeline.config import config_of
from pipeline.grid import Lattice
from pipeline.image import ImageSpec
from pipeline.models import smp
from pipeline.models.device import DevicePredictor
from pipeline.models.network import Inference, Network
from pipeline.plan import Budget, Plan, plan_image
from pipeline.sources import describe, open_source
from pipeline.strip import ReadAhead
from pipeline.work import predict_core
from tests.benchmarks.measure import machine, verdict, workshop
from tests.benchmarks.scenes import endless, usual_model


class Busy:
    """How busy the GPU is while the context lasts, by nvidia-smi five times a second."""

    def __enter__(self) -> Busy:
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
        self._output = tempfile.TemporaryFile("w+")
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(command, stdout=self._output, text=True)
        except OSError:
            self._process = None
        return self

    def __exit__(self, *_: object) -> None:
        samples: list[float] = []
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._output.seek(0)
            samples = [float(line) for line in self._output if line.strip().isdigit()]
        self._output.close()
        self.share = f"{mean(samples):.0f} %" if samples else "unknown"


def wait(device: torch.device) -> None:
    """Until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare_loop(network: torch.nn.Module, device: torch.device, batch: int, passes: int) -> float:
    """Seconds of so many passes."""
    samples = torch.randn(batch, 3, 512, 512, device=device).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        network(samples)
        wait(device)
        started = time.perf_counter()
        for _ in range(passes):
            network(samples)
        wait(device)
        return time.perf_counter() - started


def main() -> None:
    """Measure and print, or say that there is nothing to measure on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=16384)
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("not run: there is no CUDA device here")
        return
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU in a GPU's place"
    print(
        f"{machine()}, {name}\nU-Net {options.encoder}, bfloat16, batch {options.batch}, compile {options.compile}\n", flush=True
    )
    with workshop() as folder:
        image, model = endless(folder / "image.tif", options.size, options.size), usual_model(folder / "model", options.encoder)
        settings: dict[str, Any] = {"name": "bench", "output": "out", "archive": {"images": str(image)}}
        settings |= {"model": {"path": str(model), "batch": options.batch, "precision": "bfloat16"}}
        plan = plan_image(
            config_of(settings, folder, "bench"),
            ImageSpec(uri=str(image)),
            describe(str(image)),
            read_card(model),
            Budget(64 << 30),
        )
        network = smp.load(model, plan.card)
        how = Inference(str(device), options.batch, "bfloat16", 1, options.compile)
        predictor = DevicePredictor(plan.card, Network(network, any_layout=True), how)
        tiles = Lattice(options.size, options.size, 512, 128).tiles
        passes = -(-tiles // options.batch)
        bare, whole, busy = [], [], Busy()
        module = network.to(device).to(memory_format=torch.channels_last)
        for turn in range(options.repeats + 1):
            seconds = bare_loop(module, device, options.batch, passes)
            with busy:
                started = time.perf_counter()
                done = sum(work(plan, predictor))
                spent = time.perf_counter() - started
            if turn:  # the first warms up
                bare.append(seconds)
                whole.append(spent)
        started = time.perf_counter()
        read_only(plan, predictor)
        reading = time.perf_counter() - started
    mpx = options.size**2 / 1e6
    ratio = median(bare) / median(whole)
    print(f"{'':34}{'tiles':>8}{'seconds':>9}{'Mpx/s':>9}")
    print(f"{'bare loop on the device':34}{tiles:>8}{median(bare):>9.2f}{mpx / median(bare):>9.1f}")
    print(f"{'gigamask, one block after another':34}{done:>8}{median(whole):>9.2f}{mpx / median(whole):>9.1f}")
    print(f"{'reading and cutting alone':34}{done:>8}{reading:>9.2f}{mpx / reading:>9.1f}")
    print(f"GPU busy: {busy.share}\n")
    verdict(f"{ratio:.2f} of the bare loop (0.85 meant)", ratio >= 0.85)


def work(plan: Plan, predictor: DevicePredictor) -> list[int]:
    """Tiles of each block, predicted and labelled one after the other."""
    return [predict_core(plan, predictor, partial(open_source, plan.read), block.core).tiles for block in plan.blocks]


def read_only(plan: Plan, predictor: DevicePredictor) -> None:
    """Read and cut all tiles, and nothing else."""
    for block in plan.blocks:
        with ReadAhead(plan, predictor, partial(open_source, plan.read), block.core, lambda *_: None) as ahead:
            for group in ahead:
                ahead.release(group)


if __name__ == "__main__":
    main()
