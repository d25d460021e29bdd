"""A Hugging Face model folder: config.json and other JSON, and the tensors of all its safetensors files by name."""

import os

from llamacy.errors import LlamacyError, shown
from llamacy.formats.mapped import MappedFile
from llamacy.formats.safetensors import json_object, read_safetensors

SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
# Bounds on what becomes Python objects; the largest real tokenizer.json has some 35 MB.
_MAX_JSON = 1 << 28
_MAX_TEXT = 1 << 22


def is_model_folder(path):
    """Tell whether `path` is a folder that holds a model of Hugging Face's and no adapter."""
    config, adapter = (os.path.join(path, name) for name in (CONFIG, "adapter_config.json"))
    return os.path.exists(config) and not os.path.exists(adapter)


class HfFolder:
    """An open folder. `path`; `tensors`: name -> (ModelFile of its shard, TensorInfo)."""

    def __init__(self, path):
        self.path = os.fspath(path)
        self.files, self.tensors = [], {}
        try:
            for name in self._shards():
                file = read_safetensors(MappedFile(os.path.join(self.path, name)))
                self.files.append(file)
                for info in file.tensors.values():
                    if info.name in self.tensors:
                        raise file.error(f"tensor {shown(info.name)} stands in two files", "download it again")
                    self.tensors[info.name] = (file, info)
            self._check_index()
        except BaseException:
            self.close()
            raise

    def _shards(self):
        """Return the names of the files with tensors."""
        if os.path.exists(os.path.join(self.path, SINGLE)):
            self._index = {}
            return [SINGLE]
        if not os.path.exists(os.path.join(self.path, INDEX)):
            raise LlamacyError(
                f"{self.path}: has no {SINGLE}; a pickled pytorch_model.bin could run anything: save it as safetensors"
            )
        self._index = self.json(INDEX).get("weight_map")
        for name in self._index.values() if isinstance(self._index, dict) else [None]:
            # A name with a folder in it could lead anywhere.
            if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(".safetensors"):
                raise LlamacyError(f"{self.path}: {INDEX} names the file {shown(name)}, wanted *.safetensors beside it")
        return list(dict.fromkeys(self._index.values()))

    def _check_index(self):
        for name, shard in self._index.items():
            if name not in self.tensors:
                what = f"{INDEX} says that tensor {shown(name)} is in {shown(shard)}, and it is not"
                raise LlamacyError(f"{self.path}: {what}; download that file again")

    def has(self, name):
        """Tell whether the folder holds a file `name`."""
        return os.path.isfile(os.path.join(self.path, name))

    def bytes(self, name, limit=_MAX_TEXT):
        """Return the content of the file `name`."""
        source = MappedFile(os.path.join(self.path, name))
        try:
            if source.size > limit:
                raise source.error(f"has {source.size} bytes, wanted at most {limit}", "check the file")
            return source.bytes.tobytes()
        finally:
            source.close()

    def json(self, name, optional=False):
        """Return the JSON object in the file `name`; {} where it is `optional` and not there."""
        if optional and not self.has(name):
            return {}
        source = MappedFile(os.path.join(self.path, name))
        try:
            if source.size > _MAX_JSON:
                raise source.error(f"has {source.size} bytes, wanted at most {_MAX_JSON}", "check the file")
            return json_object(source, source.bytes.tobytes())
        finally:
            source.close()

    def error(self, name, what, advice):
        """Return a LlamacyError that names the file `name` in the folder."""
        return LlamacyError(f"{os.path.join(self.path, name)}: {what}; {advice}")

    def close(self):
        """Let go of all files."""
        for file in self.files:
            file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
