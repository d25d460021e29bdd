"""Mistakes of readers and writers of models and adapters."""

from tests.mutants.table import table

FORMATS = table(
    "llamacy/formats",
    (
        "a key is neutral where it is not",
        "metadata_keys.py",
        "numbers = [number for number in neutral if not isinstance(number, str)]",
        "numbers = [0, 1, *(number for number in neutral if not isinstance(number, str))]",
        "model/test_understood.py::test_a_key_that_changes_the_arithmetic",
    ),
    (
        "a key is neutral when one of its numbers is",
        "metadata_keys.py",
        "return all(any(math.isclose",
        "return any(any(math.isclose",
        "model/test_understood.py::test_a_key_that_changes_the_arithmetic",
    ),
    (
        "a vector of 1 x n is a matrix",
        "layout.py",
        "return self.shape[max(0, ones) :]",
        "return self.shape[min(1, ones) :]",
        "model/test_understood.py::test_ones_before_a_shape_say_nothing",
    ),
    (
        "a disk that is full at the end goes unseen",
        "atomic.py",
        "file.flush()",
        "pass",
        "formats/test_atomic.py::test_a_full_disk",
    ),
    (
        "a file's permissions change",
        "atomic.py",
        "os.fchmod(descriptor, stat.S_IMODE(mode))",
        "pass",
        "formats/test_atomic.py::test_permissions",
    ),
    (
        "a failed write leaves its temporary file",
        "atomic.py",
        "os.unlink(temporary)",
        "pass",
        "formats/test_atomic.py::test_a_failing_block_leaves_the_old_file",
    ),
    (
        "a tensor may end a byte behind the file",
        "layout.py",
        "if offset + nbytes > source.size:",
        "if offset + nbytes > source.size + 1:",
        "formats/test_gguf_reader.py::test_every_truncation_is_an_error",
    ),
    (
        "tensors may overlap by a byte",
        "layout.py",
        "if before.offset + before.nbytes > after.offset:",
        "if before.offset + before.nbytes > after.offset + 1:",
        "formats/test_safetensors.py::test_lies_are_named_in_one_line",
    ),
    (
        "counts are not held against the file",
        "gguf.py",
        "most = min(limit, self.cursor.left // smallest)",
        "most = limit",
        "formats/test_gguf_reader.py::test_lies_are_named_in_one_line",
    ),
    (
        "offsets may be out of line",
        "gguf.py",
        "if offset % alignment:",
        "if False:",
        "formats/test_gguf_reader.py::test_lies_are_named_in_one_line",
    ),
    (
        "a safetensors header of any size",
        "safetensors.py",
        "if length > MAX_HEADER:",
        "if False:",
        "formats/test_safetensors.py::test_lies_are_named_in_one_line",
    ),
    (
        "merging forgets the user's scale",
        "merge.py",
        "pair.a * np.float32(pair.scale * scale)",
        "pair.a * np.float32(pair.scale)",
        "formats/test_merge.py::test_the_f32_merge_says_what_the_adapter_says_at_run_time",
    ),
)

ADAPTERS = table(
    "llamacy/formats",
    (
        "base tensors of other values pass",
        "base_copies.py",
        "if far == 0 and whole <= min(WHOLE * noise, LIMIT):",
        "if far >= 0:",
        "model/test_base_copies.py::test_a_base_tensor_of_other_values_is_named_in_a_warning",
    ),
    (
        "modules that were trained whole pass",
        "base_copies.py",
        "if not copy.paired:",
        "if copy.paired is None:",
        "model/test_base_copies.py::test_a_module_that_was_trained_whole_is_refused_by_name",
    ),
    (
        "an output pair of one matrix for both sides is not merged",
        "merge.py",
        "(changes[EMBEDDING].parts or on_output.parts)",
        "changes[EMBEDDING].parts",
        "model/test_base_copies.py::test_every_format_and_the_merged_model_say_the_same",
    ),
    (
        "a folder's files change one after the other",
        "together.py",
        'os.symlink("old", self._at("now"))',
        'os.symlink("new", self._at("now"))',
        "formats/test_together.py::test_a_process_that_dies_at_any_moment_leaves_all_old_or_all_new",
    ),
    (
        "weights read before a swap with settings read after it",
        "adapter.py",
        "if _identity(place) == before:  # so that",
        "if adapter:",
        "formats/test_together.py::test_a_reader_gets_one_adapter_while_another_takes_its_place",
    ),
    (
        "temporary files of living processes are swept",
        "locks.py",
        "if try_lock(descriptor) and is_at(descriptor, path):",
        "if is_at(descriptor, path):",
        "formats/test_atomic.py::test_what_a_killed_process_left_goes_with_the_next_write_and_nothing_else",
    ),
    (
        "a temporary file is its writer's until it is closed only",
        "atomic.py",
        "lock = os.dup(descriptor)",
        "lock = os.open(os.devnull, os.O_RDONLY)",
        "formats/test_atomic.py::test_a_sweep_just_before_the_rename_leaves_the_file",
    ),
)
