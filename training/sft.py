"""SFT: supervised fine-tuning on full reference solutions.

    loss = sft_loss

sft_loss is the mean negative log-likelihood of the tokens of the demonstration (solution, answer, end of sequence); the
prompt is masked. To the packer a demonstration is a hint that shows everything, followed by an empty response.

Started as `deepspeed --num_gpus 2 training/<this file> --model M --data countdown --output_dir O`.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inference.hybrid_engine import build_engine
from utils import checkpoint
from utils.actor import Actor, load_model, resolve_dtype
from utils.data import best_constant_answer, problems_of_step
from utils.evaluation import evaluate, summary
from utils.guards import GUARD_PROMPTS, UpdateGuard, engine_mismatch
from utils.inspection import describe_group
from utils.losses import masked_mean
from utils.metrics import LossMeans, Stopwatch, count_tokens
from utils.packing import pack_mini_batches
from utils.prompts import build_demonstration, build_prompt
from utils.report.curves import closing_table, plot_curves
from utils.run import distributed, processes
from utils.run.cli import run_script
from utils.run.errors import check_numbers
from utils.run.logger import Logger
from utils.run.output_dir import check_output_dir
from utils.setup.inputs import check_demonstration_lengths, load_inputs
from utils.setup.memory_probe import dry_run
from utils.setup.plan import check_batch, memory_plan, print_plan
from utils.types import Rollout


@dataclass
class Args:
    model: str  # Hugging Face name or local folder of the model to train
    data: str  # built-in task (countdown, kk_logic, math, tree), or a folder with train.parquet and test.parquet
    output_dir: str  # folder of this run: metrics, samples, checkpoints, curves
    seed: int = 0  # of everything that is drawn
    total_steps: int = 200  # training steps: 5 epochs of 10,240 demonstrations
    eval_every: int = 25  # steps between evaluations (greedy); also before the first and after the last step
    eval_problems: int = 0  # test problems per evaluation; 0 is all
    save_every: int = 100  # steps between checkpoints; also after the last step
    keep_last: int = 0  # checkpoints that are kept, the newest; 0 is all
    keep_every: int = 0  # checkpoints at multiples of this step are kept too; 0 is none
    resume: bool = False  # go on from the latest checkpoint in output_dir
    resume_step: int = 0  # with resume: the checkpoint to go on from; 0 is the latest
    allow_changes: bool = False  # with resume: settings and data may differ from the checkpoint's
    overwrite: bool = False  # replace the run in output_dir
    prompts_per_step: int = 256  # demonstrations, over all processes
    mini_batch_prompts: int = 256  # demonstrations per optimiser update, over all processes
    max_prompt_length: int = 256  # tokens of the prompt
    max_response_length: int = 1024  # tokens of a response in evaluation
    max_length: int = 1024  # tokens of prompt and demonstration; longer ones are left out, with a count
    skip_long_prompts: bool = False  # leave out problems whose prompt is too long instead of stopping
    bos: bool = True  # begin prompts with the tokenizer's beginning-of-sequence token, if it has one (Llama)
    lr: float = 1e-5  # peak learning rate of AdamW
    warmup: float = 0.1  # share of the steps over which the learning rate rises; then it falls along a cosine to 0
    beta1: float = 0.9  # AdamW
    beta2: float = 0.95  # AdamW
    weight_decay: float = 0.01  # AdamW
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm
    max_skipped_updates: int = 3  # updates skipped in a row (loss or gradient not finite) after which the run stops
    max_tokens_per_micro_batch: int = 16384  # tokens of one forward pass on one process, padding included
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
    timeout_minutes: float = 30.0  # a process that gets nowhere, or waits for the others, for so long ends the run
    tracker: Literal["none", "wandb"] = "none"  # where metrics are shown too; never fatal
    dry_run: Literal["auto", "always", "never"] = "auto"  # the worst micro-batch before step 1; auto: with CUDA
    dump_batch: bool = False  # print the first demonstration with the loss that each of its tokens gets
    check: bool = False  # check everything that needs no model, print the plan, and stop


def learning_rate(step: int, args: Args) -> float:
    """Linear warm-up to `lr`, then a cosine that reaches 0 after the last step."""
    warmup_steps = round(args.warmup * args.total_steps)
    if step <= warmup_steps:
        return args.lr * step / warmup_steps
    return args.lr / 2 * (1 + math.cos(math.pi * (step - warmup_steps) / (args.total_steps - warmup_steps + 1)))


def main(args: Args) -> None:
    # Whatever can be wrong without a model is found here.
    inputs = load_inputs(
        model=args.model, data=args.data, splits=("train", "test"), max_prompt_length=args.max_prompt_length,
        max_response_length=args.max_response_length, eval_problems=args.eval_problems,
        skip_long_prompts=args.skip_long_prompts, bos=args.bos, may_be_unreachable=args.check,
        tracker=args.tracker,
        engine=args.engine, tp_size=args.tp_size, sleep_level=args.sleep_level,
        needs=("answer",), max_length=args.max_length,
    )
    demonstrations, num_long = inputs.problems, 0
    if inputs.tokenizer is not None:
        demonstrations, num_long = check_demonstration_lengths(inputs.problems, inputs.tokenizer, args.max_length,
                                                                args.bos)
    check_batch(
        prompts_per_step=args.prompts_per_step, mini_batch_prompts=args.mini_batch_prompts,
        longest_group=args.max_length, longest_group_is="--max_length",
        max_tokens_per_micro_batch=args.max_tokens_per_micro_batch, num_problems=len(demonstrations),
    )
    check_numbers(
        args, positive=("total_steps", "eval_every", "save_every", "lr", "max_grad_norm", "kv_cache_gb",
                        "engine_memory_fraction", "max_logprob_mismatch", "max_skipped_updates"),
        not_negative=("seed", "keep_last", "keep_every", "resume_step", "weight_decay"), below_one=("beta1", "beta2"),
        fractions=("warmup", "engine_memory_fraction"), minutes=("timeout_minutes",),
    )
    check_output_dir(args.output_dir, args.resume, args.overwrite)
    run = checkpoint.describe_run(vars(args), inputs.problems, inputs.test_problems)
    start, changes = checkpoint.find(args.output_dir, args.resume, args.resume_step, args.total_steps, run,
                                     args.allow_changes)
    num_updates = args.prompts_per_step // args.mini_batch_prompts
    if args.check:
        print_plan(Path(__file__).stem, inputs, {
            "steps": f"{args.total_steps}, {args.total_steps * args.prompts_per_step / len(demonstrations):.2f} epochs",
            "demonstrations per step": args.prompts_per_step,
            "left out as longer than --max_length": num_long,
            "updates per step": f"{num_updates}, of {args.mini_batch_prompts} demonstrations each",
            "tokens per micro-batch": f"at most {args.max_tokens_per_micro_batch} on each process",
            **memory_plan(inputs, vars(args)),
        })
        return

    device = processes.start(args.output_dir, args.timeout_minutes)
    actor = Actor(
        load_model(args.model, resolve_dtype(args.dtype, device)), betas=(args.beta1, args.beta2),
        weight_decay=args.weight_decay, max_grad_norm=args.max_grad_norm, temperature=1.0, zero_stage=args.zero_stage,
        offload=args.offload, gradient_checkpointing=args.gradient_checkpointing,
    )
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
    if num_long:
        logger.print(f"{num_long} demonstrations are longer than --max_length {args.max_length} and left out")

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
            few = [build_prompt(problem, tokenizer, args.max_prompt_length, args.bos)
                   for problem in distributed.share(demonstrations[: args.mini_batch_prompts])[:GUARD_PROMPTS]]
            groups = engine.generate(few, 1, args.max_response_length, temperature=1.0, seed=args.seed, step=done)
            engine.sleep()
            mismatch = engine_mismatch(groups, actor, device, args.max_logprob_mismatch,
                                       args.max_tokens_per_micro_batch)
            logger.log_evaluation(
                done, mismatch | {f"eval/{name}": value for name, value in summary(responses).items()}
            )
            logger.log_sample(done, **responses[done % len(responses)].texts(), kind="evaluation")
        if done > start and (done % args.save_every == 0 or is_end or is_interrupted):
            checkpoint.save(args.output_dir, done, actor, tokenizer, run, args.keep_last, args.keep_every)
        if is_end or is_interrupted:
            break
        step, watch = done + 1, Stopwatch(done + 1)

        # 1. problems
        problems = distributed.share(problems_of_step(demonstrations, step, args.prompts_per_step, args.seed))

        # 4. batch
        groups = [
            [Rollout(build_demonstration(problem, tokenizer, args.bos), response_ids=[], logprobs=[], finish="stop")]
            for problem in problems
        ]
        mini_batches = pack_mini_batches(groups, [[0.0]] * len(groups), num_updates, args.max_tokens_per_micro_batch,
                                         device)
        watch.lap("batch")
        if args.dump_batch and done == start:
            logger.print(describe_group(mini_batches[0][0], tokenizer))

        # 5. update
        losses = LossMeans()
        for mini_batch in mini_batches:
            num_hint_tokens = count_tokens([micro_batch.hint_mask for micro_batch in mini_batch])
            for number, micro_batch in enumerate(mini_batch, start=1):
                logprobs, _ = actor(micro_batch)  # (N,)
                sft_loss = masked_mean(-logprobs, micro_batch.hint_mask, num_hint_tokens)
                loss = sft_loss
                actor.backward(loss, is_last=number == len(mini_batch))
                losses.add(loss=loss, sft_loss=sft_loss)
            guard.note(step, actor.step(learning_rate(step, args)), losses, mini_batch)
        watch.lap("update")

        metrics = losses.means(num_updates) | watch.seconds | {"lr": learning_rate(step, args)}
        logger.log_training(step, metrics | guard.metrics())

    logger.close()
    if distributed.is_main() and not is_end:
        print(f"interrupted after step {done}, saved; go on with --resume", flush=True)
    elif distributed.is_main():
        table = closing_table(args.output_dir, best_constant_answer(inputs.test_problems))
        print(f"curves: {plot_curves(args.output_dir)}\n\n{table}", flush=True)
    processes.end()


if __name__ == "__main__":
    run_script(main, Args)
