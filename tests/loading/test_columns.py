"""Columns as inputs and targets, on scikit-learn's tables and by hand: what is standardised, encoded, refused and told."""

from __future__ import annotations

import csv
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_linnerud, load_wine
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sparsify.errors import DataError, LoadWarning
from sparsify.loading import load_data
from sparsify.loading.columns import encode


def write(path, columns, *, delimiter=","):
    with path.open("w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
    return str(path)


def bunch(path, load, **changes):
    data = load()
    targets = data.target.reshape(len(data.target), -1)
    names = ["target"] if targets.shape[1] == 1 else data.target_names
    columns = dict(zip(map(str, data.feature_names), data.data.T.tolist(), strict=True))
    return write(path, {**columns, **dict(zip(names, targets.T.tolist(), strict=True)), **changes})


CITIES = {
    "age": [str(20 + i % 17) for i in range(60)],
    "city": [("Bern", "Oslo", "Rome")[i % 3] for i in range(60)],
    "bought": [("no", "yes")[i % 5 == 0] for i in range(60)],
}


def test_diabetes_is_standardised_on_the_training_part(tmp_path):
    path = bunch(tmp_path / "d.csv", load_diabetes)
    data = load_data(path, seed=0, target=["target"], test_holdout=0.2, task="regression")
    x, y = load_diabetes(return_X_y=True)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [301, 53, 88] and data.classes == 0
    mine = torch.cat([part.batch(torch.arange(len(part))).inputs for part in (data.train, data.validation)])
    assert mine.shape == (354, 10) and mine.dtype is torch.float32
    torch.testing.assert_close(mine.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(mine.std(0, correction=0), torch.ones(10), atol=1e-5, rtol=0)
    whole = torch.cat([data.train.targets, data.validation.targets, data.test.targets])
    assert sorted(whole.tolist()) == sorted(np.asarray(y).tolist()) and whole.dtype is torch.float32
    feature = data.preparation["features"][2]
    assert feature["column"] == "bmi" and feature["std"] == pytest.approx(np.asarray(x)[:, 2].std(), rel=0.1)
    assert data.preparation["target"] == ["target"] and (data.given_as, data.stored) == ("prepared", "table")


def test_the_same_test_rows_whatever_the_seed_and_another_table_is_another_fingerprint(tmp_path):
    path = bunch(tmp_path / "d.csv", load_diabetes)
    first, other = (
        load_data(path, seed=seed, target=["target"], test_holdout=0.2, task="regression") for seed in (0, 1)
    )
    assert first.test.fingerprint() == other.test.fingerprint() and first.fingerprint() != other.fingerprint()
    changed = bunch(tmp_path / "e.csv", load_diabetes, age=[0.5 * i for i in range(442)])
    assert (
        load_data(changed, seed=0, target=["target"], test_holdout=0.2, task="regression").fingerprint()
        != first.fingerprint()
    )


@pytest.mark.parametrize(("load", "classes"), [(load_breast_cancer, 2), (load_wine, 3)])
def test_whole_numbers_are_classes_if_they_start_at_0_or_the_task_says_so(tmp_path, load, classes):
    path = bunch(tmp_path / "d.csv", load)
    data = load_data(path, seed=0, target=["target"], test_holdout=0.2)
    assert data.classes == classes and data.class_names is None and data.test.targets.dtype is torch.int64
    shares = [torch.bincount(part.targets) / len(part) for part in (data.train, data.test)]
    torch.testing.assert_close(shares[0], shares[1], atol=0.03, rtol=0)
    later = [5 + 2 * int(y) for y in load().target]
    moved = bunch(tmp_path / "e.csv", load, target=later)
    named = load_data(moved, seed=0, target=["target"], test_holdout=0.2, task="classification")
    assert named.class_names == ("5", "7", "9")[:classes] and torch.equal(named.test.targets, data.test.targets)
    assert load_data(moved, seed=0, target=["target"], test_holdout=0.2).test.targets.min() == 5, "nothing is guessed"


def test_several_targets(tmp_path):
    path = bunch(tmp_path / "d.csv", load_linnerud)
    targets = ["Weight", "Waist", "Pulse"]
    data = load_data(path, seed=0, target=targets, test_holdout=0.2, holdout=0.2, task="regression")
    assert data.train.targets.shape[1:] == (3,) and data.train.targets.dtype is torch.float32
    assert data.class_names == ("Weight", "Waist", "Pulse") and data.example(2).shape == (2, 3)
    assert "classes" not in data.preparation
    labels = {"target": [i % 2 for i in range(60)], "other": [i % 3 // 2 for i in range(60)]}
    both = load_data(write(tmp_path / "e.csv", {**CITIES, **labels}), seed=0, target=[*labels], test_holdout=0.2)
    assert both.train.targets.dtype is torch.int64 and both.train.targets.unique().tolist() == [0, 1]


def test_categories_become_one_column_each_and_text_targets_classes(tmp_path):
    path = write(tmp_path / "d.csv", CITIES)
    data = load_data(path, seed=0, target=["bought"], test_holdout=0.2)
    assert data.class_names == ("no", "yes") and data.classes == 2
    x = data.test.batch(torch.arange(12)).inputs
    assert (
        x.shape == (12, 4) and torch.equal(x[:, 1:].sum(1), torch.ones(12)) and x[:, 1:].unique().tolist() == [0.0, 1.0]
    )
    assert data.preparation["features"][1] == {"column": "city", "categories": ["Bern", "Oslo", "Rome"]}
    assert data.preparation["classes"] == ["no", "yes"]
    binary = load_data(path, seed=0, target=["bought"], test_holdout=0.2, task="binary")
    assert int(binary.test.targets.sum()) == int(data.test.targets.sum()) == 2, "stratified"


def test_scikit_learn_prepares_the_columns_alike(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "row": range(200), "size": (rng.lognormal(3, 2, 200)).tolist(), "kind": rng.choice(["a", "b", "c d"], 200).tolist(),
        "price": rng.normal(size=200).tolist(),
    }  # fmt: skip
    path = write(tmp_path / "d.csv", columns)
    options: dict[str, Any] = {"seed": 0, "target": ["price"], "test_holdout": 0.25}
    data, plain = (load_data(path, normalise=normalise, **options) for normalise in (True, False))
    parts = [part for whole in (plain, data) for part in (whole.train, whole.validation, whole.test)]
    raw_train, raw_held, raw_test, *found = [part.batch(torch.arange(len(part))).inputs.numpy() for part in parts]
    numbers = np.array([columns["row"], columns["size"]]).T
    kinds = np.array(columns["kind"])[:, None]
    kept = np.concatenate([raw_train[:, 0], raw_held[:, 0]]).astype(int)
    scaler, encoder = StandardScaler().fit(numbers[kept]), OneHotEncoder(sparse_output=False).fit(kinds[kept])
    for raw, inputs in zip((raw_train, raw_held, raw_test), found, strict=True):
        rows = raw[:, 0].astype(int)
        wanted = np.hstack([scaler.transform(numbers[rows]), encoder.transform(kinds[rows])])
        np.testing.assert_allclose(inputs, wanted, rtol=1e-5, atol=1e-6)


def test_new_rows_are_encoded_as_the_training_rows_were(tmp_path):
    data = load_data(write(tmp_path / "d.csv", CITIES), seed=0, target=["bought"], test_holdout=0.2)
    kept = json.loads(json.dumps(data.preparation))
    rows = [dict(zip(CITIES, row, strict=True)) for row in zip(*CITIES.values(), strict=True)]
    every = encode(kept, rows)
    for part in (data.train, data.validation, data.test):
        for x in part.batch(torch.arange(len(part))).inputs.numpy():
            assert (every == x).all(1).any()
    assert encode(kept, [{"age": 30, "city": "Paris"}])[0, 1:].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(DataError, match="row 0 lacks the column 'city'"):
        encode(kept, [{"age": 1}])
    with pytest.raises(DataError, match="row 0, column 'age' should hold a number, found 'old'"):
        encode(kept, [{"age": "old", "city": "Bern"}])


def test_numbers_are_categories_where_asked_for_and_columns_are_left_out(tmp_path):
    path = write(tmp_path / "d.csv", {**CITIES, "floor": [i % 4 for i in range(60)], "id": range(60)})
    options: dict[str, Any] = {"target": ["bought"], "category_columns": ["floor"], "ignore_columns": ["id"]}
    data = load_data(path, seed=0, test_holdout=0.2, **options)
    assert [feature["column"] for feature in data.preparation["features"]] == ["age", "city", "floor"]
    assert data.example(2).shape == (2, 1 + 3 + 4) and data.preparation["ignored"] == ["id"]


def test_without_normalisation_numbers_are_as_they_are(tmp_path):
    data = load_data(write(tmp_path / "d.csv", CITIES), seed=0, target=["bought"], test_holdout=0.2, normalise=False)
    assert float(data.example(9)[:, 0].min()) >= 20 and data.preparation["features"][0]["mean"] == 0.0


def test_large_numbers_keep_their_differences(tmp_path):
    times = [1_700_000_000_000 + i for i in range(60)]
    data = load_data(write(tmp_path / "d.csv", {**CITIES, "at": times}), seed=0, target=["bought"], test_holdout=0.2)
    assert len(data.train.batch(torch.arange(len(data.train))).inputs[:, -1].unique()) == len(data.train)


def test_categories_of_test_rows_only_are_told_and_read_as_none(tmp_path):
    path = write(tmp_path / "d.csv", CITIES)
    seen = load_data(path, seed=0, target=["bought"], test_holdout=0.2)
    rows = [i for i in range(60) if float(20 + i % 17) in {
        round(float(v) * seen.preparation["features"][0]["std"] + seen.preparation["features"][0]["mean"])
        for v in seen.test.batch(torch.tensor([0])).inputs[:, 0]
    }]  # fmt: skip
    for row in rows:  # one of them is the test row
        cities = ["Lima" if i == row else city for i, city in enumerate(CITIES["city"])]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            data = load_data(
                write(tmp_path / "e.csv", {**CITIES, "city": cities}), seed=0, target=["bought"], test_holdout=0.2
            )
        if told:
            assert "1 of 12 test rows have a category of 'city' that no training row has ('Lima')" in str(
                told[0].message
            )
            assert sorted(data.test.batch(torch.arange(12)).inputs[:, 1:].sum(1).tolist())[0] == 0.0
            return
    pytest.fail("no row was a test row")


def test_columns_that_never_change_are_told_and_read_as_0(tmp_path):
    columns = {**CITIES, "year": ["2024"] * 60, "land": ["CH"] * 60}
    with pytest.warns(
        LoadWarning, match="columns with a single value in the training part are read as 0: 'year', 'land'"
    ):
        data = load_data(write(tmp_path / "d.csv", columns), seed=0, target=["bought"], test_holdout=0.2)
    assert not data.example(9)[:, -2:].any()
    assert encode(data.preparation, [{"age": 1, "city": "Bern", "year": 2030, "land": "CH"}])[0, -2:].tolist() == [0, 0]


def test_another_separator_is_told(tmp_path):
    with pytest.warns(LoadWarning, match="columns are separated by semicolons"):
        load_data(write(tmp_path / "d.csv", CITIES, delimiter=";"), seed=0, target=["bought"], test_holdout=0.2)


def changed(name, row, value):
    return {**CITIES, name: [value if i == row else text for i, text in enumerate(CITIES[name])]}


BAD = {
    "no target": (CITIES, {}, "is chosen as the target.*of its columns: 'age', 'city', 'bought'"),
    "absent target": (CITIES, {"target": ["price"]}, "has no column 'price', which target names"),
    "named twice": (CITIES, {"target": ["bought"], "ignore_columns": ["bought"]}, "target and ignore_columns both name column"),
    "empty number": (changed("age", 7, ""), {"target": ["bought"]}, "line 9, column 'age': the field is empty"),
    "empty text": (changed("city", 7, " "), {"target": ["bought"]}, "line 9, column 'city': the field is empty"),
    "nan": (changed("age", 0, "NaN"), {"target": ["bought"]}, "line 2, column 'age': 'NaN' is not a finite number"),
    "inf": (changed("age", 0, "-inf"), {"target": ["bought"]}, "'-inf' is not a finite number"),
    "NA": (changed("age", 3, "NA"), {"target": ["bought"]}, "line 5, column 'age': 'NA' is not a number, but other fields"),
    "? for a category": (changed("city", 3, "?"), {"target": ["bought"]}, r"line 5, column 'city': .* usually stands for a missing value"),
    "missing target": (changed("bought", 3, ""), {"target": ["bought"]}, "line 5, column 'bought': the field is empty"),
    "decimal comma": ({**CITIES, "age": [f"{i},5" for i in range(60)]}, {"target": ["bought"]}, "'0,5' has a decimal comma"),
    "names": ({**CITIES, "name": [f"n{i}" for i in range(60)]}, {"target": ["bought"]}, "'name' holds 48 different texts in 48 rows"),
    "one of a class": (changed("bought", 0, "maybe"), {"target": ["bought"]}, "class 0 has a single training sample"),
    "text for numbers": (CITIES, {"target": ["bought"], "task": "regression"}, "holds text, and the task 'regression' predicts numbers"),
    "text among several": (CITIES, {"target": ["bought", "age"]}, "holds text, and several columns are predicted as numbers"),
    "reals for classes": ({**CITIES, "age": [i / 7 for i in range(60)]},
        {"target": ["age"], "task": "classification"}, "line 3, column 'age': .* is not a class"),
    "nothing left": (CITIES, {"target": ["bought"], "ignore_columns": ["age", "city"]}, "no column left for inputs"),
    "statistics": (CITIES, {"target": ["bought"], "mean": [0.0], "std": [1.0]}, "a table prepares its inputs itself"),
    "image size": (CITIES, {"target": ["bought"], "image_size": 8}, "image_size is for folders"),
    "channels": (CITIES, {"target": ["bought"], "channels": "rgb"}, "channels is for folders"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_columns(tmp_path, name):
    columns, options, message = BAD[name]
    with pytest.raises(DataError, match=message):
        load_data(write(tmp_path / "d.csv", columns), seed=0, test_holdout=0.2, **options)


def test_a_table_without_a_test_part_and_columns_of_what_is_no_table(tmp_path):
    with pytest.raises(DataError, match=r"has no test part.*test_holdout = 0\.15"):
        load_data(write(tmp_path / "d.csv", CITIES), seed=0, target=["bought"])
    with pytest.raises(DataError, match="digits: target should name columns of a table, and this is none"):
        load_data("digits", seed=0, target=["bought"])


def test_inputs_beyond_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sparsify.loading.columns.free_memory", lambda: 60 * 8 * 2)
    with pytest.raises(DataError, match="4 inputs for each of 60 rows take 1,920 bytes, but only 960 are free"):
        load_data(write(tmp_path / "d.csv", CITIES), seed=0, target=["bought"], test_holdout=0.2)
