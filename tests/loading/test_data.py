"""Every form of data, from real digits written to real files; what is wrong with one is said with where."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Dataset

from sparsify.errors import DataError, LoadError
from sparsify.loading import load_data
from sparsify.loading.arrays import channel_statistics
from sparsify.loading.datasets import DatasetSamples

pytestmark = pytest.mark.filterwarnings("ignore:all training images are grey")

DIGITS: Any = load_digits()
IMAGES = (DIGITS.images * 15.9375).astype(np.uint8)
LABELS = DIGITS.target


def rows(samples):
    return samples.batch(torch.arange(len(samples)))


def write_npz(path, **changes):
    arrays = {"x_train": IMAGES[:200], "y_train": LABELS[:200], "x_test": IMAGES[200:260], "y_test": LABELS[200:260]}
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})
    return str(path)


def write_folder(root, *, colour="L", size=8, parts=(("train", 0, 120), ("test", 120, 160))):
    for part, start, stop in parts:
        for index in range(start, stop):
            folder = root / part / f"digit-{LABELS[index]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(IMAGES[index]).convert(colour).resize((size, size)).save(folder / f"{index}.png")
    return str(root)


def encoded(images):
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    return np.frombuffer(b"".join(files), np.uint8), offsets


def test_digits_are_split_by_the_seed_and_normalised():
    data = load_data("digits", seed=0)
    assert (len(data.train), len(data.validation), len(data.test), data.classes) == (1221, 216, 360, 10)
    x, y = rows(data.train)
    whole = torch.cat([x, rows(data.validation)[0]])
    assert x.shape == (1221, 1, 8, 8) and y.dtype is torch.int64
    assert abs(float(whole.mean())) < 1e-4 and abs(float(whole.std(correction=0)) - 1) < 1e-4
    assert torch.bincount(data.validation.targets).min() >= 20, "stratified"
    again, other = load_data("digits", seed=0), load_data("digits", seed=1)
    assert again.fingerprint() == data.fingerprint() != other.fingerprint()


def test_statistics_in_pieces_equal_numpy():
    x = np.random.default_rng(0).integers(0, 256, (5000, 3, 2, 2), dtype=np.uint8)
    mean, std = channel_statistics(torch.from_numpy(x))
    np.testing.assert_allclose(mean.numpy(), (x / 255).mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std.numpy(), (x / 255).std(axis=(0, 2, 3)), rtol=1e-6)


def test_bytes_stay_bytes_in_memory(tmp_path):
    train: Any = load_data(write_npz(tmp_path / "d.npz"), seed=0).train
    assert train._base.inputs.dtype is torch.uint8


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (IMAGES, (1, 8, 8)),
        (IMAGES[..., None], (1, 8, 8)),
        (np.repeat(IMAGES[..., None], 3, axis=3), (3, 8, 8)),
        (np.repeat(IMAGES[:, None], 3, axis=1), (3, 8, 8)),
        (IMAGES.astype(np.float64) / 255, (1, 8, 8)),
        (IMAGES.reshape(-1, 64).astype(np.float32), (64,)),
    ],
    ids=["grey", "grey-last", "colour-last", "colour-first", "float", "features"],
)
def test_arrays_of_every_layout(tmp_path, x, shape):
    data = load_data(write_npz(tmp_path / "d.npz", x_train=x[:200], x_test=x[200:260]), seed=0)
    inputs, labels = data.test.batch(torch.tensor([3, 0]))
    assert inputs.shape == (2, *shape) and inputs.dtype is torch.float32
    assert labels.tolist() == [LABELS[203], LABELS[200]]


def test_a_validation_part_of_its_own_is_used(tmp_path):
    path = write_npz(tmp_path / "d.npz", x_validation=IMAGES[300:350], y_validation=LABELS[300:350])
    data = load_data(path, seed=0)
    assert len(data.train) == 200 and data.validation.targets.tolist() == LABELS[300:350].tolist()


def test_encoded_images_are_decoded_once_and_a_damaged_cache_is_rebuilt(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parts = {}
    for name, some in (("train", IMAGES[:60]), ("test", IMAGES[60:90])):
        parts[f"images_{name}"], parts[f"offsets_{name}"] = encoded(some)
    labels = {"y_train": LABELS[:60], "y_test": LABELS[60:90]}
    path = write_npz(tmp_path / "d.npz", x_train=None, x_test=None, **labels, **parts)
    first = load_data(path, seed=0)
    cached = sorted((tmp_path / "cache" / "sparsify").iterdir())
    assert len(cached) == 2
    test: Any = first.test
    np.testing.assert_array_equal(test.inputs[:, 0], IMAGES[60:90])
    whole = cached[0].read_bytes()
    cached[0].unlink()  # the first data still read the file that was there
    cached[0].write_bytes(whole[:-9])
    assert load_data(path, seed=0).fingerprint() == first.fingerprint()
    assert cached[0].read_bytes() == whole, "written again"
    monkeypatch.setenv("SPARSIFY_CACHE", "off")
    for file in cached:
        file.unlink()
    assert load_data(path, seed=0).fingerprint() == first.fingerprint()
    assert not list((tmp_path / "cache" / "sparsify").iterdir())


def test_a_folder_of_images(tmp_path):
    data = load_data(write_folder(tmp_path), seed=0)
    assert data.classes == 10 and len(data.test) == 40
    inputs, labels = data.test.batch(torch.arange(40))
    assert inputs.shape == (40, 1, 8, 8) and torch.bincount(labels).tolist() == np.bincount(LABELS[120:160]).tolist()
    whole = torch.cat([rows(data.train)[0], rows(data.validation)[0]])
    assert abs(float(whole.mean())) < 1e-3
    before, path = data.fingerprint(), sorted((tmp_path / "test" / "digit-0").iterdir())[0]
    Image.fromarray(IMAGES[int(path.stem)] // 2).save(path)
    assert load_data(str(tmp_path), seed=0).fingerprint() != before


@pytest.mark.parametrize("channels, planes", [("auto", 1), ("grey", 1), ("rgb", 3)])
def test_grey_images_stay_grey_unless_colour_is_asked_for(tmp_path, channels, planes):
    grey = load_data(write_folder(tmp_path / "l"), seed=0, channels=channels)
    assert grey.example(2).shape == (2, planes, 8, 8)
    colour = load_data(write_folder(tmp_path / "rgb", colour="RGB"), seed=0, channels=channels)
    assert colour.example(2).shape == (2, 1 if channels == "grey" else 3, 8, 8)


def test_one_image_with_colour_among_grey_ones_is_not_made_grey_unasked(tmp_path):
    folder = write_folder(tmp_path)
    path = sorted((tmp_path / "test" / "digit-0").iterdir())[0]
    Image.fromarray(IMAGES[int(path.stem)]).convert("RGB").save(path)
    with pytest.raises(DataError, match=r"has colour \(RGB\).*channels = rgb"):
        rows(load_data(folder, seed=0).test)
    assert rows(load_data(folder, seed=0, channels="grey").test)[0].shape == (40, 1, 8, 8)


def test_a_folder_with_validation_and_resizing(tmp_path):
    parts = (("train", 0, 100), ("val", 100, 140), ("test", 140, 180))
    data = load_data(write_folder(tmp_path, parts=parts, colour="RGB"), seed=0, image_size=12)
    assert len(data.train) == 100 and len(data.validation) == 40
    assert data.example(3).shape == (3, 3, 12, 12)


FOLDERS = {
    "no test": (lambda f: [p.unlink() for p in f.glob("test/*/*")] and None, "holds no images"),
    "sizes differ": (lambda f: Image.new("L", (9, 9)).save(f / "train" / "digit-0" / "0.png"), "Give image_size"),
    "torn image": (lambda f: (f / "train" / "digit-0" / "0.png").write_bytes(b"torn"), "0.png cannot be decoded"),
    "unknown class": (lambda f: (f / "test" / "cats").mkdir(), "class 'cats', which never occurs in training"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_bad_folders(tmp_path, name):
    damage, message = FOLDERS[name]
    damage_done = write_folder(tmp_path) and damage(tmp_path)
    del damage_done
    with pytest.raises(DataError, match=message):
        data = load_data(str(tmp_path), seed=0)
        for part in (data.train, data.validation):
            rows(part)


class Noisy(Dataset):
    """Digits with noise from every global generator a transform may use."""

    def __init__(self, start, stop):
        self.targets = LABELS[start:stop].tolist()
        self.images = torch.tensor(IMAGES[start:stop]).float()[:, None] / 255

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        noise = torch.rand(1) + random.random() + np.random.rand()
        return self.images[index] + noise, self.targets[index]


FACTORIES = """
import numpy as np, torch
from tests.loading.test_data import IMAGES, LABELS, Noisy
from torch.utils.data import DataLoader
def arrays(): return (IMAGES[:100], LABELS[:100]), (torch.tensor(IMAGES[100:150]), torch.tensor(LABELS[100:150]))
def mapping(): return {"train": Noisy(0, 100), "val": Noisy(100, 130), "test": Noisy(130, 160)}
def loaders(): return DataLoader(Noisy(0, 100), batch_size=7, shuffle=True), DataLoader(Noisy(100, 150))
def nothing(): return None
def single(): return (IMAGES[:100], LABELS[:100]),
def text(): return "train", "test"
def fails(): raise RuntimeError("no disk")
def stream():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(())
    return Stream(), Stream()
def other_label(): return (IMAGES[:100], LABELS[:100]), (IMAGES[:100], LABELS[:100] + 5)
"""


@pytest.fixture
def factories(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORIES)
    return lambda name: f"{tmp_path / 'mine.py'}:{name}"


@pytest.mark.parametrize(
    ("name", "sizes"), [("arrays", (85, 15, 50)), ("mapping", (100, 30, 30)), ("loaders", (85, 15, 50))]
)
def test_factories(factories, name, sizes):
    data = load_data(factories(name), seed=0)
    assert (len(data.train), len(data.validation), len(data.test)) == sizes and data.classes == 10
    inputs, labels = data.train.batch(torch.tensor([5, 2]), seed=3)
    assert inputs.shape == (2, 1, 8, 8) and labels.tolist() == data.train.targets[[5, 2]].tolist()
    assert torch.equal(inputs, data.train.batch(torch.tensor([5, 2]), seed=3)[0])


def test_what_is_random_in_a_dataset_follows_the_seed_and_leaves_the_global_generators_alone():
    samples = DatasetSamples(Noisy(0, 20), "noisy")
    states = random.getstate(), np.random.get_state(legacy=False), torch.random.get_rng_state()
    first, other = (samples.batch(torch.arange(4), seed=seed)[0] for seed in (0, 1))
    assert not torch.equal(first, other)
    assert random.getstate() == states[0]
    np.testing.assert_equal(np.random.get_state(legacy=False), states[1])
    assert torch.equal(torch.random.get_rng_state(), states[2])


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("nothing", DataError, r"should return \(train, test\)"),
        ("single", DataError, r"should return \(train, test\)"),
        ("text", DataError, "pair of arrays"),
        ("fails", LoadError, "RuntimeError: no disk"),
        ("stream", DataError, "cannot be read by index"),
        ("other_label", DataError, "label 14 never occurs in training"),
        ("absent", LoadError, "has no callable 'absent'"),
    ],
)
def test_bad_factories(factories, name, kind, message):
    with pytest.raises(kind, match=message):
        load_data(factories(name), seed=0)


def test_items_that_are_not_what_they_should_be():
    class Odd(Noisy):
        def __getitem__(self, index):
            return (torch.full((1, 8, 8), torch.nan), 1) if index == 3 else (torch.zeros(1, 8 + index // 5, 8), 1)

    samples = DatasetSamples(Odd(0, 20), "odd")
    with pytest.raises(DataError, match=r"input of sample 6 is \[1, 9, 8\], but that of sample 4 is \[1, 8, 8\]"):
        samples.batch(torch.tensor([4, 6]))
    with pytest.raises(DataError, match="sample 3 holds NaN"):
        samples.batch(torch.tensor([3]))
    with pytest.raises(DataError, match="is empty"):
        DatasetSamples(Noisy(0, 0), "none")


def test_a_loader_with_its_own_collate():
    loader = DataLoader(
        Noisy(0, 10),
        collate_fn=lambda items: (torch.stack([x for x, _ in items]) * 0, torch.tensor([y for _, y in items])),
    )
    samples = DatasetSamples(loader.dataset, "mine", collate=loader.collate_fn)
    assert not samples.batch(torch.arange(3))[0].any()
