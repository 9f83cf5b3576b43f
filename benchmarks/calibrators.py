"""Published networks' predictions: figures beside those of other libraries, and every head that reads logits, fitted on half of them.

The file holds probabilities [10000, K] of four networks for the test sets of CIFAR-10 and CIFAR-100, and their labels. Heads read log p as
logits. Each is fitted on a half of the samples, chosen by a fixed seed, and measured on the other half; a head whose fit takes longer than
--most seconds is left out. Intervals hold 95 % and are of the paired difference to the probabilities as published. Figures are kept, so
that the benchmark goes on where it stopped.

python benchmarks/calibrators.py --data calibration_probs.npz                     # scikit-learn; torchmetrics too if it is installed
python benchmarks/calibrators.py --data calibration_probs.npz --networks cifar10_lenet_5 --heads temperature isotonic
python benchmarks/calibrators.py --show                                           # only prints the tables
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.metrics
import torch
from torch import Tensor

from sparsify.figures import metrics
from sparsify.figures.bootstrap import Figure, bootstrap_difference, share
from sparsify.files import write_atomically
from sparsify.heads import HEADS, HeldOut, MaskedTemperature, fitting, run
from sparsify.tasks import build

ROOT = Path(__file__).parents[1]
TASK = build("classification")
BINS = 15
PUBLISHED: dict[str, dict[str, float]] = {
    "cifar10_lenet_5": {"accuracy": 0.5308, "confidence": 0.6387, "ece": 0.1079, "nll": 1.3699},
    "cifar10_wideresnet_16_4": {"accuracy": 0.9109, "confidence": 0.9646, "ece": 0.0537, "nll": 0.3778},
    "cifar100_densenet_bc_100": {"accuracy": 0.7541, "confidence": 0.8963, "ece": 0.1422, "nll": 1.2256},
    "cifar100_wideresnet_16_4": {"accuracy": 0.7543, "confidence": 0.8022, "ece": 0.0581, "nll": 0.9564},
}
"""The figures that came with the file, by network."""
NAMES = {
    "cifar10_lenet_5": "CIFAR-10, LeNet-5",
    "cifar10_wideresnet_16_4": "CIFAR-10, WideResNet-16-4",
    "cifar100_densenet_bc_100": "CIFAR-100, DenseNet-BC-100",
    "cifar100_wideresnet_16_4": "CIFAR-100, WideResNet-16-4",
}
TITLES = {"accuracy": "accuracy", "confidence": "mean confidence", "ece": "ECE", "nll": "NLL", "brier": "Brier score"}
LIBRARIES, NEAR = ("scikit-learn", "torchmetrics"), 1e-6
ALIKE = {
    "scikit-learn": "if it is given probabilities clipped at 1e-12",
    "torchmetrics": "if it computes in double precision",
}
"""What makes the figure of another library that of this package."""
UNCALIBRATED = "uncalibrated"
MEASURED = tuple(name for name in fitting(TASK) if HEADS[name].calibrates and name != MaskedTemperature.name)
"""Heads that are fitted to logits alone; those of masked inputs need the network."""
PERCENT = ("accuracy", "ece", "classwise_ece", "debiased_l2")
"""Figures of heads that the table shows in percent."""
Rows = Sequence[Mapping[str, Any]]


def main() -> int:
    """The exit code: 0."""
    arguments = _arguments()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(arguments.json.read_text())["rows"] if arguments.json.exists() else []
    if not arguments.show:
        with np.load(arguments.data, allow_pickle=False) as held:
            for network in arguments.networks:
                labels = torch.from_numpy(held[f"{network.split('_')[0]}_y"].astype(np.int64))
                measure(rows, network, torch.from_numpy(held[f"{network}_probs"]), labels, arguments)
    print("\n".join([*figures(rows), "", *table(rows)]))
    return 0


def measure(
    rows: list[dict[str, Any]], network: str, probabilities: Tensor, labels: Tensor, arguments: argparse.Namespace
) -> None:
    """Add the rows of a network that are missing, and write all rows after each."""

    def missing(**key: str) -> bool:
        return not any({"network": network, **key}.items() <= row.items() for row in rows)

    def add(row: dict[str, Any]) -> None:
        rows.append({"network": network, **row})
        write_atomically(arguments.json, encoded(rows))

    if missing(of="file"):
        add({"of": "file", **compared(probabilities, labels)})
    fitted, scored = halves(len(labels))
    base = probabilities[scored].double()
    for name in (UNCALIBRATED, *arguments.heads):
        if missing(of="head", head=name):
            print(f"{network}: {name}", file=sys.stderr)
            start = time.perf_counter()
            try:
                if name == UNCALIBRATED:
                    after, note = base, None
                else:
                    after, note = calibrated(name, probabilities.double().log(), labels, fitted, scored, arguments.most)
            except TimeoutError as error:
                add({"of": "head", "head": name, "reason": str(error)})
                continue
            seconds = round(time.perf_counter() - start, 2)
            found = {"of": "head", "head": name, "seconds": seconds, "note": note, "samples": len(scored)}
            add({**found, "figures": quality(after, labels[scored]), **differences(after, base, labels[scored])})


def halves(samples: int) -> tuple[Tensor, Tensor]:
    """Indices of the samples for fits, and of those for figures."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    return order[: samples // 2].sort().values, order[samples // 2 :].sort().values


def compared(probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    """Figures of this package and of others by name, and the versions of the others; torchmetrics only if it is installed."""
    p, y = probabilities.double(), labels.numpy()
    ours = {
        "accuracy": metrics.accuracy(p, labels),
        "confidence": float(p.max(1).values.mean()),
        "ece": metrics.ece(p, labels, bins=BINS),
        "nll": metrics.nll(p, labels),
        "brier": metrics.brier(p, labels),
    }
    picked = p.gather(1, labels[:, None])
    counts = {"clipped": int((picked < 1e-12).sum()), "certain": int((p == 1).sum())}
    found: dict[str, Any] = {"sparsify": ours, **counts}
    given: dict[str, Any] = {"labels": range(p.shape[1])}
    scaled = (p / p.sum(1, keepdim=True)).numpy()  # scikit-learn asks for sums of 1 in double precision
    found["scikit-learn"] = {
        "accuracy": float(sklearn.metrics.accuracy_score(y, scaled.argmax(1))),
        "nll": float(sklearn.metrics.log_loss(y, scaled, **given)),
        "brier": float(sklearn.metrics.brier_score_loss(y, scaled, **{"scale_by_half": False}, **given)),
    }
    found["alike"] = {"scikit-learn": {"nll": float(sklearn.metrics.log_loss(y, scaled.clip(1e-12), **given))}}
    versions = {"scikit-learn": importlib.metadata.version("scikit-learn")}
    try:
        from torchmetrics.functional import classification as others  # pyright: ignore[reportMissingImports]
        from torchmetrics.functional.classification.calibration_error import _ce_compute  # pyright: ignore
    except ImportError:
        return {**found, "versions": versions}
    given = {"num_classes": p.shape[1]}
    found["torchmetrics"] = {
        "accuracy": float(others.multiclass_accuracy(p, labels, average="micro", **given)),
        "ece": float(others.multiclass_calibration_error(p, labels, n_bins=BINS, norm="l1", **given)),
    }
    confidence, predicted = p.max(1)
    found["alike"]["torchmetrics"] = {"ece": float(_ce_compute(confidence, predicted == labels, BINS))}
    return {**found, "versions": {**versions, "torchmetrics": importlib.metadata.version("torchmetrics")}}


def calibrated(
    name: str, logits: Tensor, labels: Tensor, fitted: Tensor, scored: Tensor, most: int
) -> tuple[Tensor, str | None]:
    """Probabilities [M, K] of a head for the samples ``scored``, as a file computes them, and the note of its fit.

    Raises:
        TimeoutError: If the fit takes longer than ``most`` seconds.
    """
    head = HEADS[name]

    def stop(*_: Any) -> None:
        raise TimeoutError(f"the fit takes longer than {most} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(most)
    try:
        result = head.fit(HeldOut(logits[fitted], labels[fitted], TASK), head.identity(logits.shape))
    finally:
        signal.alarm(0)
    state = {key: value.float() for key, value in result.values.items()}
    (found,) = head.apply(run, logits[scored].float(), state, TASK)
    return found.double(), result.note


def quality(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """What the table shows of probabilities [N, K]."""
    return {
        "accuracy": metrics.accuracy(probabilities, labels),
        "nll": metrics.nll(probabilities, labels),
        "ece": metrics.ece(probabilities, labels, bins=BINS),
        "classwise_ece": metrics.classwise_ece(probabilities, labels, bins=BINS),
        "debiased_l2": metrics.debiased_l2(probabilities, labels, bins=BINS),
    }


def differences(after: Tensor, before: Tensor, labels: Tensor) -> dict[str, Any]:
    """Differences and 95 % intervals of figures for [N, K]; the debiased error has none, as drawing samples twice undoes its correction.

    Draws of samples have a larger class-wise ECE than the samples, so that the quantiles of its draws may lie on one side of the
    difference. Its interval is as wide as these quantiles are apart, and has the difference in its middle.
    """
    first, second = resampled(after, labels), resampled(before, labels)
    once, found = np.ones((1, len(labels))), dict[str, Any]()
    for name, figure in first.items():
        difference = float((figure(once) - second[name](once))[0])
        ends = bootstrap_difference(figure, second[name], len(labels))
        assert ends is not None, "every draw defines these figures"
        if name == "classwise_ece":
            reach = (ends[1] - ends[0]) / 2
            ends = difference - reach, difference + reach
        found[name] = {"difference": difference, "interval": list(ends)}
    return {"differences": found}


def resampled(probabilities: Tensor, labels: Tensor) -> dict[str, Figure]:
    """The figures as functions of how often each sample was drawn."""
    confidence, predicted = probabilities.max(1)
    right, ones = (predicted == labels).double(), torch.ones(len(labels), dtype=torch.float64)
    picked = probabilities.gather(1, labels[:, None]).squeeze(1)
    truth = torch.nn.functional.one_hot(labels, probabilities.shape[1]).double()
    return {
        "accuracy": share(right, ones),
        "nll": share(-picked.clamp_min(1e-12).log(), ones),
        "ece": binned_error(confidence[:, None], right[:, None]),
        "classwise_ece": binned_error(probabilities, truth),
    }


def binned_error(confidence: Tensor, right: Tensor) -> Figure:
    """ECE over equal-width bins for each column of [N, C], averaged over columns, of draws."""
    bins = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
    gaps = torch.zeros(*confidence.shape, BINS, dtype=torch.float64).scatter_(
        2, bins[..., None], (right - confidence)[..., None]
    )
    flat = gaps.flatten(1).numpy()
    return lambda draws: abs(draws @ flat).sum(1) / draws.sum(1) / confidence.shape[1]


def figures(rows: Rows) -> list[str]:
    """Markdown: figures of the whole file as published, and by each library."""
    columns = ("published", "sparsify", *LIBRARIES)
    files = {row["network"]: row for row in rows if row["of"] == "file"}
    lines = [f"| network | figure | {' | '.join(columns)} |", "| --- " * (2 + len(columns)) + "|"]
    for network in (name for name in PUBLISHED if name in files):
        for figure, title in TITLES.items():
            values = [{"published": PUBLISHED[network], **files[network]}.get(name, {}).get(figure) for name in columns]
            shown = (
                f"{value:.{4 if place == 0 else 6}f}" if value is not None else "" for place, value in enumerate(values)
            )
            lines.append(f"| {NAMES[network]} | {title} | {' | '.join(shown)} |")
    return [*lines, "", *apart(files)]


def apart(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences: where the figures of this package are not those published, or those of another library."""
    said, count = list[str](), 0
    for network, row in files.items():
        for figure, ours in row["sparsify"].items():
            name, published = f"{NAMES[network]}, {TITLES[figure]}", PUBLISHED[network].get(figure)
            if published is not None and f"{ours:.4f}" != f"{published:.4f}":
                said.append(f"- {name}: published {published:.4f}, here {ours:.4f}.")
            for library in LIBRARIES:
                other = row.get(library, {}).get(figure)
                count += other is not None
                if other is not None and abs(other - ours) > NEAR:
                    alike = row["alike"].get(library, {}).get(figure)
                    then = f"; {alike:.6f} {ALIKE[library]}" if alike is not None else ""
                    said.append(f"- {name}: {library} {other:.6f}, here {ours:.6f}{then}.")
    if not said:
        return [
            f"No figure differs in a published digit, nor by more than {NEAR:.6f} from another library ({count} figures)."
        ]
    heading = f"These differ in a published digit, or by more than {NEAR:.6f} from another library ({count} figures were compared):"
    return [heading, "", *said]


def table(rows: Rows) -> list[str]:
    """Markdown: figures of each head on the half that it was not fitted on, and intervals of the difference to no calibration."""
    columns = {
        "accuracy": "accuracy, %",
        "nll": "NLL",
        "ece": "ECE, %",
        "classwise_ece": "class-wise ECE, %",
        "debiased_l2": "debiased L2, %",
    }
    lines = [f"| network | head | {' | '.join(columns.values())} |", "| --- " * (2 + len(columns)) + "|"]
    order = {name: place for place, name in enumerate(PUBLISHED)}
    heads = {name: place for place, name in enumerate((UNCALIBRATED, *fitting(TASK)))}
    kept = (row for row in rows if row["of"] == "head")
    for row in sorted(kept, key=lambda row: (order[row["network"]], heads.get(row["head"], len(heads)))):
        if "reason" in row:
            cells = [f"left out: {row['reason']}", *[""] * (len(columns) - 1)]
        else:
            cells = [_cell(row, name) for name in columns]
        head = row["head"] if row["head"] == UNCALIBRATED else f"`{row['head']}`"
        lines.append(f"| {NAMES[row['network']]} | {head} | {' | '.join(cells)} |")
    return lines


def _cell(row: Mapping[str, Any], name: str) -> str:
    """A figure, and the interval of its difference, bold if it excludes 0."""
    scale, digits = (100, 2) if name in PERCENT else (1, 3)
    text = f"{scale * row['figures'][name]:.{digits}f}"
    if row["head"] == UNCALIBRATED or name not in row["differences"]:
        return text
    low, high = row["differences"][name]["interval"]
    ends = f"{scale * low:+.{digits}f} to {scale * high:+.{digits}f}"
    return f"{text} ({f'**{ends}**' if low > 0 or high < 0 else ends})"


def encoded(rows: Rows) -> bytes:
    """One row per line."""
    lines = ",\n ".join(json.dumps(row) for row in rows)
    return f'{{"rows": [\n {lines}\n]}}\n'.encode()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("calibration_probs.npz"))
    parser.add_argument("--networks", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    parser.add_argument("--heads", nargs="+", choices=MEASURED, default=list(MEASURED))
    parser.add_argument("--most", type=int, default=120, help="longest fit, in seconds")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results" / "calibrators.json", help="where figures are kept"
    )
    parser.add_argument("--show", action="store_true", help="print the tables, and measure nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
