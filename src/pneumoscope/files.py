"""Write files whole or not at all, and never overwrite a folder by accident."""

from __future__ import annotations

import csv
import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pneumoscope.errors import UsageError
from pneumoscope.text import escape

# What a spreadsheet takes for a formula, perhaps after apostrophes that were there before; signed numbers are none.
_FORMULA = re.compile(r"'*(?:[=@\t\r\n＝＠＋－]|[+-](?!\d*\.?\d*(?:[eE][+-]?\d+)?$))")


def read_regular(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; a pipe or a device could block for ever, or never end.

    Raises:
        OSError: it is something else, is larger, or cannot be read; `strerror` says which.
    """
    # A pipe is opened without waiting for its writer (Windows has no such flag, and no such pipes in folders).
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(limit + 1) if status.st_size <= limit else b""
        if max(status.st_size, len(content)) > limit:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes; the limit is {limit:,}", str(path))
        return content


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file whole or not at all, even if the process is killed.

    Args:
        path: of the file.
        content: of it.
        private: whether nobody but its owner may ever read it.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        if path.exists() and not path.is_file():  # such as /dev/null, which must not be replaced
            path.write_bytes(content)
            return
        part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
        try:
            if private:
                os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as problem:
        raise _refuse(path, problem) from None


def cache_folder() -> Path:
    """`$PNEUMOSCOPE_CACHE`, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("PNEUMOSCOPE_CACHE") or platformdirs.user_cache_dir("pneumoscope"))


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write text as `write_bytes` does, in UTF-8; invalid bytes, which a path may contain, are written as escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), private=private)


def format_rows(rows: Iterable[Mapping[str, Any]], excel: bool = False, columns: Sequence[str] = ()) -> Iterator[str]:
    """Yield rows with equal keys as lines of CSV, after a header; None becomes an empty field.

    A spreadsheet takes text such as `=1+1` for a formula. It gets an apostrophe in front, which `parse_rows` removes;
    in the column `path` it gets `./`, which changes nothing for any reader.

    Args:
        rows: by column.
        excel: begin with a byte order mark, without which Excel does not read UTF-8.
        columns: those of the header, which then is there without rows, too; by default those of the first row.
    """
    lines = _Lines(["\ufeff"] if excel else [])
    writer = csv.writer(lines, lineterminator="\r\n")
    if columns:
        writer.writerow(map(_escape, columns))
    for row in rows:
        if not columns:
            columns = list(row)
            writer.writerow(map(_escape, columns))
        writer.writerow([_escape(row[name], name) for name in columns])
        yield "".join(lines)
        lines.clear()
    if columns and lines:
        yield "".join(lines)


def parse_rows(lines: Iterable[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """Read the header and the rows of CSV, also as `format_rows` writes them.

    Raises:
        csv.Error: it is damaged.
    """
    reader = csv.DictReader(lines)
    reader.fieldnames = columns = [unescape(name) for name in reader.fieldnames or ()]
    rows: list[dict[str, Any]] = [
        {name: unescape(cell) if name != "path" else cell for name, cell in row.items()} for row in reader
    ]
    return columns, rows


def _escape(cell: Any, column: str = "") -> Any:
    if not isinstance(cell, str) or not _FORMULA.match(cell):
        return cell
    if column == "path":
        return cell if cell.startswith("'") else f"./{cell}"
    return f"'{cell}"


def unescape(cell: Any) -> Any:
    """A cell as it was before `format_rows` made sure that it is no formula."""
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell) else cell


class _Lines(list[str]):
    """Collects rows of a CSV writer, which quotes a carriage return only if its line terminator contains one."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], excel: bool = False, columns: Sequence[str] = ()) -> None:
    """Write rows as a CSV file in UTF-8; see `format_rows`."""
    write_text(path, "".join(format_rows(rows, excel, columns)))


def relative_path(path: Path, folder: Path) -> str:
    """The way from a folder to a file, so that both can be moved together; absolute across drives."""
    return relative_paths([path], folder)[0]


def relative_paths(paths: Iterable[Path], folder: Path) -> list[str]:
    """The way from a folder to each file, as `relative_path` does it; every folder is resolved once."""
    start = folder.resolve()
    ways: dict[Path, Path] = {}
    found = []
    for path in paths:
        if (way := ways.get(path.parent)) is None:
            parent = path.parent.resolve()  # `..` out of a linked folder leads elsewhere
            try:
                way = Path(os.path.relpath(parent, start))
            except ValueError:
                way = parent
            ways[path.parent] = way
        found.append(Path(os.path.normpath(way / path.name)).as_posix())
    return found


def path_in_file(path: Path, folder: Path) -> str:
    """A path as it is written into a file in `folder`: relative to the folder, unless it was given as absolute.

    `folder / written` leads to it from any working directory.
    """
    return escape(path.as_posix() if path.is_absolute() else relative_path(path, folder))


def check_file(path: Path, overwrite: bool = False) -> None:
    """Refuse to overwrite a file, before any long computation.

    Raises:
        UsageError: the file exists.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: already exists. Choose another path, or pass `overwrite=True`.")


def check_folder(folder: Path, names: Sequence[str], overwrite: bool = False) -> None:
    """Refuse what `claim_folder` would refuse, before any long computation."""
    if not folder.exists() or (folder.is_dir() and all(map(_is_partial, folder.iterdir()))):
        return
    check_file(folder, overwrite)
    marker = names[0]
    if not (folder / marker).is_file():
        raise UsageError(f"{folder}: not an earlier output, because it has no {marker}. Choose another path.")
    for path in folder.iterdir():
        if path.name not in names and not _is_partial(path):
            raise UsageError(
                f"{folder}: contains {path.name}, which is not part of an earlier output. Choose another path."
            )


def claim_folder(folder: Path, names: Sequence[str], overwrite: bool = False) -> None:
    """Make an output folder, or empty an earlier one if `overwrite` allows it.

    `names` is everything that an output of this kind may contain; the first is always there. A folder that contains
    anything else is never emptied.

    Raises:
        UsageError: the folder is not empty, or cannot be made.
    """
    try:
        check_folder(folder, names, overwrite)
        if folder.exists() and not all(map(_is_partial, folder.iterdir())):
            # Emptied, not removed, as it may be a mount or a link. The marker goes last, so that the folder is still
            # recognised after an interruption.
            for path in sorted(folder.iterdir(), key=lambda path: path.name == names[0]):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise _refuse(folder, problem) from None


@contextmanager
def lock_folder(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Make a folder and lock it against other processes that do the same, where the file system can.

    After an error, a folder that was made and is still empty is removed. `patience`: seconds to
    wait for another process.

    Raises:
        UsageError: another process has locked it, or it cannot be made.
    """
    made = not folder.exists()
    try:
        with suppress(FileExistsError):  # of a file, which `claim_folder` refuses
            folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as problem:
        raise _refuse(folder, problem) from None
    try:
        end = time.monotonic() + patience
        while True:
            try:
                _lock(handle, folder)
                break
            except UsageError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.1)
        yield
    except BaseException:
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # on Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = not os.path.samestat(os.fstat(handle), folder.stat())  # perhaps removed and made again meanwhile
    except (BlockingIOError, FileNotFoundError):
        taken = True
    except OSError:  # such as on some network drives
        return
    if taken:
        raise UsageError(
            f"{folder}: another process is writing into this folder. Wait until it has ended, or choose another path."
        )


def _refuse(path: Path, problem: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be written: {problem.strerror or problem}. Choose another path.")


def remove_partial(folder: Path) -> None:
    """Remove what `write_bytes` left in a folder, and below it, when its process was killed; lock the folder first."""
    for path in folder.rglob(".*.part"):
        with suppress(OSError):  # it is in nobody's way
            path.unlink()


def _is_partial(path: Path) -> bool:
    """Whether `write_bytes` left this file when its process was killed."""
    return path.name.startswith(".") and path.name.endswith(".part")
