"""The verdict by hand: what may be said of accuracy, speed, size and damage, and what may not be said without a baseline."""

from __future__ import annotations

import pytest

from sparsify.reports import verdict


def part(accuracy=0.95, **changes):
    figures = {"ece_after": 0.02, "nll_after": 0.2, "brier_after": 0.1, "bytes": 1000, "nonzeros": 50, "maskable": 500}
    return {"accuracy": accuracy, **figures, **changes}


def report(model, dense=None, lost=(0, 0), gained=(0, 0), samples=(500, 500), names=None):
    flips = {
        "lost": sum(lost), "gained": sum(gained), "class_lost": list(lost), "class_gained": list(gained), "class_samples": list(samples)
    }  # fmt: skip
    data = {"samples": {"test": sum(samples)}, "class_names": names}
    return {"model": model, "data": data, **({"dense": dense, "flips": flips} if dense else {})}


def latency(speedup, interval, said):
    rows = [("dense", 2.0, 1.0, (1.0, 1.0)), ("model", 2.0 / speedup, speedup, interval)]
    timings = [{"name": n, "milliseconds": ms, "speedup": ratio, "interval": i} for n, ms, ratio, i in rows]
    return {"timings": timings, "batch": 1, "threads": 2, "verdict": said}


@pytest.mark.parametrize(
    ("lost", "gained", "said"),
    [
        ((40, 10), (5, 5), "Accuracy: worse than dense, -4.00 points (95 % interval -5.51 to -2.47"),
        ((2, 3), (30, 15), "Accuracy: better than dense, +4.00 points"),
        ((5, 5), (4, 5), "Accuracy: no clear difference to dense, -0.10 points"),
        ((0, 0), (0, 0), "Accuracy: no clear difference to dense, +0.00 points"),
    ],
)
def test_accuracy_is_called_better_or_worse_only_where_the_interval_leaves_out_0(lost, gained, said):
    line = verdict(report(part(), part(0.95), lost, gained), None)[0]
    assert line.startswith(said) and "1,000 test samples, one seed" in line


def test_speed_has_its_interval_and_the_words_of_the_measurement():
    lines = verdict(report(part(), part()), latency(1.6, (1.5, 1.7), "faster"))
    assert lines[1] == (
        "Speed: faster, 1.60 times as fast as dense (95 % interval 1.50 to 1.70) at batch 1, 2 thread(s): 1.25 ms against 2.00 ms."
    )
    small = latency(1.05, (1.02, 1.08), "faster")
    small["timings"] = [
        {**row, "milliseconds": ms} for row, ms in zip(small["timings"], (0.00903, 0.00860), strict=True)
    ]
    assert verdict(report(part(), part()), small)[1].endswith("0.00860 ms against 0.00903 ms.")
    assert "too noisy to tell" in verdict(report(part(), part()), latency(1.1, (0.8, 1.7), "too noisy to tell"))[1]
    assert verdict(report(part(), part()), None)[1] == "Speed: not measured."


@pytest.mark.parametrize(
    ("size", "said"),
    [(400, "smaller than dense, 40.0 %"), (1001, "as large as dense"), (1500, "larger than dense, 150.0 %")],
)
def test_size_is_counted(size, said):
    assert f"Size: {said}" in verdict(report(part(bytes=size), part()), None)[2]


def test_what_got_worse_names_classes_and_calibration():
    model = part(ece_after=0.05, nll_after=0.2, brier_after=0.1)
    line = verdict(report(model, part(), lost=(60, 1), gained=(5, 0), names=["cat", "dog"]), None)[3]
    assert (
        line
        == "Worse than dense: accuracy of class 0 (cat) by 11.00 points of its 500 samples; ECE 0.0500 against 0.0200."
    )
    unclear = verdict(report(part(), part(), lost=(0, 1)), None)[3]
    assert unclear == "Worse than dense: accuracy of class 1 by 0.20 points of its 500 samples, which may be chance."
    assert verdict(report(part(), part()), None)[3] == "Worse than dense: nothing that was measured."


@pytest.mark.parametrize(
    ("interval", "lower", "said"),
    [
        (
            (0.01, 0.03),
            (),
            "r2: better than dense, +0.0200 (95 % interval +0.0100 to +0.0300, 360 test samples, one seed)",
        ),
        ((0.01, 0.03), ("r2",), "r2: worse than dense"),
        ((-0.03, -0.01), (), "r2: worse than dense"),
        ((-0.03, 0.01), (), "r2: no clear difference to dense"),
    ],
)
def test_the_figure_of_a_task_is_judged_by_its_interval(interval, lower, said):
    parts = [part(figures={"r2": value}, headline="r2", lower_is_better=[*lower]) for value in (0.42, 0.4)]
    paired = {"figure": "r2", "difference": 0.02, "interval": list(interval), "resamples": 1000}
    found = {"model": parts[0], "dense": parts[1], "data": {"samples": {"test": 360}}}
    line = verdict({**found, "paired": paired}, None)[0]
    assert line.startswith(said) and line.endswith("0.4200 against 0.4000.")
    assert "one seed, without an interval)" in verdict(found, None)[0]
    why = {"figure": "r2", "reason": "outputs are NaN or infinite"}
    assert "without an interval: outputs are NaN or infinite)" in verdict({**found, "paired": why}, None)[0]


def test_without_a_baseline_every_line_says_what_could_not_be_compared():
    alone = latency(1.0, (1.0, 1.0), None)
    alone["timings"] = alone["timings"][1:]
    lines = verdict(report(part(0.95)), alone)
    assert len(lines) == 4 and all("not compared with dense" in line and "--baseline" in line for line in lines)
    assert lines[0].startswith("Accuracy: 0.9500 on 1,000 test samples (95 % interval 0.93")
    told = verdict({**report(part(0.95)), "without_baseline": "its method is dense itself"}, alone)
    assert all(
        "not compared with dense: its method is dense itself." in line and "--baseline" not in line for line in told
    )


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.01, 0.03), "mse: higher than dense, and nothing says which is better (see task.options.lower_is_better), +0.02"),
        ((-0.03, -0.01), "mse: lower than dense, and nothing says which is better"),
        ((-0.03, 0.01), "mse: no clear difference to dense, +0.02"),
        (None, "mse: higher than dense, and nothing says which is better"),
    ],
)  # fmt: skip
def test_of_a_figure_without_a_direction_only_the_difference_is_told(interval, said):
    figures = ({"mse": 0.42, "bias": 0.1}, {"mse": 0.4, "bias": 0.1})
    parts = [part(figures=row, headline="mse", lower_is_better=[], undirected=["mse", "bias"]) for row in figures]
    found = {"model": parts[0], "dense": parts[1], "data": {"samples": {"test": 360}}}
    if interval:
        found["paired"] = {"figure": "mse", "difference": 0.02, "interval": list(interval), "resamples": 200}
    first, *_, last = verdict(found, None)
    assert first.startswith(said) and "better than" not in first and "worse than" not in first
    assert last == "Worse than dense: not known of mse, of which nothing says which way is better."
    parts[0]["figures"]["rmse"], parts[1]["figures"]["rmse"] = 0.5, 0.4
    parts[0]["lower_is_better"] = ["rmse"]
    assert verdict(found, None)[-1].startswith("Worse than dense: rmse 0.5000 against 0.4000; not known of mse,")
