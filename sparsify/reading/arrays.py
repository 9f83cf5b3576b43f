"""Reads the arrays of an .npz file, and checks those that are inputs."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparsify.errors import DataError
from sparsify.reading.images import Progress, decode_all
from sparsify.reading.pixels import Channels

Arrays = dict[str, np.ndarray]
PARTS = ("train", "validation", "test")
PIECE = 4096


def read_npz(
    path: Path, *, size: int | None = None, channels: Channels = "auto", on_progress: Progress | None = None
) -> Arrays:
    """Return the arrays of a file by name, with encoded images decoded.

    Args:
        path: path of the file.
        size: side in pixels to which encoded images are resized.
        channels: how to read encoded images: ``rgb``, ``grey``, or ``auto``, which follows the training images.
        on_progress: called while images are decoded; see `decode_all`.

    Raises:
        DataError: If the file is missing, is not an .npz, is pickled, or lacks arrays.
    """
    arrays = _arrays_of(path)
    encoded = [key for key in arrays if key.startswith("images_") and f"offsets_{key[7:]}" in arrays]
    for key in sorted(encoded, key=_order):
        blob, offsets = arrays.pop(key), arrays.pop(f"offsets_{key[7:]}")
        images = decode_all(blob, offsets, f"{path}, {key}", size=size, channels=channels, on_progress=on_progress)
        if images.shape[1] == 3:
            channels = "rgb"  # read grey images of other parts with three channels too, as the training part
        arrays[f"x_{key[7:]}"] = images
    if size is not None and not encoded:
        raise DataError(f"{path} holds no encoded images to resize. Leave image_size out.")
    wanted = [f"{kind}_{part}" for part in PARTS for kind in "xy" if part == "train" or _names_part(arrays, part)]
    missing = [name for name in wanted if under(arrays, name) is None]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(arrays)) or 'nothing'}.")
    return arrays


def _arrays_of(path: Path, keep: Callable[[str], bool] | None = None) -> Arrays:
    """Return the arrays of a file whose names are kept, with errors that say what to do.

    Raises:
        DataError: If the file is missing, is not an .npz, or is pickled.
    """
    if not path.is_file():
        raise DataError(
            f"there is no data file {path}. Give 'digits', an .npz or .csv file, a folder of images, or file.py:factory."
        )
    if not zipfile.is_zipfile(path):
        raise DataError(
            f"{path} cannot be read as .npz: it is not a zip archive of arrays. Give 'digits', an .npz that numpy.savez wrote, a folder of "
            f"images, a table whose name ends in .csv, or file.py:factory, a function of yours that reads the file and returns its arrays."
        )
    try:
        return read_arrays(path, keep)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as .npz without unpickling ({type(error).__name__}: {error}). "
            f"Save plain arrays with numpy.savez."
        ) from error


def read_part(
    path: Path,
    part: str,
    *,
    size: int | None = None,
    channels: Channels = "auto",
    on_progress: Progress | None = None,
) -> Arrays:
    """Return the arrays of one part, ``x_<part>`` and ``y_<part>``, and ``class_names`` if there are some; other arrays are not read.

    Args:
        path: path of the file.
        part: ``train``, ``validation`` or ``test``.
        size: as for `read_npz`.
        channels: as for `read_npz`, but ``auto`` follows the images of this part.
        on_progress: as for `read_npz`.

    Raises:
        DataError: As for `read_npz`, or if the part is missing or has several inputs.
    """
    arrays = _arrays_of(path, lambda name: name.endswith(f"_{part}") or f"_{part}." in name or name == "class_names")
    blob, offsets = arrays.pop(f"images_{part}", None), arrays.pop(f"offsets_{part}", None)
    if blob is not None and offsets is not None:
        where = f"{path}, images_{part}"
        arrays[f"x_{part}"] = decode_all(blob, offsets, where, size=size, channels=channels, on_progress=on_progress)
    elif size is not None:
        raise DataError(f"{path} holds no encoded images of the part {part!r} to resize. Leave image_size out.")
    if several := [name for name in arrays if "." in name]:
        raise DataError(
            f"{path} holds {several[0]}, one of several inputs or targets. Give one array x_{part} and one y_{part}."
        )
    if missing := [name for name in (f"x_{part}", f"y_{part}") if name not in arrays]:
        raise DataError(f"{path} lacks {' and '.join(missing)}. It holds {', '.join(names_in(path)) or 'nothing'}.")
    return arrays


def names_in(path: Path) -> list[str]:
    """Return the names of the arrays of an .npz file, sorted."""
    with zipfile.ZipFile(path) as archive:
        return sorted(name.removesuffix(".npy") for name in archive.namelist())


def read_arrays(path: Path, keep: Callable[[str], bool] | None = None) -> Arrays:
    """Return the arrays of an .npz file by name; ``keep`` says which by their names, None: all.

    Raises:
        DataError: If the unpacked arrays would take more memory than is free, or an entry is not an array.
    """
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if keep is None or keep(entry.filename.removesuffix(".npy"))]
        size = sum(entry.file_size for entry in entries)
    if size > free_memory():
        raise DataError(
            f"{path} needs {size:,} bytes of memory when unpacked ({path.stat().st_size:,} on disk), but only {free_memory():,} are free. "
            f"Save fewer samples, or read the data in a Dataset of your own, with file.py:factory."
        )
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        held = {name: archive[name] for name in archive.files if keep is None or keep(name)}
    strange = [name for name, value in held.items() if not isinstance(value, np.ndarray)]
    if strange:
        raise DataError(f"{path} holds {strange[0]!r}, which is not an array. Save plain arrays with numpy.savez.")
    return held


def free_memory() -> int:
    """Return the free memory of the machine in bytes; 2**62 if it is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 2**62


def encoded_inputs(path: Path) -> set[str]:
    """Return the names of those inputs of an .npz file that are encoded images; the name of a single input is empty."""
    with np.load(path, allow_pickle=False) as archive:
        return {name.partition(".")[2] for name in archive.files if name.partition(".")[0] == "images_train"}


def stored_layout(x: np.ndarray) -> Literal["NF", "NHW", "NHWC", "NCHW"]:
    """Return the layout of arrays of features [N, F] or images, as `samples_of_arrays` reads them."""
    if x.ndim == 2:
        return "NF"
    if x.ndim == 3:
        return "NHW"
    return "NHWC" if _arranged(x) is not x else "NCHW"


def _order(key: str) -> int:
    """Return the position of an array's part in `PARTS`."""
    return next((place for place, part in enumerate(PARTS) if part in key), len(PARTS))


def _names_part(arrays: Arrays, part: str) -> bool:
    return any(name.partition(".")[0].endswith(f"_{part}") for name in arrays)


def under(arrays: Mapping[str, Any], name: str) -> Any:
    """Return the array of a name, or the arrays ``name.<key>`` by key; None if there are none.

    Raises:
        DataError: If both exist, or a key is not an identifier.
    """
    parts = {key.partition(".")[2]: value for key, value in arrays.items() if key.startswith(f"{name}.")}
    if name in arrays and parts:
        raise DataError(
            f"the data contain both {name} and {name}.{next(iter(parts))}. Give either a single array {name}, or only named arrays."
        )
    if strange := [key for key in parts if not key.isidentifier()]:
        raise DataError(f"{name}.{strange[0]} should end in the name of an argument of forward, found {strange[0]!r}.")
    return arrays.get(name) if name in arrays else parts or None


def checked_array(text: str, name: str, values: Any, as_images: bool) -> np.ndarray:
    """Check one array of inputs and arrange it: bytes stay bytes, other numbers become float32, or int64 if they are no images.

    Args:
        text: name of the data, for messages.
        name: name of the array.
        values: the array.
        as_images: arrange [N, H, W] and [N, H, W, C] as [N, C, H, W], and refuse other shapes. If False, only bytes are arranged.

    Raises:
        DataError: If it has the wrong shape or type, or contains values that are not allowed.
    """
    where, x = f"{text}: {name}", np.asarray(values)
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"{where} is empty. Give at least a few samples per class.")
    if not (np.issubdtype(x.dtype, np.number) or x.dtype == np.bool_) or np.issubdtype(x.dtype, np.complexfloating):
        raise DataError(f"{where} has dtype {x.dtype}; inputs should be numbers, preferably uint8 images or float32.")
    if np.issubdtype(x.dtype, np.floating):
        for start in range(0, len(x), PIECE):
            bad = ~np.isfinite(x[start : start + PIECE])
            if bad.any():
                at = np.unravel_index(int(bad.argmax()), bad.shape)
                index = ", ".join(str(int(i)) for i in (at[0] + start, *at[1:]))
                raise DataError(
                    f"{where} holds NaN or infinity, first in sample {at[0] + start}: {name}[{index}] is {x[start:][at]}. Clean the data."
                )
    if x.dtype == np.uint8 or (x.dtype == np.bool_ and not as_images):
        values = x
    elif as_images or not np.issubdtype(x.dtype, np.integer):
        with np.errstate(over="ignore"):
            values = x.astype(np.float32, copy=False)
        if x.dtype.itemsize > 4 and not np.isfinite(values).all():
            at = int((~np.isfinite(values)).reshape(len(values), -1).any(1).argmax())
            raise DataError(
                f"{where} holds numbers beyond float32 (3.4e38), first in sample {at}: {np.abs(x[at]).max():g} would become infinity. "
                f"Scale or clean the data."
            )
    else:
        values = x.astype(np.int64, copy=False)
    if as_images or x.dtype == np.uint8:
        values = _arranged(values)
    if as_images and (values.ndim not in {2, 4} or (x.dtype == np.uint8 and values.ndim != 4)):
        raise DataError(
            f"{where} has shape {list(x.shape)}; images are [N, H, W], [N, H, W, C] or [N, C, H, W], features float [N, F]. "
            f"For other inputs, use file.py:factory."
        )
    return np.require(values, requirements=["C", "W"])


def _arranged(x: np.ndarray) -> np.ndarray:
    """Arrange [N, H, W] and [N, H, W, C] as [N, C, H, W]; other shapes stay unchanged."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        return x.transpose(0, 3, 1, 2)
    return x
