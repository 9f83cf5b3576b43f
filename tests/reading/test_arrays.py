"""One part of an archive is read without the others."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.errors import DataError
from sparsify.reading import arrays
from sparsify.reading.arrays import read_arrays, read_part
from tests.loading.test_data import IMAGES, LABELS, encoded


def test_only_the_part_is_read(tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    np.savez(path, x_train=np.zeros(10**6), x_test=IMAGES[:5], y_test=LABELS[:5], class_names=["a", "b"])
    monkeypatch.setattr(arrays, "free_memory", lambda: 10**6)
    assert sorted(read_part(path, "test")) == ["class_names", "x_test", "y_test"]
    with pytest.raises(DataError, match="bytes of memory when unpacked"):
        read_arrays(path)


def test_encoded_images_of_a_part(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIFY_CACHE", "off")
    blob, offsets = encoded(IMAGES[:5])
    np.savez(tmp_path / "d.npz", images_test=blob, offsets_test=offsets, y_test=LABELS[:5])
    grey = read_part(tmp_path / "d.npz", "test", channels="grey")["x_test"]
    assert grey.shape == (5, 1, 8, 8) and (grey[:, 0] == IMAGES[:5]).all()
    assert read_part(tmp_path / "d.npz", "test", channels="rgb", size=4)["x_test"].shape == (5, 3, 4, 4)
    with pytest.raises(DataError, match=r"lacks x_train and y_train\. It holds images_test, offsets_test, y_test"):
        read_part(tmp_path / "d.npz", "train")


def test_what_is_no_part(tmp_path):
    np.savez(tmp_path / "d.npz", x_test=IMAGES[:5], y_test=LABELS[:5])
    with pytest.raises(DataError, match="no encoded images of the part 'test' to resize"):
        read_part(tmp_path / "d.npz", "test", size=4)
    np.savez(tmp_path / "e.npz", **{"x_test.a": IMAGES[:5], "y_test": LABELS[:5]})
    with pytest.raises(DataError, match="one of several inputs or targets"):
        read_part(tmp_path / "e.npz", "test")
    (tmp_path / "f.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="not a zip archive"):
        read_part(tmp_path / "f.npz", "test")
