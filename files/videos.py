"""Videos as H.264 in mp4 files, by PyAV."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from files.whole import write_atomic


def write_mp4(path: Path, frames: NDArray[np.uint8], fps: int, bit_rate: int) -> None:
    """Frames uint8 [T, H, W, 3], H and W even, as yuv420p at about `bit_rate` bits a second.

    Whatever happens in between, `path` is not there before it is whole.
    """
    write_atomic(path, lambda part: _encode(part, frames, fps, bit_rate))


def _encode(path: Path, frames: NDArray[np.uint8], fps: int, bit_rate: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, bit_rate=bit_rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


class Video(NamedTuple):
    """Frames uint8 [T, H, W, 3] and frames a second."""

    frames: NDArray[np.uint8]
    fps: float


def read_mp4(path: Path) -> Video:
    """Raises ValueError if it is no whole video."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error}): sample it again") from None
    if not frames:
        raise ValueError(f"{path} has no frames: sample it again")
    return Video(np.stack(frames), rate)


def film_strip(path: Path, count: int) -> NDArray[np.uint8]:
    """`count` evenly spaced frames of a video side by side, uint8 [H, count * W, 3]."""
    frames = read_mp4(path).frames
    rows = np.linspace(0, len(frames) - 1, count).round().astype(int)
    return np.concatenate(list(frames[rows]), axis=1)


def middle_frame(path: Path) -> NDArray[np.uint8]:
    frames = read_mp4(path).frames
    return frames[len(frames) // 2]
