"""Benchmark of training steps on a GPU: the digits of the CPU first, then speed, memory, launches, and a paper's cost.

    python benchmarks/gpu.py [--device cuda] [--euros-per-hour 2] [--json benchmarks/results/gpu.json]
    python benchmarks/gpu.py --device cpu --smoke        # tests the benchmark itself; its speeds mean nothing

1. Digits: the losses of the first steps in float32 on the device and on the CPU, from the same weights and plans. They
   may differ by 1e-4 of the loss; otherwise the benchmark stops.
2. Speed: training images per second of each method, in each mode (eager, compiled, CUDA graphs), precision and source
   of the teacher's logits, for one to four runs that share the device, each in another process. Beside it: peak
   memory of a run, kernel launches of a step, the share of the device's peak speed, and the speed of the usual step of
   step.py on the same device. Images are noise, which does not change the speed.
3. Cost: hours of a table and of the whole paper, from the measured speeds. A cell whose pair or method was not measured
   counts by its FLOPs, at the median speed in FLOP/s of the measured ones.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Empty
from typing import Any

import step as usual
import torch
from machine import describe_machine, save_results
from torch.utils.data import DataLoader

from kdflow import config
from kdflow.config import Experiment, Precision, RunSettings
from kdflow.data import ImageSet
from kdflow.models import to_device
from kdflow.models.precision import use_tf32
from kdflow.paper import load_paper
from kdflow.training.batches import InMemoryBatches
from kdflow.training.epoch_plan import draw_plan
from kdflow.training.step import Step, new_student

ROOT, BATCH, CPU = Path(__file__).parents[1], 64, torch.device("cpu")
Fields = dict[str, dict[str, Any]]
MODES: Fields = {
    "eager": {},
    "compiled": {"compile": "default"},
    "graph": {"compile": "reduce-overhead"},
}
PRECISIONS: Fields = {
    "float32": {},
    "tf32": {"tf32": True},
    "bf16 teacher": {"teacher": "bfloat16", "tf32": True},
}
PAIRS = ("resnet56_to_resnet20", "wrn_40_2_to_wrn_16_2", "vgg13_to_mobilenetv2")
METHODS = ("ce", "kd", "kd_tlcutmix", "kd_tlcutmix_pick")
DIGITS = 1e-4  # relative difference of a loss on two devices
DIGIT_STEPS = 3


@dataclass(frozen=True)
class Case:
    """The settings of a measurement: `source` is online, or replay with a filled cache; `runs` share the device."""

    pair: str
    method: str
    mode: str = "eager"
    precision: str = "float32"
    source: str = "online"
    runs: int = 1

    def settings(self, experiment: Experiment, images: int) -> RunSettings:
        """Return the settings of a run on CIFAR-100."""
        run = usual.settings(experiment, self.pair, self.method, self.source, images)
        return run.model_copy(update={"precision": Precision(**MODES[self.mode], **PRECISIONS[self.precision])})


class Training:
    """A run on noise images: its step, and one epoch of plans."""

    def __init__(self, experiment: Experiment, case: Case, device: torch.device, steps: int, folder: Path) -> None:
        n = steps * BATCH
        self.run, self.device = case.settings(experiment, n), device
        use_tf32(self.run.precision.tf32)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (n, 32, 32, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = torch.randint(100, (n,), generator=generator)
        self.images = ImageSet(pixels.to(device), labels.to(device))
        self.plan = draw_plan(0, 0, n, BATCH, 32, self.run.base_view, self.run.method.strong, device)
        self.batches = InMemoryBatches(self.images, self.run.base_view)
        self.teacher = usual.teacher_of(experiment, experiment.pairs[case.pair].teacher)
        self.learner = new_student(self.run, self.images.labels)
        training = self.run.training
        optimizer = torch.optim.SGD(self.learner.parameters(), training.lr, 0.9, weight_decay=training.weight_decay)
        teacher = to_device(copy.deepcopy(self.teacher), device)
        source = usual.source_of(self.run, teacher, self.batches, self.plan, folder)
        self.step = Step(self.run, self.learner, source, optimizer)

    def losses(self) -> Iterator[torch.Tensor]:
        """Take the steps of the epoch; yield each loss, on the device."""
        for plan in self.plan:
            yield self.step(self.batches.batch(plan), self.run.training.lr).loss

    def usual_losses(self) -> Iterator[float]:
        """Take the same steps by the usual step of step.py; yield each loss."""
        student = copy.deepcopy(self.learner.student)
        reference = usual.Reference(self.run, student, to_device(copy.deepcopy(self.teacher), self.device))
        images = ImageSet(self.images.images.cpu(), self.images.labels.cpu())
        plans = list(draw_plan(0, 0, len(images), BATCH, 32, self.run.base_view, self.run.method.strong, CPU))
        for (x, labels), plan in zip(DataLoader(usual.Usual(images, self.run, plans), BATCH), self.plan, strict=True):
            yield reference(x.to(self.device), labels.to(self.device), plan)


def check_digits(experiment: Experiment, device: torch.device, cases: Sequence[Case]) -> dict[str, float]:
    """Return the largest relative difference of the first losses on the device and on the CPU, by method.

    Raises:
        SystemExit: it is larger than `DIGITS`.
    """
    differences = {}
    for case in cases:
        losses = []
        for one in (CPU, device):
            with tempfile.TemporaryDirectory() as folder:
                training = Training(experiment, case, one, DIGIT_STEPS, Path(folder))
                losses.append([loss.item() for loss in training.losses()])
        difference = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
        print(f"digits {case.pair} {case.method}: losses differ by at most {difference:.1e}", flush=True)
        if not difference <= DIGITS:
            raise SystemExit(f"the losses differ by more than {DIGITS}: {losses}")
        differences[f"{case.pair} {case.method}"] = difference
    return differences


def speed(device: torch.device, steps: int, losses: Callable[[], Iterable[Any]]) -> float:
    """Return images per second of an epoch of `steps` steps."""
    started = time.perf_counter()
    deque(losses(), maxlen=0)
    synchronise(device)
    return steps * BATCH / (time.perf_counter() - started)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def launches(training: Training) -> float | None:
    """Return the kernels and graphs that a step launches, averaged over an epoch; None on a CPU."""
    if training.device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        steps = sum(1 for _ in training.losses())
        synchronise(training.device)
    names = ("cudaLaunchKernel", "cudaGraphLaunch", "cuLaunchKernel", "cudaLaunchKernelExC")
    return float(sum(event.count for event in profiler.key_averages() if event.key in names)) / steps


def measure(case: Case, device_name: str, steps: int, rounds: int, barrier: Barrier, results: Any) -> None:
    """Measure one of the runs of a case, in one process, in step with the others; put the result in a queue."""
    torch.set_num_threads(1)
    device, experiment = torch.device(device_name), config.load(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(experiment, case, device, steps, Path(folder))
        for _ in range(2):  # compiles, records graphs, and lets cuDNN choose
            speed(device, steps, training.losses)
        barrier.wait()
        speeds = [speed(device, steps, training.losses) for _ in range(rounds)]
        barrier.wait()
        memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
        reference = None
        if case.runs == 1 and case.mode == "eager" and case.precision == "float32" and case.source == "online":
            speed(device, steps, training.usual_losses)
            reference = statistics.median(speed(device, steps, training.usual_losses) for _ in range(rounds))
        flops = usual.flops(experiment, training.run)
        results.put((statistics.median(speeds), memory, launches(training), reference, flops))


def run_case(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a case; return its figures."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(case.runs), context.Queue()
    arguments = (case, args.device, args.steps, args.rounds, barrier, queue)
    processes = [context.Process(target=measure, args=arguments) for _ in range(case.runs)]
    for process in processes:
        process.start()
    results: list[tuple[Any, ...]] = []
    while len(results) < case.runs:
        try:
            results.append(queue.get(timeout=5))
        except Empty:
            if any(process.exitcode for process in processes):
                barrier.abort()
                raise SystemExit(f"a process of {case} failed") from None
    for process in processes:
        process.join()
    speeds, memory, launched, reference, flops = zip(*results, strict=True)
    total = sum(speeds)
    return asdict(case) | {
        "images_per_second": total,
        "usual_images_per_second": reference[0],
        "ratio_to_usual": None if reference[0] is None else total / reference[0],
        "memory_mb_per_run": memory[0],
        "launches_per_step": launched[0],
        "flops_per_image": flops[0],
        "share_of_peak": total * flops[0] / args.peak,
    }


def peak(device: torch.device) -> float:
    """Return the highest speed of a float32 matrix product on the device, in floating point operations per second."""
    n = 4096 if device.type == "cuda" else 1024
    use_tf32(False)
    a, seconds = torch.rand(n, n, device=device), []
    for _ in range(10):
        synchronise(device)
        started = time.perf_counter()
        a @ a
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Yield all modes and precisions for the first pair; for the others and for several runs, fewer of them."""
    first, *others = args.pairs
    for method, mode, precision in itertools.product(args.methods, args.modes, args.precisions):
        yield Case(first, method, mode, precision)
    fastest = {args.modes[0], args.modes[-1]}
    for method, mode in itertools.product(args.methods, sorted(fastest)):
        if method != "ce":
            yield Case(first, method, mode, source="replay")
        for runs in args.runs:
            if runs > 1:
                yield Case(first, method, mode, runs=runs)
        for pair in others:
            yield Case(pair, method, mode)


def cost(experiment: Experiment, figures: Sequence[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Return the hours of table 3 and of the paper, and their price, from the speeds of single runs in float32."""
    fastest: dict[tuple[str, str], float] = {}
    for one in figures:
        if (one["runs"], one["source"], one["precision"]) != (1, "online", "float32"):
            continue
        key = (one["pair"], one["method"])
        fastest[key] = max(fastest.get(key, 0.0), one["images_per_second"] * one["flops_per_image"])
    typical = statistics.median(fastest.values())
    loaded = load_paper(Path("paper"), ROOT)
    names = {(pair.teacher, pair.student): name for name, pair in experiment.pairs.items()}

    @functools.cache
    def flops(dataset: str, teacher: str | None, student: str, method: str) -> float:
        name = next(n for n, c in loaded.cells.items() if _key(c) == (dataset, teacher, student, method))
        cell_experiment = loaded.experiment(loaded.cells[name])
        return usual.flops(cell_experiment, cell_experiment.student_run(method, 0))

    seconds = {}
    for name, cell in loaded.cells.items():
        images = loaded.recipes.datasets[cell.dataset].data.train_images
        measured = fastest.get((names.get((cell.teacher or "", cell.student), ""), cell.method), typical)
        seconds[name] = cell.epochs * cell.seeds * images * flops(*_key(cell)) / measured
    hours = {
        "table3": sum(seconds[name] for name in loaded.cells_of("table3")) / 3600,
        "paper": sum(seconds.values()) / 3600,
    }
    for name, value in hours.items():
        print(f"{name}: {value:,.0f} hours of one run at a time, {value * args.euros_per_hour:,.0f} euros", flush=True)
    return {"hours": hours, "euros_per_hour": args.euros_per_hour}


def _key(cell: Any) -> tuple[str, str | None, str, str]:
    return cell.dataset, cell.teacher, cell.student, cell.method


def main() -> None:
    """Check the digits, measure all cases and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[*MODES])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=[*PRECISIONS])
    parser.add_argument("--runs", nargs="+", type=int, default=[1, 2, 3, 4], help="runs that share the device")
    parser.add_argument("--steps", type=int, default=100, help="steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--euros-per-hour", type=float, default=2.0, help="price of the device")
    parser.add_argument("--smoke", action="store_true", help="two steps of a small pair, eager: tests this program")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    if args.smoke:
        args.pairs, args.methods, args.modes = ["resnet20_to_resnet8"], ["kd", "kd_tlcutmix_pick"], ["eager"]
        args.precisions, args.runs, args.steps, args.rounds = ["float32"], [1, 2], 2, 1
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU: torch.cuda.is_available() is False; --device cpu --smoke tests this program only")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    experiment, args.peak = config.load(ROOT), peak(device)
    print(f"{name}, batch {BATCH} at 32 px, {describe_machine()}; peak {args.peak / 1e12:.1f} TFLOP/s", flush=True)
    differences = check_digits(experiment, device, [Case(args.pairs[0], method) for method in args.methods])
    figures = []
    for case in cases(args):
        figures.append(run_case(case, args))
        values = ((key, value) for key, value in figures[-1].items() if isinstance(value, float))
        label = " ".join(map(str, asdict(case).values()))
        print(label, "  ".join(f"{key} {value:.3g}" for key, value in values), flush=True)
    save_results(
        args.json,
        device=name,
        smoke=args.smoke,
        peak_tflops=args.peak / 1e12,
        digits=differences,
        cases=figures,
        cost=cost(experiment, figures, args),
    )


if __name__ == "__main__":
    main()
