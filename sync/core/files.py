"""Bytes reach disk here, and only so: write beside, fsync, rename, fsync the folder. (The code is one room down, all use it.)"""

from model_formats.core.files import atomic_file, atomic_write, fsync_dir

__all__ = ["atomic_file", "atomic_write", "fsync_dir"]
