"""Remember which images decoded completely, so that no later check decodes them again.

An image is identified by its bytes: a file that has changed is decoded again. So a trial can start
on 83,000 rows that its study has checked without decoding any of them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL

from chip_core.data.files import get_cache_folder
from chip_core.data.image_files import READER_VERSION, ImageReader
from chip_core.data.rows import ImageRef
from chip_core.utils.errors import UserError
from chip_core.utils.files import write_bytes

Size = tuple[int, int]  # width and height, in pixels

_DIGEST = 16  # bytes; two of 10^9 images share one with a probability of 10^-21
_ROW = np.dtype([("digest", f"V{_DIGEST}"), ("size", "<u4", 2)])


class VerifiedImages:
    """The sizes of images that decoded completely, by content.

    Threads may share it.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        """Load what earlier checks of a data source left in the cache folder.

        Args:
            files: the files of the source.
        """
        # Another version of Pillow, or other rules of ours, may refuse an image.
        key = "\n".join(
            [str(READER_VERSION), PIL.__version__, *(str(file.absolute()) for file in files)]
        )
        name = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._file = get_cache_folder() / "images" / f"{name}.npy"
        self._sizes: dict[bytes, Size] = {}
        with suppress(OSError, ValueError, EOFError):  # else they are decoded again
            for digest, (width, height) in np.load(self._file).astype(_ROW).tolist():
                self._sizes[digest] = (width, height)
        self._saved = len(self._sizes)

    def size(self, reader: ImageReader, ref: ImageRef) -> Size:
        """Return an image's size, as `ImageReader.size` does. A known image is not decoded.

        Raises:
            RowError: there is no image, or it is broken, too large or outside the folder.
        """
        content = reader.content(ref)
        digest = hashlib.blake2b(content, digest_size=_DIGEST).digest()
        size = self._sizes.get(digest)
        if size is None:
            size = self._sizes[digest] = reader.size(ImageRef(data=content))
        return size

    def save(self) -> None:
        """Write the sizes to the cache folder, if there are new ones.

        Nothing is raised if they cannot be written: the next check decodes the images again.
        """
        if len(self._sizes) == self._saved:
            return
        out = io.BytesIO()
        np.save(out, np.array(list(self._sizes.items()), dtype=_ROW))
        with suppress(OSError, UserError):
            write_bytes(self._file, out.getvalue())
            self._saved = len(self._sizes)
