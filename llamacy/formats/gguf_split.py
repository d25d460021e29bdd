"""Models in several GGUF files, `name-00001-of-00003.gguf`, opened as one.

Source: llama.cpp's gguf-split. Every part is a GGUF file of its own with `split.no` (from 0) and `split.count`; the
first one holds the metadata, `split.tensors.count` is the number of tensors in all.
"""

import os
import re
from dataclasses import replace

from llamacy.errors import shown
from llamacy.formats.gguf import MAGIC, read_gguf
from llamacy.formats.gguf_writer import write_gguf_to
from llamacy.formats.layout import ModelFile
from llamacy.formats.mapped import MappedFile
from llamacy.formats.together import replaced_together

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def join_parts(source, count, use_mmap):
    """Return one ModelFile of all `count` parts; `source` is the open MappedFile of any of them."""
    match = _NAME.fullmatch(source.path)
    if match is None or int(match[3]) != count:
        what = f"is one of {count} parts, wanted a name that ends in -00001-of-{count:05}.gguf"
        raise source.error(what, "give the parts their old names")
    parts, sources, tensors = [], [], {}
    for index in range(count):
        part_source = _open(source, f"{match[1]}-{index + 1:05}-of-{match[3]}.gguf", use_mmap)
        part = read_gguf(part_source)
        if part.metadata.get("split.no") != index or part.metadata.get("split.count") != count:
            told = f"{shown(part.metadata.get('split.no'))} of {shown(part.metadata.get('split.count'))}"
            raise part_source.error(
                f"says it is part {told}, wanted {index} of {count}", "give the parts their old names"
            )
        for info in part.tensors.values():
            if info.name in tensors:
                raise part_source.error(f"tensor {shown(info.name)} stands in two parts", "download the parts again")
            tensors[info.name] = replace(info, part=index)
        parts.append(part)
        sources.append(part_source)
    wanted = parts[0].metadata.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        what = f"the parts hold {len(tensors)} tensors, the first says {shown(wanted)}"
        raise source.error(what, "download the parts again")
    metadata = {key: value for key, value in parts[0].metadata.items() if not key.startswith("split.")}
    return ModelFile(sources, "gguf", parts[0].version, metadata, tensors.values(), parts[0].value_types)


def part_paths(path, count):
    """Return the paths of a split model's parts; `path` is the whole's, with or without .gguf."""
    stem = path.removesuffix(".gguf")
    return [f"{stem}-{index + 1:05}-of-{count:05}.gguf" for index in range(count)]


def write_parts(path, metadata, parts, value_types=None):
    """Write a model in several files, all or none; `parts` are the tensors of each as write_gguf takes them.

    path: see part_paths. The first part has the metadata.
    """
    paths = part_paths(path, len(parts))
    total = sum(map(len, parts))
    types = {**(value_types or {}), "split.no": "u16", "split.count": "u16", "split.tensors.count": "i32"}
    names = [os.path.basename(part) for part in paths]
    with replaced_together(os.path.dirname(paths[0]) or ".", names) as create:
        for index, tensors in enumerate(parts):
            about = {"split.no": index, "split.count": len(parts), "split.tensors.count": total}
            with create(names[index]) as file:
                write_gguf_to(file, paths[index], (metadata if index == 0 else {}) | about, tensors, types)


def _open(source, path, use_mmap):
    if not os.path.exists(path):
        raise source.error(
            f"is one of several parts, and {os.path.basename(path)} is missing", "put all parts in one folder"
        )
    found = MappedFile(path, use_mmap)
    if found.bytes[:4].tobytes() != MAGIC:
        raise found.stranger("a part of a GGUF model")
    return found
