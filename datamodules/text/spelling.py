"""`spell`: code points to char ids in one pass, bytes where the inventory lacks a character."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onn_lightning.compiled import kernel


@kernel
def spell(
    code_points: npt.NDArray[np.uint32],
    id_of_code_point: npt.NDArray[np.int32],
    byte_ids: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
) -> int:
    """Write the ids of a text.

    Args:
        code_points: of the text, none a surrogate.
        id_of_code_point: -1 where there is none.
        byte_ids: [256] of the bytes.
        ids: written, as far as it reaches.
    Returns:
        Number of ids that the text has; where it is more than `ids` holds, call again with so many.
    """
    num_tokens = 0
    for place in range(len(code_points)):
        code = np.int64(code_points[place])
        char_id = id_of_code_point[np.uint64(code)]
        if char_id >= 0:
            if num_tokens < len(ids):
                ids[np.uint64(num_tokens)] = char_id
            num_tokens += 1
            continue
        num_bytes = 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)
        for index in range(num_bytes):
            if index:
                byte = 0x80 | (code >> 6 * (num_bytes - 1 - index)) & 0x3F
            elif num_bytes == 1:
                byte = code
            else:
                byte = (0xF00 >> num_bytes) & 0xFF | code >> 6 * (num_bytes - 1)
            if num_tokens < len(ids):
                ids[num_tokens] = byte_ids[byte]
            num_tokens += 1
    return num_tokens
