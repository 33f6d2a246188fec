"""vLLM in the training process: no server, no Ray, one engine a rank, or one for each `tp_size` ranks.

Every rank holds an engine of its own, started by the same launcher as the training ("external launcher"). At a sync
the actor's weights are streamed to it bucket by bucket; there is never a second full copy. Token ids go in, token ids
and their log-probabilities come out; no text, no tokenizer.

vLLM draws a sample from a seed of its own: f(seed, step, problem) + sample. Samples therefore differ from the torch
engine's, and are the same whatever else is in the batch, up to rounding.
"""

import gc
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine lives in this process
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it has much to say at every start and sync

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import destroy_model_parallel, get_tp_group

from utils import seeding
from utils.run import stopping, watchdog
from utils.run.errors import RunStopped
from utils.types import Prompt, Rollout, Sampling

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
BATCHED_TOKENS = 8_192  # of prompts that one forward pass on a CPU takes, where the longest is not longer


class Beats(tqdm):
    """vLLM's progress bar, for the heartbeat only: nothing is shown."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings, file=io.StringIO())

    def update(self, n: float = 1) -> bool | None:
        watchdog.progress()
        return super().update(n)


class OwnBeats(Beats):
    """The same for an engine that no other rank shares."""

    def update(self, n: float = 1) -> bool | None:
        stopping.leave()
        return super().update(n)


class VLLMEngine:
    """Generates with vLLM from the weights of `model` (a folder or Hugging Face name). With `weights`, which yields
    buckets {name: tensor} at each sync, nothing is read from there but the config; `tied` says that the head is the
    embedding and has no name in the buckets.

    max_length: tokens of prompt and response together. memory_fraction: of a GPU's memory, weights included;
    kv_cache_gb: on a CPU, memory for keys and values. sleep_level: what `sleep` gives back, 0 nothing, 1 the cache
    while the weights wait in CPU memory, 2 the weights too (the next sync brings them).
    """

    def __init__(
        self,
        model: str,
        dtype: torch.dtype,
        eos_ids: Iterable[int],
        *,
        max_length: int,
        kv_cache_gb: float,
        memory_fraction: float,
        tp_size: int = 1,
        sleep_level: int = 0,
        weights: Callable[[], Iterable[dict[str, Tensor]]] | None = None,
        tied: bool = False,
    ):
        on_gpu = torch.cuda.is_available()
        own = {"gpu_memory_utilization": memory_fraction} if on_gpu else {
            "kv_cache_memory_bytes": int(kv_cache_gb * 2**30), "enforce_eager": True,
            # vLLM 0.32 cannot take back what a request with a seed draws at the end of half a prompt, on a CPU.
            "enable_chunked_prefill": False, "max_num_batched_tokens": max(BATCHED_TOKENS, max_length),
        }
        self.eos_ids = sorted(eos_ids)
        self.weights = weights
        self.tied = tied
        self.tp_size = tp_size
        self.sleep_level = sleep_level
        self.is_asleep = False
        num_threads = torch.get_num_threads()
        self.llm = LLM(
            model, dtype=dtype, load_format="auto" if weights is None else "dummy", skip_tokenizer_init=True,
            generation_config="vllm",  # the model's own may say top-p, top-k or a penalty
            max_model_len=max_length, tensor_parallel_size=tp_size, distributed_executor_backend="external_launcher",
            logprobs_mode="processed_logprobs",  # at the temperature of sampling
            enable_sleep_mode=sleep_level > 0, seed=0, disable_log_stats=True, **own,
        )
        if on_gpu:  # vLLM left the process one thread; the optimiser of --offload needs the others
            torch.set_num_threads(num_threads)
        if tp_size > 1 and not on_gpu:
            unlink_shared_memory()

    @torch.no_grad()
    def sync(self) -> None:
        """See inference/hybrid_engine.py. Raises RunStopped where vLLM keeps keys and values of the old weights."""
        watchdog.phase("sync")
        if self.weights is None:
            return
        if self.is_asleep:  # weights, sync, then the cache: never all three at once
            self.llm.wake_up(tags=["weights"])
        stream = self._stream()
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream})
        for _ in stream:  # to the end in any case: the buckets are gathered by all ranks together
            pass
        if self.is_asleep:
            self.llm.wake_up(tags=["kv_cache"])
        self.is_asleep = False
        if not self.llm.reset_prefix_cache():
            raise RunStopped("vLLM did not empty its prefix cache at a sync, since it still holds requests: it would "
                             "go on with keys and values of the old weights. --engine torch does without vLLM")

    def _stream(self) -> Iterator[tuple[str, Tensor]]:
        for bucket in self.weights():
            yield from bucket.items()
            if self.tied and EMBEDDING in bucket:
                yield HEAD, bucket[EMBEDDING]  # some backends keep a packed copy of the head, stale without this

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, step: int = 0) -> list[list[Rollout]]:
        """See utils.types.Engine."""
        prompts, mine = self._of_tp_group(list(prompts))
        requests = [{"prompt_token_ids": prompt.prompt_ids + prompt.hint_ids} for prompt in prompts]
        parameters = [
            SamplingParams(
                n=sampling.group_size if sampling.temperature else 1, temperature=sampling.temperature,
                top_p=1.0, top_k=0, max_tokens=sampling.max_response_length,
                seed=request_seed(sampling.seed, step, prompt.problem.index) + sampling.first_sample,
                stop_token_ids=self.eos_ids, ignore_eos=True, logprobs=0, detokenize=False,
            )
            for prompt in prompts
        ]
        bar = OwnBeats if self.tp_size == 1 else Beats
        outputs = self.llm.generate(requests, parameters, use_tqdm=bar) if requests else []
        stopping.meet()
        groups = []
        for prompt, output in list(zip(prompts, outputs, strict=True))[mine]:
            group = [
                Rollout(prompt, list(one.token_ids),
                        [of_token[token].logprob for token, of_token in zip(one.token_ids, one.logprobs, strict=True)],
                        one.finish_reason)
                for one in output.outputs
            ]
            groups.append(group if sampling.temperature else group * sampling.group_size)
        return groups

    def _of_tp_group(self, prompts: list[Prompt]) -> tuple[list[Prompt], slice]:
        """The prompts of all ranks that share an engine, which all of them must give it, and which are this rank's."""
        if self.tp_size == 1:
            return prompts, slice(None)
        group = get_tp_group()
        parts: list[list[Prompt]] = [[] for _ in range(self.tp_size)]
        dist.all_gather_object(parts, prompts, group=group.cpu_group)
        before = sum(map(len, parts[: group.rank_in_group]))
        return [prompt for part in parts for prompt in part], slice(before, before + len(prompts))

    def sleep(self) -> None:
        if self.sleep_level and not self.is_asleep:
            self.llm.sleep(self.sleep_level)
            self.is_asleep = True

    def close(self) -> None:
        client = self.llm.llm_engine.engine_core
        client._finalizer.detach()  # vLLM's own way to end destroys the process group too, which is not its alone
        client.engine_core.model_executor.shutdown()
        gc.unfreeze()
        destroy_model_parallel()


def unlink_shared_memory() -> None:
    """On a CPU the ranks of an engine talk through shared memory that has the same name in every run, and that a killed
    run would leave in the way of the next: the name goes once all have opened it."""
    group = get_tp_group()
    name = f"{group.device_communicator.dist_module.group_name}_{group.rank_in_group}"
    Path("/dev/shm", name.lstrip("/")).unlink(missing_ok=True)


def request_seed(seed: int, step: int, problem_index: int) -> int:
    """The seed of a problem's first sample; vLLM adds the number of the sample."""
    return int(seeding.generator("request", seed, step, problem_index).integers(2**62))
