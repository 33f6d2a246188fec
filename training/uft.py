"""UFT: unified supervised and reinforcement fine-tuning (arXiv 2505.16984).

    loss = pg_loss + kl_coef * kl_loss - entropy_coef * entropy + sft_coef * sft_loss

The prompt is followed by the first slices of a reference solution: Binomial(slices, p_t) of them, p_t falling from
p_high to p_low along a cosine over hint_steps; then none. One draw per problem and step, shared by its group. sft_loss
is the mean negative log-likelihood of these hint tokens, which enter no other loss.

pg_loss is PPO's clipped surrogate with group-relative advantages, (reward - group mean) / group standard deviation;
kl_loss is the k3 estimate of the divergence from the reference; entropy is the policy's. All three are means over the
response tokens of a mini-batch.

Started as `deepspeed --num_gpus 2 training/<this file> --model M --data countdown --output_dir O`.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from inference.hybrid_engine import build_engine
from utils import checkpoint, seeding
from utils.actor import Actor, load_model, load_reference, resolve_dtype
from utils.data import best_constant_answer, problems_of_step
from utils.evaluation import evaluate, summary
from utils.guards import UpdateGuard, engine_mismatch
from utils.inspection import describe_group
from utils.losses import clipped_surrogate, group_advantages, k3_divergence, masked_mean
from utils.metrics import LossMeans, Stopwatch, count_tokens
from utils.packing import pack_mini_batches, with_logprobs
from utils.prompts import build_prompt, solution_slices
from utils.report.curves import closing_table, plot_curves
from utils.rollouts import rollout_metrics, rollout_texts, verify
from utils.run import distributed, processes
from utils.run.cli import run_script
from utils.run.errors import check_numbers, require
from utils.run.logger import Logger
from utils.run.output_dir import check_output_dir
from utils.setup.inputs import load_inputs
from utils.setup.memory_probe import dry_run
from utils.setup.plan import check_batch, memory_plan, print_plan
from utils.types import Problem


@dataclass
class Args:
    model: str  # Hugging Face name or local folder of the model to train
    data: str  # built-in task (countdown, kk_logic, math, tree), or a folder with train.parquet and test.parquet
    output_dir: str  # folder of this run: metrics, samples, checkpoints, curves
    seed: int = 0  # of everything that is drawn
    total_steps: int = 500  # training steps
    hint_steps: int = 300  # steps over which hints get shorter; none after
    hint_slices_max: int = 5  # slices a solution is cut into, at most
    p_high: float = 0.95  # share of the slices shown at the first step
    p_low: float = 0.05  # share of the slices shown at step hint_steps
    eval_every: int = 25  # steps between evaluations (greedy); also before the first and after the last step
    eval_problems: int = 0  # test problems per evaluation; 0 is all
    save_every: int = 100  # steps between checkpoints; also after the last step
    keep_last: int = 0  # checkpoints that are kept, the newest; 0 is all
    keep_every: int = 0  # checkpoints at multiples of this step are kept too; 0 is none
    resume: bool = False  # go on from the latest checkpoint in output_dir
    resume_step: int = 0  # with resume: the checkpoint to go on from; 0 is the latest
    allow_changes: bool = False  # with resume: settings and data may differ from the checkpoint's
    overwrite: bool = False  # replace the run in output_dir
    prompts_per_step: int = 256  # prompts, over all processes
    group_size: int = 4  # responses per prompt
    mini_batch_prompts: int = 64  # prompts per optimiser update, over all processes
    max_prompt_length: int = 256  # tokens of the prompt with all that is given beside it
    max_response_length: int = 1024  # tokens
    skip_long_prompts: bool = False  # leave out problems whose prompt is too long instead of stopping
    bos: bool = True  # begin prompts with the tokenizer's beginning-of-sequence token, if it has one (Llama)
    temperature: float = 1.0  # of sampling, and of the log-probabilities in the losses
    clip_eps: float = 0.2  # PPO clips the probability ratio to 1 - eps .. 1 + eps
    kl_coef: float = 0.001  # weight of kl_loss; 0 loads no reference
    entropy_coef: float = 0.001  # weight of the entropy bonus
    sft_coef: float = 0.001  # weight of sft_loss
    lr: float = 1e-6  # learning rate of AdamW, constant
    beta1: float = 0.9  # AdamW
    beta2: float = 0.999  # AdamW
    weight_decay: float = 0.01  # AdamW
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm
    max_skipped_updates: int = 3  # updates skipped in a row (loss or gradient not finite) after which the run stops
    max_tokens_per_micro_batch: int = 16384  # tokens of one forward pass on one process, padding included
    share_prefix: bool = True  # training computes a group's prompt once; with --no_share_prefix once per response
    zero_stage: Literal[0, 1, 2, 3] = 3  # what DeepSpeed shards: 1 optimiser, 2 + gradients, 3 + weights
    offload: bool = False  # optimiser states (and weights at stage 3) wait in CPU memory
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # of weights; auto: bfloat16 on GPU, float32 on CPU
    engine: Literal["auto", "torch", "vllm", "deepspeed"] = "auto"  # what generates; auto: vllm with CUDA, else torch
    kv_cache_gb: float = 8.0  # memory for keys and values while generating, GiB per process (vllm: on a CPU only)
    free_replica: bool = False  # torch, zero_stage 3: the gathered weights are dropped while the actor learns
    engine_memory_fraction: float = 0.3  # vllm: share of the GPU's memory that it takes, its weights included
    sleep_level: Literal[0, 1, 2] = 0  # vllm: gives back while the actor learns: 1 its cache, 2 its weights too
    tp_size: int = 1  # vllm: processes that share an engine (tensor parallel)
    max_logprob_mismatch: float = 0.1  # the run stops if engine and actor differ by more, nats per token on average
    old_logprobs: Literal["actor", "engine"] = "actor"  # of the sampling policy: recomputed, or what the engine said
    max_engine_ratio: float = 2.0  # engine's: importance weights are truncated here, per token
    timeout_minutes: float = 30.0  # a process that gets nowhere, or waits for the others, for so long ends the run
    tracker: Literal["none", "wandb"] = "none"  # where metrics are shown too; never fatal
    dry_run: Literal["auto", "always", "never"] = "auto"  # the worst micro-batch before step 1; auto: with CUDA
    dump_batch: bool = False  # print the first group with the loss that each of its tokens gets
    check: bool = False  # check everything that needs no model, print the plan, and stop


def draw_hint(problem: Problem, step: int, args: Args) -> list[str]:
    """The slices of the problem's solution shown at `step`, a function of (seed, step, problem)."""
    slices = solution_slices(problem.solution, args.hint_slices_max)
    if step > args.hint_steps:
        return []
    p = args.p_low + (args.p_high - args.p_low) / 2 * (1 + math.cos(math.pi * step / args.hint_steps))
    return slices[: seeding.generator("hint", args.seed, step, problem.index).binomial(len(slices), p)]


def main(args: Args) -> None:
    # Whatever can be wrong without a model is found here.
    inputs = load_inputs(
        model=args.model, data=args.data, splits=("train", "test"), max_prompt_length=args.max_prompt_length,
        max_response_length=args.max_response_length, eval_problems=args.eval_problems,
        skip_long_prompts=args.skip_long_prompts, bos=args.bos, may_be_unreachable=args.check,
        tracker=args.tracker,
        engine=args.engine, tp_size=args.tp_size, sleep_level=args.sleep_level, temperature=args.temperature,
        needs=("hint",),
    )
    check_batch(
        prompts_per_step=args.prompts_per_step, mini_batch_prompts=args.mini_batch_prompts,
        longest_group=args.max_prompt_length + args.group_size * args.max_response_length,
        longest_group_is="--max_prompt_length + --group_size * --max_response_length",
        max_tokens_per_micro_batch=args.max_tokens_per_micro_batch, num_problems=len(inputs.problems),
    )
    require(args.group_size > 1, "--group_size", args.group_size, "must be at least 2: rewards of a group are compared")
    check_numbers(
        args, positive=("total_steps", "eval_every", "save_every", "temperature", "clip_eps", "lr", "max_grad_norm",
                        "kv_cache_gb", "max_logprob_mismatch", "max_engine_ratio",
                        "engine_memory_fraction", "max_skipped_updates"),
        not_negative=("seed", "keep_last", "keep_every", "resume_step", "kl_coef", "entropy_coef", "weight_decay"),
        below_one=("beta1", "beta2"), fractions=("engine_memory_fraction",), minutes=("timeout_minutes",),
    )
    require(args.max_engine_ratio >= 1 + args.clip_eps, "--max_engine_ratio", args.max_engine_ratio,
            f"must be at least 1 + --clip_eps = {1 + args.clip_eps:g}: a token with a larger ratio has no gradient")
    check_numbers(args, positive=("hint_steps", "hint_slices_max"), not_negative=("sft_coef",),
                  fractions=("p_high", "p_low"))
    check_output_dir(args.output_dir, args.resume, args.overwrite)
    run = checkpoint.describe_run(vars(args), inputs.problems, inputs.test_problems)
    start, changes = checkpoint.find(args.output_dir, args.resume, args.resume_step, args.total_steps, run,
                                     args.allow_changes)
    num_updates = args.prompts_per_step // args.mini_batch_prompts
    if args.check:
        print_plan(Path(__file__).stem, inputs, {
            "steps": args.total_steps,
            "rollouts per step": f"{args.prompts_per_step} prompts x {args.group_size} responses = "
                                 f"{args.prompts_per_step * args.group_size}",
            "updates per step": f"{num_updates}, of {args.mini_batch_prompts * args.group_size} rollouts each",
            "tokens per micro-batch": f"at most {args.max_tokens_per_micro_batch} on each process",
            **memory_plan(inputs, vars(args)),
        })
        return

    device = processes.start(args.output_dir, args.timeout_minutes)
    dtype = resolve_dtype(args.dtype, device)
    actor = Actor(
        load_model(args.model, dtype), betas=(args.beta1, args.beta2), weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm, temperature=args.temperature, zero_stage=args.zero_stage,
        offload=args.offload, gradient_checkpointing=args.gradient_checkpointing,
    )
    reference = None
    if args.kl_coef > 0:
        reference = load_reference(load_model(args.model, dtype), args.temperature, args.zero_stage, args.offload)
    tokenizer = inputs.tokenizer
    engine = build_engine(
        inputs.engine, actor, tokenizer, max_length=args.max_prompt_length + args.max_response_length,
        kv_cache_gb=args.kv_cache_gb, free_replica=args.free_replica, tp_size=args.tp_size,
        memory_fraction=args.engine_memory_fraction, sleep_level=args.sleep_level,
    )
    if args.overwrite:
        checkpoint.clear(args.output_dir)
    if args.resume:
        checkpoint.load(args.output_dir, start, actor)
    logger = Logger(args.output_dir, args, distributed.is_main(), args.total_steps, start if args.resume else None)

    logger.print(inputs.notes)
    if changes:
        logger.print("resumed with --allow_changes: " + "; ".join(changes))

    dry_run(actor, engine, vars(args), device, logger)
    guard = UpdateGuard(args.output_dir, args.max_skipped_updates)
    processes.listen()
    for done in range(start, args.total_steps + 1):  # steps that lie behind; the first to be taken is step 1
        is_end, is_interrupted = done == args.total_steps, processes.stop_requested()

        # 0. evaluate and save
        if (done % args.eval_every == 0 or is_end) and not (args.resume and done == start):
            engine.sync()
            responses = evaluate(engine, inputs.test_problems, tokenizer, args.max_prompt_length,
                                 args.max_response_length, args.bos)
            logger.log_evaluation(done, {f"eval/{name}": value for name, value in summary(responses).items()})
            logger.log_sample(done, **responses[done % len(responses)].texts(), kind="evaluation")
        if done > start and (done % args.save_every == 0 or is_end or is_interrupted):
            checkpoint.save(args.output_dir, done, actor, tokenizer, run, args.keep_last, args.keep_every)
        if is_end or is_interrupted:
            break
        step, watch = done + 1, Stopwatch(done + 1)

        # 1. problems
        problems = distributed.share(problems_of_step(inputs.problems, step, args.prompts_per_step, args.seed))
        prompts = [
            build_prompt(problem, tokenizer, args.max_prompt_length, args.bos, draw_hint(problem, step, args))
            for problem in problems
        ]  # fmt: skip

        # 2. rollout
        engine.sync()
        watch.lap("sync")
        groups = engine.generate(prompts, args.group_size, args.max_response_length, args.temperature, args.seed, step)
        engine.sleep()
        watch.lap("rollout")

        # 3. reward and advantage
        scores = verify(groups, tokenizer)
        rewards = torch.tensor([[score.reward for score in group] for group in scores])  # (P, G)
        advantages = group_advantages(rewards)
        watch.lap("reward")

        # 4. batch
        mismatch = engine_mismatch(groups, actor, device, args.max_logprob_mismatch, args.max_tokens_per_micro_batch)
        old_scorer = actor if args.old_logprobs == "actor" and num_updates > 1 else None
        mini_batches = [
            [with_logprobs(micro_batch, old_scorer, reference) for micro_batch in mini_batch]
            for mini_batch in pack_mini_batches(groups, advantages.tolist(), num_updates,
                                                args.max_tokens_per_micro_batch, device, args.share_prefix)
        ]
        watch.lap("logprobs")
        if args.dump_batch and done == start:
            logger.print(describe_group(mini_batches[0][0], tokenizer))

        # 5. update
        losses = LossMeans()
        for mini_batch in mini_batches:
            num_response_tokens = count_tokens([micro_batch.response_mask for micro_batch in mini_batch])
            num_hint_tokens = count_tokens([micro_batch.hint_mask for micro_batch in mini_batch])
            for number, micro_batch in enumerate(mini_batch, start=1):
                logprobs, entropies = actor(micro_batch)  # (N,), (N,)
                if args.old_logprobs == "engine":
                    old_logprobs, max_ratio = micro_batch.engine_logprobs, args.max_engine_ratio
                    losses.add_ratios(logprobs, old_logprobs, micro_batch.response_mask, num_response_tokens, max_ratio)
                else:
                    old_logprobs = logprobs.detach() if num_updates == 1 else micro_batch.old_logprobs
                    max_ratio = math.inf
                ref_logprobs = logprobs.detach() if reference is None else micro_batch.ref_logprobs
                surrogate = clipped_surrogate(logprobs, old_logprobs, micro_batch.advantages, args.clip_eps, max_ratio)
                divergence = k3_divergence(logprobs, ref_logprobs)
                pg_loss = masked_mean(surrogate, micro_batch.response_mask, num_response_tokens)
                kl_loss = masked_mean(divergence, micro_batch.response_mask, num_response_tokens)
                entropy = masked_mean(entropies, micro_batch.response_mask, num_response_tokens)
                sft_loss = masked_mean(-logprobs, micro_batch.hint_mask, num_hint_tokens)
                loss = pg_loss + args.kl_coef * kl_loss - args.entropy_coef * entropy + args.sft_coef * sft_loss
                actor.backward(loss, is_last=number == len(mini_batch))
                losses.add(sft_loss=sft_loss)
                losses.add(loss=loss, pg_loss=pg_loss, kl_loss=kl_loss, entropy=entropy)
            guard.note(step, actor.step(args.lr), losses, mini_batch)
        watch.lap("update")

        metrics = rollout_metrics(groups, scores, watch.seconds) | mismatch | losses.means(num_updates)
        logger.log_training(step, metrics | guard.metrics() | {"lr": args.lr})
        if step % args.eval_every == 0:
            logger.log_sample(step, **rollout_texts(groups[0][0], scores[0][0], tokenizer), kind="training")

    logger.close()
    if distributed.is_main() and not is_end:
        print(f"interrupted after step {done}, saved; go on with --resume", flush=True)
    elif distributed.is_main():
        table = closing_table(args.output_dir, best_constant_answer(inputs.test_problems))
        print(f"curves: {plot_curves(args.output_dir)}\n\n{table}", flush=True)
    processes.end()


if __name__ == "__main__":
    run_script(main, Args)
