"""From a file's tensors to the packed weights that the compiled steps read."""

import re

import numpy as np

from llamacy import kernels
from llamacy.errors import LlamacyError, shown
from llamacy.formats.architectures import (
    ARCHITECTURES,
    BY_NAME,
    CONV,
    ROUTER,
    SELECTION,
    STACKED,
    expert_tensor,
    key_of,
    of_expert,
)
from llamacy.model.rope import LONG, SHORT, RopeFactors

F32 = 0
_LAYER = re.compile(r"blk\.(\d+)\.")
# A router, experts side by side in one tensor or, in files of 2023, in tensors of their own.
_EXPERTS = re.compile(r"blk\.\d+\.(ffn_gate_inp|exp_probs|ffn_\w+\.\d+\.|ffn_\w+_(exps|shexp|chexps))")


def check_tensors(file, config):
    """Raise LlamacyError where an open ModelFile has a tensor that no step reads: the result would be another's."""
    family = ARCHITECTURES[config.architecture]
    known = {family.embedding, family.output_norm, family.output, family.rope_factors, SHORT, LONG}
    norms = [f"{family.gguf_name(name)}.{side}" for name in family.norms for side in norm_sides(config, name)]
    for part in (*norms, *(f"{name}.weight" for name in family.vectors), *family.ignored):
        known.update(f"blk.{i}.{part}" for i in range(config.n_layer))
    known.update(_biases(family).values())
    for i in range(config.n_layer):
        known.update(BY_NAME[key].tensor(i, side) for key in config.layer_shapes(i) for side in ("weight", "bias"))
        known.update(name for name, place in config.places(i).items() if place.key in STACKED)
        known.update(f"blk.{i}.{name}.weight" for name in _held_apart(file, config, i))
        known.update(f"blk.{i}.{name}.bias" for name in family.vectors if name == SELECTION)
    strange = [name for name in file.tensors if name not in known]
    if not strange:
        return
    name = next((name for name in strange if _EXPERTS.match(name)), None)
    if name is not None:
        why = "of a kind that is not supported; use another program or a dense model"
        if family.experts and config.experts is None:
            why = f"whose {config.architecture}.expert_count is missing or 0; the file is incomplete or damaged"
        raise LlamacyError(f"{file.path}: a mixture of experts (tensor {shown(name)}) {why}")
    name, layer = strange[0], _LAYER.match(strange[0])
    more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
    if layer and config.n_layer <= int(layer[1][:9]):
        raise LlamacyError(
            f"{file.path}: tensor {shown(name)}{more} belongs to no layer: {config.architecture}.block_count is "
            f"{config.n_layer}; the file is damaged, or made for another program"
        )
    raise LlamacyError(
        f"{file.path}: tensor {shown(name)}{more} is not part of a {config.architecture} model as it is computed here, "
        "and leaving it out would change the result; use another program"
    )


def load_weights(file, config, factors, n_threads):
    """Pack every matrix of an open ModelFile (checked against `config`) and return the compiled Weights.

    factors: the file's RopeFactors. Steps that are told nothing else turn positions as in contexts of the original
    length.

    The file's pages of a packed matrix are given back; only a token embedding that is not the output matrix too is
    read from the file later on.
    """
    family = ARCHITECTURES[config.architecture]
    check_tensors(file, config)
    loader = _Loader(file, n_threads)
    output = output_of(file, family)
    wanted = matrix_shapes(file, config)
    rows = {BY_NAME[key].tensor(i): config.part_rows(key) for key in config.shapes for i in range(config.n_layer)}
    loader.reserve(wanted, wanted | {family.embedding: wanted[output]}, rows)
    layers = []
    for i in range(config.n_layer):
        layer = {"rope": config.rope_of(i), "window": config.layer_window(i)} | _norms(loader, config, i)
        if "attn_sinks" in family.vectors:
            layer["sinks"] = loader.vector(f"blk.{i}.attn_sinks.weight", config.n_head)
        if i in config.convolving:
            # of a position and those before it, the newest last
            taps = loader.array(f"blk.{i}.{CONV}.weight", (config.n_embd, config.n_taps))
            layer["taps"] = np.ascontiguousarray(taps.T[::-1])
        for key, shape in config.layer_shapes(i).items():
            layer |= _matrix_parts(loader, config, key, i, shape)
        parts = {family.slot(key): len(family.parts(key)) for key in config.layer_shapes(i) if key in family.fused}
        layer["n_parts"] = parts
        if config.experts and i in config.experts.layers:
            layer = _with_experts(layer, config.experts)
            if (name := f"blk.{i}.{SELECTION}.bias") in file.tensors:
                layer["experts"]["selection"] = loader.vector(name, config.experts.n)
        layers.append(layer)
    lengths = {"output.bias": config.n_rows, "output_norm.bias": config.n_embd}
    more = {key: loader.vector(name, lengths[key]) for key, name in _biases(family).items()}
    more["ropes"] = [rope.table(rope.original, factors) for rope in config.ropes]
    return kernels.weights.Weights(
        config.kernel_sizes | config.kernel_parts | more,
        layers,
        loader.matrix(output),
        loader.vector(family.output_norm, config.n_embd),
        *(() if output == family.embedding else loader.embedding(family.embedding)),
    )


def norm_sides(config, name):
    """Return the sides that a norm of a layer has, by its name in NORMS: its weights, and where it has one its bias."""
    return ("weight", "bias") if config.family.norm_biases and BY_NAME[name].n == "embd" else ("weight",)


def _biases(family):
    """Return {Weights' word: tensor} of the biases behind the last layer."""
    found = {"output.bias": family.output.removesuffix("weight") + "bias"} if family.output_bias else {}
    if family.norm_biases:
        found["output_norm.bias"] = family.output_norm.removesuffix("weight") + "bias"
    return found


def _norms(loader, config, layer):
    """Return {Weights' word: values} of a layer's norms; of those that a file may leave out, what layer 0 has."""
    found, family, tensors = {}, config.family, loader.file.tensors
    for name in (name for name in family.norms if not config.lacks(layer, name)):
        for side in norm_sides(config, name):
            end = f"{family.gguf_name(name)}.{side}"
            if name not in family.optional or f"blk.0.{end}" in tensors:
                word = name if side == "weight" else f"{name}.bias"
                found[word] = loader.array(f"blk.{layer}.{end}", config.norm_shape(name))
            elif f"blk.{layer}.{end}" in tensors:
                raise LlamacyError(
                    f"{loader.file.path}: layer {layer} has a tensor {end}, which layer 0 does not have; the file is "
                    "incomplete"
                )
    longest = kernels.norm.LONGEST_HEAD
    if "attn_q_norm" in found and not family.row_norms and config.head_dim > longest:
        raise LlamacyError(
            f"{loader.file.path}: norms of heads of {config.head_dim} elements, wanted heads of at most {longest}; "
            "use another program"
        )
    if layer not in config.convolving and ("attn_q_norm" in found) != ("attn_k_norm" in found):
        raise LlamacyError(
            f"{loader.file.path}: layers have norms of queries or of keys alone, wanted both or none; the file is "
            "incomplete"
        )
    return found


def _matrix_parts(loader, config, key, i, shape):
    """Return {Weights' word: a matrix, a bias} of a matrix of layer i, of its parts where fused; experts' as lists."""
    name, bias, family = BY_NAME[key].tensor(i), BY_NAME[key].tensor(i, "bias"), config.family
    biased = key in family.biases or bias in loader.file.tensors
    if key == "ffn_gate_inp_shexp":
        return {key: loader.vector(name, shape[1])}
    if _held_apart(loader.file, config, i) and key in family.stored:
        return {key: loader.latent(key, i, config)}
    if key in family.fused:
        found, rows = loader.parts(name, config.part_rows(key)), config.part_rows(key)
        if biased:
            parts = np.split(loader.vector(bias, shape[0]), np.cumsum(list(rows.values()))[:-1])
            found |= {f"{part}.bias": of for part, of in zip(rows, parts, strict=True)}
        return found
    found = {key: loader.matrices(key, i, shape[0]) if key in STACKED else loader.matrix(name)}
    return found | ({f"{key}.bias": loader.array(bias, shape[:-1])} if biased else {})


def _with_experts(layer, experts):
    """Return a layer's parts as the compiled Weights take them: what belongs to the experts apart."""
    keys = [key for key in layer if key.removesuffix(".bias") in (ROUTER, *STACKED)]
    parts = {key.replace(ROUTER, "router"): layer.pop(key) for key in keys}
    shared = {"shared_gate": layer.pop("ffn_gate_inp_shexp", None)}
    found = {key.replace("_shexp", ""): part for key, part in layer.items()}
    return found | {"experts": parts | shared | vars(experts.routing)}


def _held_apart(file, config, layer):
    """Return the tensors of a layer that hold a matrix which the file does not have by its name: see `stored`."""
    stored = config.family.stored.items()
    return [part for key, parts in stored if BY_NAME[key].tensor(layer) not in file.tensors for part in parts]


def output_of(file, family):
    """Return the name of the output matrix: the embedding where the file has no other."""
    return family.output if family.output in file.tensors else family.embedding


def matrix_shapes(file, config):
    """Return {tensor: its shape} of all matrices that are packed: those of the layers and the output matrix.

    (n_out, n_in), with n before them where the tensor holds n experts' matrices.
    """
    wanted, family = {}, config.family
    for i in range(config.n_layer):
        for key, shape in config.layer_shapes(i).items():
            name = BY_NAME[key].tensor(i)
            if key in STACKED and name not in file.tensors:
                wanted |= {expert_tensor(key, i, e): shape[1:] for e in range(shape[0])}
            elif key in family.stored and name not in file.tensors:
                wanted |= {BY_NAME[part].tensor(i): family.shape(part, config.lengths) for part in family.stored[key]}
            elif key != "ffn_gate_inp_shexp":
                wanted[name] = shape
    return wanted | {output_of(file, ARCHITECTURES[config.architecture]): (config.n_rows, config.n_embd)}


def rope_factors(file, config):
    """Return the RopeFactors that an open ModelFile has; LlamacyError where they are not positive numbers."""
    names = {"every": ARCHITECTURES[config.architecture].rope_factors, "short": SHORT, "long": LONG}
    found = {}
    for part, name in names.items():
        if name in file.tensors:
            found[part] = read_vector(file, name, config.rope.n_rot // 2).astype(np.float64)
            if not (found[part] > 0).all():
                raise LlamacyError(
                    f"{file.path}: {name} holds {found[part].min():g}, wanted positive numbers, which divide "
                    "frequencies; the file is damaged: download it again"
                )
    return RopeFactors(**found)


# ---- matrices fused of several: each part begins at a multiple of 16 rows, as tiles do ----


def places_of(rows):
    """Return {part: its first row} of parts {part: how many rows} that begin at multiples of 16."""
    ends = np.cumsum([-(-n // 16) * 16 for n in rows.values()])
    return dict(zip(rows, (0, *ends[:-1].tolist()), strict=True))


def last_row(rows):
    """Return how many rows such parts take together."""
    return max(first + rows[part] for part, first in places_of(rows).items())


def apart(values, rows):
    """Return an array of all parts' rows with rows of zeros before each part that would begin elsewhere."""
    if all(n % 16 == 0 for n in list(rows.values())[:-1]):
        return values
    wide = np.zeros((last_row(rows), *values.shape[1:]), values.dtype)
    wide[kept_rows(rows)] = values
    return wide


def kept_rows(rows):
    """Return where the parts' own rows stand among those that `apart` returns, int (n,)."""
    return np.concatenate([first + np.arange(rows[part]) for part, first in places_of(rows).items()])


class _Loader:
    """Reads tensors of one file into one arena."""

    def __init__(self, file, n_threads):
        self.file = file
        self.n_threads = n_threads
        self.known = set(kernels.matmul.types().values())
        self.arena = None

    def tensor(self, name):
        if name not in self.file.tensors:
            raise LlamacyError(
                f"{self.file.path}: tensor {name} is missing; the file is incomplete or of another family"
            )
        return self.file.tensors[name]

    def reserve(self, names, shapes, rows):
        """Check types and shapes of all matrices, then allocate the arena that holds them; rows: of each's parts."""
        total = 0
        for name, shape in shapes.items():
            info = self.tensor(name)
            if not _fits(info, shape):
                raise LlamacyError(
                    f"{self.file.path}: {name} has shape {tuple(info.shape)}, wanted {shape} by the metadata"
                )
            if info.type.number not in self.known:
                raise LlamacyError(
                    f"{self.file.path}: {name} is {info.type.name}, wanted one of {', '.join(kernels.matmul.types())}"
                )
            if name in names:
                if name in rows:
                    shape = (last_row(rows[name]), shape[1])
                total += packed_bytes(*_as_packed(name, info.type.number, shape))
        self.arena = kernels.matmul.Arena(total)

    def rows(self, name):
        return np.ascontiguousarray(self.file.data(name)).view(np.uint8)

    def parts(self, name, rows):
        """Return {part: its packed rows} of one matrix; rows: {part: how many}, one after the other."""
        if len(rows) == 1:
            return dict.fromkeys(rows, self.matrix(name))
        whole, places = self.matrix(name, rows), places_of(rows)
        return {part: whole.part(first, rows[part]) for part, first in places.items()}

    def matrix(self, name, parts=None):
        info, rows = self.tensor(name), self.rows(name)
        if parts:
            rows = apart(rows, parts)
        try:
            packed = kernels.matmul.PackedMatrix(rows, info.type.number, info.shape[-1], self.arena, self.n_threads)
        except ArithmeticError:
            raise _not_finite(self.file, name) from None
        self.file.release(name, done=True)
        return packed

    def matrices(self, key, layer, n):
        """Return the n experts' matrices of a layer, from one tensor or, in files of 2023, from one each."""
        name = BY_NAME[key].tensor(layer)
        if name not in self.file.tensors:
            return [self.matrix(expert_tensor(key, layer, e)) for e in range(n)]
        info, rows = self.tensor(name), self.rows(name)
        each = len(rows) // n
        try:
            packed = [
                kernels.matmul.PackedMatrix(
                    rows[e * each : (e + 1) * each], info.type.number, info.shape[-1], self.arena, self.n_threads
                )
                for e in range(n)
            ]
        except ArithmeticError:
            raise _not_finite(self.file, name) from None
        self.file.release(name, done=True)
        return packed

    def latent(self, key, layer, config):
        """Return the matrix of a layer's keys and values, of each head both, which two tensors hold, one transposed."""
        heads = []
        for part in config.family.stored[key]:
            name = BY_NAME[part].tensor(layer)
            info = self.tensor(name)
            values = kernels.quants.dequantize(self.rows(name), info.type.number, self.n_threads)
            heads.append(values.reshape(config.family.shape(part, config.lengths)))
            self.file.release(name, done=True)
        both = np.concatenate([heads[0].swapaxes(1, 2), heads[1]], axis=1)
        rows = np.ascontiguousarray(both.reshape(-1, both.shape[-1]))
        try:
            return kernels.matmul.PackedMatrix(rows.view(np.uint8), F32, rows.shape[1], self.arena, self.n_threads)
        except ArithmeticError:
            raise _not_finite(self.file, name) from None

    def embedding(self, name):
        """Return (rows that are looked up as they are in the file, the number of their type)."""
        rows, number = self.rows(name), self.tensor(name).type.number
        if not kernels.finite.finite(rows, number, self.n_threads):
            raise _not_finite(self.file, name)
        self.file.release(name)
        return rows, number

    def vector(self, name, n):
        return self.array(name, (n,))

    def array(self, name, shape):
        self.tensor(name)
        return read_array(self.file, name, shape)


def _as_packed(name, number, shape):
    """Return (type, shape) of what a tensor is packed as: keys and values of latent attention are one matrix, f32."""
    if key_of(name) == "attn_k_b":
        return F32, (shape[0] * shape[2], shape[1])
    return (F32, (shape[0] * shape[1], shape[2])) if key_of(name) == "attn_v_b" else (number, shape)


def packed_bytes(number, shape):
    """Return the bytes that a tensor of GGUF type `number` takes when it is packed; shape: as of matrix_shapes."""
    return kernels.matmul.packed_bytes(number, *shape[-2:]) * (shape[0] if len(shape) == 3 else 1)


def token_bytes(file, config):
    """Return the bytes of packed matrices that generating one token reads: of experts only those that are chosen."""
    total = 0
    for name, shape in matrix_shapes(file, config).items():
        number, shape = _as_packed(name, file.tensors[name].type.number if name in file.tensors else 0, shape)
        if len(shape) == 3:
            total += config.experts.n_used * packed_bytes(number, shape[1:])
        elif of_expert(name):
            total += config.experts.n_used * packed_bytes(number, shape) // config.experts.n
        else:
            total += packed_bytes(number, shape)
    return total


def _fits(info, shape):
    """Tell whether a tensor has a shape, but for leading ones: some writers give all tensors four dimensions."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return info.dims == shape


def read_vector(file, name, n):
    """Return a tensor of shape (n,) as f32; LlamacyError where it has another shape or type, or is not finite."""
    return read_array(file, name, (n,))


def read_array(file, name, shape):
    """The same of any shape."""
    info = file.tensors[name]
    if not _fits(info, shape):
        raise LlamacyError(f"{file.path}: {name} has shape {tuple(info.shape)}, wanted {shape}")
    if info.type.number not in kernels.quants.types():
        raise LlamacyError(f"{file.path}: {name} is {info.type.name}, wanted F32, F16 or BF16")
    rows = np.ascontiguousarray(file.data(name)).view(np.uint8).reshape(1, -1)
    values = kernels.quants.dequantize(rows, info.type.number)[0]
    if not np.isfinite(values).all():
        raise _not_finite(file, name)
    return values.reshape(shape)


def _not_finite(file, name):
    return LlamacyError(f"{file.path}: {name} holds values that are not finite; the file is damaged: download it again")
