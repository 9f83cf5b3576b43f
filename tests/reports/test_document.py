"""The report of a real, short run: whole, self-contained, equal to what the terminal shows, and rebuilt from the files alone."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
from copy import deepcopy
from html.parser import HTMLParser

import pytest

from sparsify.errors import ReportError
from sparsify.reports import headline, savings_line, verdict, write_report
from sparsify.reports.savings import savings_sentences
from sparsify.runs.recipe import parse_recipe
from sparsify.runs.workflow import ARTEFACTS, run

VOID = {"meta", "br", "link", "img"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    options = {"method": "rigl", "method_options": {"update_every": 10}}
    recipe = parse_recipe(None, {"epochs": 2, "baseline": True, "threads": 1, **options})
    return folder, run(recipe, folder)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.words, self.links, self.ids = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.links += [
            value for key, value in attrs if key in {"src", "href", "xlink:href"} and not value.startswith("#")
        ]
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for key, value in attrs if key == "id"]
        self.links += [
            value for key, value in attrs if key in {"src", "href", "xlink:href"} and not value.startswith("#")
        ]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in {"td", "th"}:
            self.cells.append(data)
        self.words.append(data)


def test_the_report_is_whole_and_refers_to_nothing_outside(finished):
    folder, _ = finished
    assert all((folder / name).exists() for name in ARTEFACTS)
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.links and all(
        link.startswith("data:image/png;base64,") for link in page.links
    )  # the exemplars, embedded
    assert "<script" not in text and "@import" not in text and not re.search(r"url\((?!#)", text)
    assert text.count("<svg") == 5 and text.count("aria-label=") == 5 and text.count('role="img"') == 5
    assert len(page.ids) == len(set(page.ids))
    assert {used for used in re.findall(r"url\(#([^)]*)\)", text)} <= set(page.ids)
    words = " ".join(page.words)
    for expected in (
        "Recipe, resolved", "aten.conv2d", "8.weight", "held-out", "seed", "insert-masks", "lower-masks", "fold-masks"
    ):  # fmt: skip
        assert expected in words, expected


def test_the_page_begins_with_the_verdict(finished):
    folder, report = finished
    page = re.search(r"</h1>\n(.*?)<div", (folder / "report.html").read_text(), re.S)
    assert page is not None
    shown = [html.unescape(line) for line in re.findall(r'<p class="verdict">(.*?)</p>', page[1])]
    assert shown == verdict(report, report["latency"])
    assert [line.partition(":")[0] for line in shown] == ["Accuracy", "Speed", "Size", "Worse than dense"]
    assert all("against" in line or "nothing" in line or "may be chance" in line for line in shown)


def test_the_terminal_and_the_page_show_the_same_rows(finished):
    folder, report = finished
    shown = headline(report, report["latency"])
    cells = Page((folder / "report.html").read_text()).cells
    flat = [cell for label, values in shown.rows for cell in (label, *values)]
    assert cells[len(shown.columns) : len(shown.columns) + len(flat)] == flat
    assert (
        shown.columns == ("dense", "rigl") and dict(shown.rows)["accuracy"][1] == f"{report['model']['accuracy']:.4f}"
    )


def test_bins_and_classes_agree_with_the_headline(finished):
    _, report = finished
    for part in ("dense", "model"):
        for when in ("before", "after"):
            bins = report[part]["reliability"][when]
            total = sum(row["count"] for row in bins)
            gap = sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / total
            assert total == report["data"]["samples"]["test"] and abs(gap - report[part][f"ece_{when}"]) < 1e-12
    layers = report["model"]["layers"]
    assert sum(layer["active"] for layer in layers) == report["model"]["nonzeros"]
    assert report["model"]["counts"]["rounds"] > 0


def test_the_risk_coverage_curve_agrees_with_the_figures_and_is_drawn(finished):
    folder, report = finished
    text = (folder / "report.html").read_text()
    samples = report["data"]["samples"]["test"]
    for part in ("dense", "model"):
        for when in ("before", "after"):
            curve, row = report[part]["risk_coverage"][when], report[part]
            assert len(curve["coverage"]) == len(curve["risk"]) <= 100 and curve["coverage"][-1] == 1
            assert curve["coverage"] == sorted(set(curve["coverage"]))
            right = row["accuracy" if when == "before" else "accuracy_after"]
            assert curve["risk"][-1] == pytest.approx(1 - right)
            assert 0 <= row[f"excess_aurc_{when}"] <= row[f"aurc_{when}"] <= 1
            assert f"AURC {row[f'aurc_{when}']:.5f} {when} calibration" in text
            for selection in row["coverage_at_risk"][when]:
                assert selection["risk"] <= selection["at_most"] and selection["samples"] <= samples
        choice = report[part]["chosen_confidence"]
        assert len(choice["held_out"]["norms"]) == 8 and f"{choice['aurc']:.5f}" in text
        assert choice["p"] is not None or choice["aurc"] == report[part]["aurc_after"]
    for key, row in report["differences"].items():
        if "interval" in row:
            assert row["difference"] == pytest.approx(report["model"][key] - report["dense"][key], abs=1e-9)
            assert row["interval"][0] <= row["interval"][1] and row["resamples"] == 1000


def test_a_run_of_an_earlier_version_has_a_report_without_selective_prediction(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    assert "Answering only what is certain" in (copy / "report.html").read_text()

    def forget(content):
        del content["differences"]
        for part in ("dense", "model"):
            for key in [*content[part]]:
                if key.startswith(
                    ("aurc", "excess_aurc", "correctness", "coverage_at", "risk_cov", "mce", "debiased", "chosen")
                ):
                    del content[part][key]

    change("metrics.json", forget)(copy)
    text = write_report(copy).read_text()
    assert "Answering only what is certain" not in text and "AURC" not in text and "MCE, after" not in text
    assert text.count("<svg") == 4


def test_a_report_is_rebuilt_from_the_files_alone(finished, tmp_path):
    folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "report.html").unlink()
    assert write_report(copy).read_bytes() == (folder / "report.html").read_bytes()


def test_without_latency_or_baseline_the_table_shrinks(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    report = json.loads((copy / "metrics.json").read_text())
    del report["dense"]
    (copy / "metrics.json").write_text(json.dumps(report))
    (copy / "latency.json").unlink()
    page = Page(write_report(copy).read_text())
    assert page.cells[:3] == ["rigl", "accuracy", f"{report['model']['accuracy']:.4f}"]
    assert "difference" not in page.cells and "latency, ms" not in page.cells
    assert "dense baseline" not in " ".join(page.words)


def change(name, edit):
    def damage(folder):
        content = json.loads((folder / name).read_text())
        edit(content)
        (folder / name).write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "metrics.json").unlink(), r"metrics.json, which cannot be read"),
        (lambda f: (f / "metrics.json").write_text("{"), "metrics.json is damaged"),
        (lambda f: (f / "metrics.json").write_text("[]"), "metrics.json is not what a run of this version leaves"),
        (lambda f: (f / "metrics.json").write_bytes(b"\xff\xfe"), "metrics.json, which cannot be read .it is not text"),
        (
            change("metrics.json", lambda c: c["model"]["parity"].pop("tolerance")),
            "model.parity.tolerance: field required",
        ),
        (
            change("metrics.json", lambda c: c["model"].update(accuracy="0.9")),
            "model.accuracy: input should be a valid number",
        ),
        (
            change("metrics.json", lambda c: c.update(recipe_hash="0")),
            r"recipe.toml is not the recipe that metrics.json",
        ),
        (
            change("metrics.json", lambda c: c["model"]["risk_coverage"]["after"]["risk"].pop()),
            "model.risk_coverage.after: value error, .* values of coverage, but .* of risk",
        ),
        (change("metrics.json", lambda c: c["flips"].update(class_samples=[1])), "values that do not fit together"),
        (change("latency.json", lambda c: c.pop("noise")), "latency.json is not what .*noise: field required"),
        (change("latency.json", lambda c: c["timings"].pop()), "latency.json has no timing of 'model'"),
        (lambda f: (f / "recipe.toml").unlink(), "recipe.toml, which cannot be read"),
        (lambda f: (f / "dense" / "history.jsonl").unlink(), r"history.jsonl, which cannot be read"),
        (lambda f: (f / "history.jsonl").write_text("{"), "history.jsonl is damaged"),
        (lambda f: (f / "history.jsonl").write_text("3\n"), "history.jsonl is not what"),
        (lambda f: (f / "program.sparsify").unlink(), "program.sparsify: no program"),
        (lambda f: (f / "program.sparsify").write_text("torn"), "program.sparsify is not a saved program"),
    ],
)
def test_a_damaged_folder_is_said_and_the_old_report_kept(finished, tmp_path, damage, message):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    damage(copy)
    before = (copy / "report.html").read_bytes()
    with pytest.raises(ReportError, match=message):
        write_report(copy)
    assert (copy / "report.html").read_bytes() == before


def test_what_users_write_into_a_recipe_is_escaped(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    text = (copy / "recipe.toml").read_text() + "# <script>alert(1)</script>\n"
    (copy / "recipe.toml").write_text(text)
    change("metrics.json", lambda c: c.update(recipe_hash=hashlib.sha256(text.encode()).hexdigest()))(copy)
    change("metrics.json", lambda c: c["data"].update(name='<img src="x">'))(copy)
    page = write_report(copy).read_text()
    assert "<script" not in page and '<img src="x"' not in page and "&lt;script&gt;alert(1)" in page


def test_coverage_and_turnover_are_recorded_and_shown(finished, tmp_path):
    folder, report = finished
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    layers = {layer["name"]: layer for layer in report["model"]["layers"]}
    assert set(rows[0]["coverage"]) == set(rows[0]["turnover"]) == set(layers)
    for name, layer in layers.items():
        assert layer["coverage"] == rows[-1]["coverage"][name] >= rows[0]["coverage"][name]
        assert layer["active"] / layer["maskable"] <= layer["coverage"] <= 1
    # Rounds on steps 10 and 20 of 38 (epochs end on 19 and 38): 0.3 decayed over 28 steps is 0.215 and 0.057 of the active ones at most.
    assert 0 < rows[1]["turnover"]["8.weight"] < 0.057 < rows[0]["turnover"]["8.weight"] < 0.215
    whole = sum(layer["coverage"] * layer["maskable"] for layer in layers.values()) / report["model"]["maskable"]
    assert report["model"]["coverage"] == pytest.approx(whole) and report["dense"]["coverage"] is None
    words = " ".join(Page((folder / "report.html").read_text()).words)
    assert f"{report['model']['coverage']:.4f} of all maskable positions" in words and "Masks over time" in words
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    plain = [{k: v for k, v in row.items() if k not in {"coverage", "turnover"}} for row in rows]
    (copy / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    assert "Masks over time" not in write_report(copy).read_text()


def test_every_pass_is_told_in_the_order_it_was_applied(finished):
    _, report = finished
    names = [row["pass"].partition("{")[0] for row in report["model"]["passes"]]
    assert names[:3] == ["insert-masks", "insert-gradient-taps", "lower-masks"]
    assert names.index("attach-calibration-head") < names.index("fold-masks") < names.index("eliminate-dead-code")
    assert report["model"]["passes"][0]["changed"] == [row["name"] for row in report["model"]["layers"]]


def test_decisions_that_changed_add_up(finished):
    _, report = finished
    flips, samples = report["flips"], report["data"]["samples"]["test"]
    assert sum(flips["class_samples"]) == samples
    difference = report["model"]["accuracy"] - report["dense"]["accuracy"]
    assert (flips["gained"] - flips["lost"]) / samples == pytest.approx(difference)


def test_what_a_method_measured_of_itself_is_drawn(finished, tmp_path):
    folder, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert "What the method did" not in (folder / "report.html").read_text()
    rows = [json.loads(line) for line in (copy / "history.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        row["readings"] = {"coefficient": 0.1 + 0.25 * index}
    (copy / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(copy).read_text()
    assert "What the method did" in text and "coefficient ends at 0.3500" in text
    Page(text)


def test_the_schedule_is_recorded_and_shown_in_steps(finished, tmp_path):
    folder, report = finished[0], deepcopy(finished[1])
    model, steps = report["model"], report["model"]["counts"]["steps"]
    stop = round(0.75 * steps)
    last = (stop - 1) // 10 * 10
    durations = {"topology.stop_at": stop, "topology.dense_until": 0, "topology.update_every": 10}
    rounds = {"first_round": 10, "last_round": last, "rounds": last // 10}
    assert model["schedule"] == {"total_steps": steps, **durations, **rounds}
    assert report["dense"]["schedule"] == {"total_steps": steps, "rounds": 0}
    page = (folder / "report.html").read_text()
    table = page[page.index("schedule, in steps") :]
    for label, value in (("topology.update_every", 10), ("topology.stop_at", stop), ("last round", last)):
        assert f"<tr><td>{label}</td><td></td><td>{value}</td></tr>" in table
    copy = tmp_path / "copy"  # as an earlier version left it
    shutil.copytree(folder, copy)
    for part in ("model", "dense"):
        del report[part]["schedule"]
    (copy / "metrics.json").write_text(json.dumps({key: value for key, value in report.items() if key != "latency"}))
    assert "schedule, in steps" not in write_report(copy).read_text()


def test_what_training_saved_is_recorded_and_shown(finished, tmp_path):
    folder, report = finished
    model, dense, times = (
        report["model"]["savings"],
        report["dense"]["savings"],
        report["latency"]["training"]["model"],
    )
    assert model["macs"] == model["macs_dense"] == dense["macs"]  # unstructured masks save none
    assert model["bytes_dense"] == dense["bytes_peak"] and dense["bytes_peak"]["masks"] == 0
    assert model["steps"] == times["steps"] == 38 and times["milliseconds"] > 0
    assert times["reason"] or times["compared"]["ratio"] > 0
    assert report["latency"]["training"]["dense"]["reason"] == "no weight has a mask"
    words = " ".join(Page((folder / "report.html").read_text()).words)
    for sentence in savings_sentences(report, report["latency"]):
        assert sentence in words
    assert (
        "weights were stored compact by its end; a weight that is stored dense with a mask is multiplied whole" in words
    )
    assert savings_line(report, report["latency"]).startswith("Training: 1.00 of the multiply-accumulates")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "latency.json").unlink()
    write_report(copy)
    assert "Times of training steps were not measured." in (copy / "report.html").read_text()
