"""llama.cpp as a peer: a context whose cache is filled without prefilling all of it."""

from __future__ import annotations

import ctypes
import importlib.util
import time

from benches.harness import NotMeasurableHereError

# What is computed once and repeated; positions go on.
PART = 4096
BATCH = 512


def require_llama() -> None:
    """Raises NotMeasurableHereError where there is no llama.cpp."""
    if importlib.util.find_spec("llama_cpp") is None:
        raise NotMeasurableHereError("no llama-cpp-python: pip install -e '.[peers]'")


class LlamaPeer:
    """One sequence of a llama.cpp model with a q8_0 cache, on as many threads as torch uses."""

    def __init__(self, path: str, context: int, threads: int) -> None:
        import llama_cpp

        self.api = llama_cpp
        # It tells of every tensor that it loads.
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        self.model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context + BATCH
        params.n_batch = params.n_ubatch = BATCH
        # The second sequence is where a part is before its positions are moved.
        params.n_seq_max = 2
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_Q8_0
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp made no context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.length = 0

    def fill(self, ids: list[int], length: int) -> None:
        """Computes PART tokens and repeats them up to a length."""
        api = self.api
        for start in range(0, PART, BATCH):
            self.decode(ids[start : start + BATCH])
        size = api.llama_state_seq_get_size(self.context, 0)
        part = (ctypes.c_uint8 * size)()
        assert api.llama_state_seq_get_data(self.context, part, size, 0) == size, "the cache as bytes"
        while self.length < length:
            assert api.llama_state_seq_set_data(self.context, part, size, 1), "the cache from bytes"
            api.llama_memory_seq_add(self.memory, 1, -1, -1, self.length)
            api.llama_memory_seq_cp(self.memory, 1, 0, -1, -1)
            api.llama_memory_seq_rm(self.memory, 1, -1, -1)
            self.length += PART

    def decode(self, ids: list[int]) -> None:
        """The next tokens; the logits of the last are computed."""
        batch = self.api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index] = token
            batch.pos[index] = self.length + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index == len(ids) - 1
        status = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama.cpp could not decode: {status}")
        self.length += len(ids)

    def step_seconds(self, steps: int) -> float:
        """Seconds of one step; the cache is cut back."""
        start, length = time.perf_counter(), self.length
        for _ in range(steps):
            self.decode([5])
        seconds = (time.perf_counter() - start) / steps
        self.api.llama_memory_seq_rm(self.memory, 0, length, -1)
        self.length = length
        return seconds

    def cache_bytes(self) -> int:
        return int(self.api.llama_state_seq_get_size(self.context, 0))

    def close(self) -> None:
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)
