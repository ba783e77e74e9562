"""Arrays that touch unmapped memory: one byte read or written too far is a segmentation fault.

Sanitizers do not see what masked vector loads and stores touch; the memory management unit does.
"""

import ctypes
import mmap
import os

import numpy as np

_PROT_NONE = 0
_PROT_READ = 1
_PROT_READ_WRITE = 3


def guarded(array, end, *, writable=False):
    """Copy an array into pages of its own, against an unmapped page.

    Parameters
    ----------
    array : ndarray
        Copied in C order.
    end : {"before", "after"}
        Where the unmapped page is: the copy's first byte is the first of its page, or the copy's
        last byte is the last of its page.
    writable : bool, optional
        Otherwise the pages are read-only too, and a write to them is a segmentation fault.

    Returns
    -------
    ndarray
        Frees its pages when it is garbage-collected.
    """
    page = mmap.PAGESIZE
    size = -(-max(array.nbytes, 1) // page) * page
    pages = mmap.mmap(-1, size + 2 * page)  # [unmapped][size bytes][unmapped]
    offset = page if end == "before" else page + size - array.nbytes
    copy = np.frombuffer(pages, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    _protect(address, page, _PROT_NONE)
    _protect(address + page, size, _PROT_READ_WRITE if writable else _PROT_READ)
    _protect(address + page + size, page, _PROT_NONE)
    copy.flags.writeable = writable
    return copy


def _protect(address, size, protection):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
