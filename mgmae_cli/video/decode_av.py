"""The `av` decoder: PyAV, decoding only what a clip needs.

Packets are read up to the clip's end (in large files: from the key frame before it); their timestamps, sorted, are the
frames in their order. Decoding starts at the last key frame before the clip. A packet that is neither wanted nor
referred to by others (a non-reference frame) is passed over by the decoder, which leaves the other frames as they are.

AVI and bare streams have no timestamps. Without B-frames the order of decoding stands in for them; with B-frames, and
where a video does not decode to what its packets promise, frames are counted as they come out, from the start.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from fractions import Fraction
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from mgmae_cli.errors import UnreadableClip
from mgmae_cli.video.reader import VideoEnded

_FAR_APART = 128  # frames between two wanted ones from which on they are read as two windows
_LARGE = 16 * 2**20  # bytes; reading the packets of smaller files from the start costs a few milliseconds at most
_WITHOUT_TIMES = {"avi", "h264", "hevc", "m4v", "mpegvideo", "vvc", "av1", "mjpeg"}  # by FFmpeg's names of formats


class AvReader:
    """Reads one file; see `mgmae_cli.video.reader.Reader`.

    `_find` says how frames are numbered: "packets" from the start of the file, "time" (number times mean rate gives
    the time of a window's first frame; the others follow it), or "frames" as they come out of the decoder.
    """

    library: ClassVar[str] = "av"

    def __init__(self, path: Path, threads: int) -> None:
        self._av: Any = import_module("av")
        self._av.logging.set_level(None)
        self._path, self._threads = path, threads
        self._to_rgb: Any = import_module("av.video.reformatter").VideoReformatter()
        self._open()
        timeless = self._container.format.name in _WITHOUT_TIMES
        self._time_of = "dts" if timeless else "pts"
        large = path.stat().st_size > _LARGE and bool(self._stream.average_rate)
        self._find: Literal["packets", "time", "frames"] = "time" if large else "packets"
        if timeless and self._codec.has_b_frames:
            self._find = "frames"
        self.total = self._claimed_length()

    def _open(self) -> None:
        try:
            self._container = self._av.open(str(self._path))
        except (self._av.error.FFmpegError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
            said = f"FFmpeg can't open it: damaged, encrypted, or not a video file ({reason})"
            raise UnreadableClip(str(self._path), said) from None
        if not self._container.streams.video:
            raise UnreadableClip(str(self._path), "no video in it")
        self._stream = self._container.streams.video[0]
        self._codec = self._stream.codec_context
        if self._codec is None:
            raise UnreadableClip(str(self._path), "FFmpeg has no decoder for its codec")
        self._codec.thread_count = self._threads
        self._untouched = True

    def _claimed_length(self) -> int:
        if self._stream.frames > 0:
            return int(self._stream.frames)
        duration = self._stream.duration and self._stream.duration * self._stream.time_base
        duration = duration or Fraction(self._container.duration or 0, 1_000_000)
        if self._find == "time" and duration:
            return max(int(duration * self._stream.average_rate), 1)
        return self._count_packets()

    def read(self, indices: Sequence[int]) -> Iterator[Any]:
        wanted = sorted(set(indices))
        if self._find == "frames":
            yield from self._read_from_start(wanted)
            return
        begin = 0
        for end in range(1, len(wanted) + 1):
            if end == len(wanted) or wanted[end] - wanted[end - 1] >= _FAR_APART:
                yield from self._read_window(wanted[begin:end])
                begin = end

    def counts_alike(self) -> bool:
        if self._find == "frames":
            return True
        self._rewind()
        packets = [packet for packet in self._demuxed() if self._time(packet) is not None and not packet.is_discard]
        times = sorted(self._time(packet) for packet in packets)
        if self._holds_hidden(times):  # noticed only by the windows that hold them
            return False
        if self._find == "packets":
            return True
        step = 1 / (self._stream.average_rate * self._stream.time_base)
        start = self._stream.start_time or 0
        return all(-step <= 2 * (time - start - number * step) < step for number, time in enumerate(times))

    def _read_window(self, wanted: Sequence[int]) -> Iterator[Any]:
        """Yield the frames `wanted`, which lie near one another."""
        packets, times = self._window(wanted[0], wanted[-1])
        if len(times) <= wanted[-1] - wanted[0]:
            self._find = "packets"
            raise VideoEnded(self._count_packets())
        if self._holds_hidden(times):
            self._find = "frames"
            yield from self._read_from_start(wanted)
            return
        ahead = [times[index - wanted[0]] for index in wanted]
        needed = set(ahead)
        keys = [n for n, packet in enumerate(packets) if packet.is_keyframe and self._time(packet) <= ahead[0]]
        if keys and keys[-1] > 0:
            self._prime(packets[0])
            packets = packets[keys[-1] :]
        for packet in [*packets, None]:
            if packet is not None:
                self._codec.skip_frame = "DEFAULT" if self._time(packet) in needed else "NONREF"
            frames = self._decoded(packet)
            for frame in frames or []:
                if ahead and self._time(frame) == ahead[0]:
                    yield self._image(frame)
                    del ahead[0]
            if not ahead:
                return
            if frames is None:
                break
        self._find = "frames"  # damaged, or packets that are never shown
        raise VideoEnded(self._count_frames())

    def _prime(self, first: Any) -> None:
        """Decode the file's first packet: it may set parameters that hold for the whole video, key frames included."""
        self._codec.skip_frame = "DEFAULT"
        self._decoded(first)
        self._codec.flush_buffers()

    def _holds_hidden(self, times: Sequence[int]) -> bool:
        """Return whether some packets may be VP8's or VP9's hidden frames: right beside another, in time."""
        if self._codec.name not in ("vp8", "vp9") or not self._stream.average_rate:
            return False
        least = 1 / (4 * self._stream.average_rate * self._stream.time_base)
        return any(after - before < least for before, after in pairwise(times))

    def _window(self, first: int, last: int) -> tuple[list[Any], list[int]]:
        """Return packets that hold frames `first` to `last` and what they need, and the times of frames from `first`.

        Fewer than `last - first + 1` times: the file ends before.
        """
        earliest: Fraction | None = None
        self._rewind()
        if self._find == "time":
            step = 1 / (self._stream.average_rate * self._stream.time_base)
            begin = (self._stream.start_time or 0) + first * step
            earliest = begin - step / 2
            self._prime(next(self._demuxed(), None))
            self._container.seek(int(begin), stream=self._stream, backward=True)
        packets: list[Any] = []
        times: list[int] = []
        at = first
        for packet in self._demuxed():
            time = self._time(packet)
            if time is None:
                continue
            if earliest is not None and not packets and not (packet.is_keyframe and time <= earliest + step):
                self._find = "packets"  # the seek went astray
                return self._window(first, last)
            packets.append(packet)
            if not packet.is_discard:
                insort(times, time)
            at = first if earliest is None else bisect_left(times, earliest)
            end = at + last - first
            # Nothing is decoded after it is shown, so no later packet is shown before this one's time of decoding.
            if len(times) > end and packet.dts is not None and times[end] <= packet.dts:
                break
        return packets, times[at:]

    def _read_from_start(self, wanted: Sequence[int]) -> Iterator[Any]:
        """Yield the frames `wanted`, counting all frames that come out of the decoder."""
        ahead = list(wanted)
        count = 0
        for frame in self._frames():
            if count == ahead[0]:
                yield self._image(frame)
                del ahead[0]
                if not ahead:
                    return
            count += 1
        if count == 0:
            raise UnreadableClip(str(self._path), f"no frame can be decoded (codec {self._codec.name})")
        raise VideoEnded(count)

    def _frames(self) -> Iterator[Any]:
        """Yield all frames from the start to the end, or to the first damage after a good frame."""
        self._rewind()
        started = False
        for packet in (*self._demuxed(), None):
            frames = self._decoded(packet)
            if frames is None and started:
                return
            started = started or bool(frames)
            yield from frames or []

    def _count_packets(self) -> int:
        self._rewind()
        return sum(not packet.is_discard for packet in self._demuxed())

    def _count_frames(self) -> int:
        count = sum(1 for _ in self._frames())
        if count == 0:
            raise UnreadableClip(str(self._path), f"no frame can be decoded (codec {self._codec.name})")
        return count

    def _rewind(self) -> None:
        """Go to the start of the file, with a fresh decoder. Opening again is surer than seeking."""
        if not self._untouched:
            self._container.close()
            self._open()

    def _time(self, packet_or_frame: Any) -> Any:
        return getattr(packet_or_frame, self._time_of)

    def _demuxed(self) -> Iterator[Any]:
        """Yield the stream's packets; damage ends it."""
        self._untouched = False
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:  # the last one is empty: it says that the file is over
                    yield packet
        except self._av.error.FFmpegError:
            return

    def _decoded(self, packet: Any) -> list[Any] | None:
        """Return the frames that a packet (None: the end) brings out of the decoder; None where it is damaged."""
        try:
            return list(self._codec.decode(packet))
        except self._av.error.FFmpegError:
            return None

    def _image(self, frame: Any) -> Any:
        rgb = self._to_rgb.reformat(frame, format="rgb24")
        plane = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: rgb.height, : rgb.width * 3]
        image = rows.reshape(rgb.height, rgb.width, 3)
        return np.rot90(image, k=round(frame.rotation / 90) % 4)
