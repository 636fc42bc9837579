"""One run of ffmpeg: how it is started, how its log is read, and whose fault a complaint in it is.

Belongs here: the process and its log. What ffmpeg is asked to do (`media`) does not.
"""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Thread
from typing import IO, Any, Self

import ffmpeg
import imageio_ffmpeg

from pipelines.common.errors import DataError, SetupError
from pipelines.common.orphans import bound_to_caller

_LINE = re.compile(r"((?:\[[^\]]+ @ 0x[0-9a-f]+\] )*)\[(\w+)\] (.*)")  # who speaks, how bad, what
_DECODED = re.compile(r"Input stream .* (\d+) frames decoded; \d+ decode errors")
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)  # nobody else sends these
_NO_MEMORY = "Cannot allocate memory"
_WRITING = re.compile(r"\[(out#|vost#|fc#|vf#|enc:|libx264)|opening output|No space left")


@cache
def ffmpeg_exe() -> str:
    """Path of the ffmpeg that came with the packages. SetupError where there is none for this machine."""
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise SetupError(str(error), cure="Install imageio-ffmpeg again: its wheel holds ffmpeg.") from None


def file_input(**options: Any) -> Any:
    """The ffmpeg-python input for `FfmpegProcess(…, source)`, with its own times.

    The file comes as an open descriptor and no other protocol is allowed, so that a playlist in the guise of a video
    makes ffmpeg open neither another file nor an address.
    """
    return ffmpeg.input("fd:", protocol_whitelist="fd", copyts=None, **options)


class FfmpegProcess:
    """A running ffmpeg, for a `with` block: reads `source` and prints `lines` or bytes to `read`, or without a source
    takes bytes by `stdin`.

    The log is read while it runs, so that a long one neither stops ffmpeg nor fills memory. Leaving the block waits
    for the end; leaving it with an error kills ffmpeg. DataError for a source that is missing or empty.
    """

    def __init__(self, output: Any, source: Path | None = None) -> None:
        quiet = ("-nostdin", "-nostats", "-hide_banner", "-loglevel", "repeat+level+verbose")
        # slices of a picture this small cost more than they save; decoding, scaling and coding run side by side anyway
        output = output.global_args(*quiet, "-filter_complex_threads", "1")
        self._command = bound_to_caller(output.compile(cmd=ffmpeg_exe(), overwrite_output=True))
        self._source = source
        self.first_complaint: str | None = None
        self.frames_decoded = 0  # of the source, known after the end
        self._writing_failed = False

    def __enter__(self) -> Self:
        read, write = subprocess.PIPE, subprocess.DEVNULL
        given = _open(self._source) if self._source else read
        try:
            self._popen = subprocess.Popen(
                self._command, stdin=given, stdout=read if self._source else write, stderr=subprocess.PIPE
            )
        finally:
            if not isinstance(given, int):
                given.close()
        self._listener = Thread(target=self._listen, args=(self._popen.stderr,), daemon=True)
        self._listener.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            self._popen.kill()
        self.wait()

    @property
    def stdin(self) -> IO[bytes]:
        assert self._popen.stdin is not None
        return self._popen.stdin

    def lines(self) -> Iterator[str]:
        """What ffmpeg prints, line by line as it comes."""
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            yield line.decode()

    def read(self, size: int) -> bytes:
        """So many bytes of what ffmpeg prints, or as many as there are until its end."""
        assert self._popen.stdout is not None
        return self._popen.stdout.read(size)

    def wait(self) -> None:
        """Waits for the end; after it, `first_complaint` and `frames_decoded` are complete."""
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # ffmpeg ended before it took the last bytes; its log says why
                    stream.close()
        self._popen.wait()
        self._listener.join()
        if self._popen.stderr is not None:
            self._popen.stderr.close()

    def check_written(self, target: Path) -> None:
        """After the end: SetupError where ffmpeg was killed or could not write `target`.

        DataError where it crashed on its source, or did not get the memory that it asked for: a limit was set on what
        one file may take.
        """
        code = self._popen.returncode
        if _NO_MEMORY in (self.first_complaint or ""):
            raise DataError(
                "it takes more memory to read than one file may take", file=self._source, cure="Scale it down."
            )
        if -code in _CRASHES and self._source:
            raise DataError(f"ffmpeg crashed on it (signal {-code})", file=self._source, cure="Leave it out.")
        if code < 0:
            cure = "Free memory, or see who ended it; then run again."
            raise SetupError(f"ffmpeg was ended by signal {-code}", file=target, cure=cure)
        if self._writing_failed or (code and not self.first_complaint):
            what = f"ffmpeg cannot write ({self.first_complaint or f'exit code {code}'})"
            raise SetupError(what, file=target, cure="Free disk space, or mend the encoding settings.")

    def _listen(self, log: IO[bytes]) -> None:
        for raw in log:
            line = raw.decode(errors="replace").rstrip()
            if decoded := _DECODED.search(line):
                self.frames_decoded = int(decoded[1])
            elif self.first_complaint is None and (said := _LINE.fullmatch(line)):
                speaker, level, text = said.groups()
                # a decoder only warns of a frame that it patched up; such a frame is not what was recorded
                if level in ("error", "fatal", "panic") or "corrupt" in text:
                    self.first_complaint = text.rstrip(".")
                    self._writing_failed = bool(_WRITING.search(speaker + text))


def _open(path: Path) -> IO[bytes]:
    try:
        source = path.open("rb")
    except OSError as error:
        what = f"the file cannot be opened ({error.strerror})"
        raise DataError(what, file=path, cure="Put the video there, or leave it out.") from None
    if path.stat().st_size == 0:
        source.close()
        raise DataError("the file is empty", file=path, cure="Copy the video there again.")
    return source
