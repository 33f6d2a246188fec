"""On-policy self-distillation: the model is its own teacher, who has been shown the solution (arXiv 2601.18734).

    loss = pg_loss + kl_coef * kl_loss - entropy_coef * entropy

The teacher is the initial model with a reference solution before the problem. It scores what the policy has sampled:
a token's advantage in pg_loss, PPO's clipped surrogate, is log p_teacher - log p_policy. Rewards are shown, no more;
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

from inference.hybrid_engine import build_engine
from utils.actor import Actor, load_reference
from utils.data import problems_of_step
from utils.evaluation import evaluate, some_texts, summary
from utils.guards import UpdateGuard, engine_mismatch
from utils.inspection import describe_group
from utils.losses import clipped_surrogate, k3_divergence, masked_mean
from utils.metrics import LossSums, Stopwatch, count_tokens
from utils.packing import against_teacher, pack_mini_batches, response_logprobs, with_logprobs
from utils.pretrained import load_model, resolve_dtype
from utils.report.closing import close_run
from utils.responses import by_response
from utils.rollouts import behind_solutions, group_texts, rollout_metrics, score_rollouts, share_shown
from utils.run import distributed, processes
from utils.run.cli import run_script
from utils.run.errors import BelowOne, Fraction, Minutes, NotNegative, Positive, require
from utils.setup.memory_probe import probe_memory
from utils.setup.plan import make_plan
from utils.types import LongestGroup, Sampling


@dataclass
class Args:
    # run
    model: str  # Hugging Face name or local folder of the model to train
    data: str  # built-in task (countdown, kk_logic, math, sudoku, tree), folder with train, test.parquet, or own data
    output_dir: str  # folder of this run: metrics, samples, checkpoints, curves
    test_data: str = ""  # own data: what is tested on; empty: their test split, else 10 % of the prompts held out
    prompt_column: str = ""  # own data: the problem; empty: prompt, question, problem or instruction
    solution_column: str = ""  # own data: steps to the answer; empty: solution, reasoning or rationale, if there
    answer_column: str = ""  # own data: what is verified; empty: answer, final_answer, target, else the last \boxed
    verifier: str = "competition_math"  # own data: a name in rewards/, or your Python file with `verify`
    seed: NotNegative[int] = 0  # of everything that is drawn
    total_steps: Positive[int] = 500  # training steps
    eval_every: Positive[int] = 25  # steps between evaluations (greedy); also before the first and after the last step
    eval_problems: NotNegative[int] = 0  # test problems per evaluation; 0 is all
    save_every: Positive[int] = 100  # steps between checkpoints; also after the last step
    save_minutes: NotNegative[float] = 0.0  # a checkpoint too where the last one is as old, after a step; 0 is never
    node_local_output: bool = False  # output_dir is a disk of each machine's own: each keeps its part of the state
    keep_last: NotNegative[int] = 0  # checkpoints that are kept, the newest; 0 is all
    keep_every: NotNegative[int] = 0  # checkpoints at multiples of this step are kept too; 0 is none
    background_save: bool = False  # checkpoints are written while the run goes on, from copies in CPU memory
    resume: bool = False  # go on from the latest checkpoint in output_dir
    resume_step: NotNegative[int] = 0  # with resume: the checkpoint to go on from; 0 is the latest
    allow_changes: bool = False  # with resume: settings and data may differ from the checkpoint's
    reshape: bool = False  # with resume: processes, zero_stage and offload may differ, states are cut anew
    overwrite: bool = False  # replace the run in output_dir

    # a step
    prompts_per_step: Positive[int] = 256  # prompts, over all processes
    group_size: Positive[int] = 1  # responses per prompt
    mini_batch_prompts: Positive[int] = 64  # prompts per optimiser update, over all processes
    max_prompt_length: Positive[int] = 256  # tokens that the model, and the teacher, is given before it answers
    max_response_length: Positive[int] = 1024  # tokens
    skip_long_prompts: bool = False  # leave out problems whose prompt is too long instead of stopping
    bos: bool = True  # begin prompts with the tokenizer's beginning-of-sequence token, if it has one (Llama)
    chat_template: str = "none"  # prompts are a user's turn in: the tokenizer's (model), or that of a jinja FILE
    system_prompt: str = ""  # with chat_template: the turn before it
    think: bool = True  # with --no_think the template is told enable_thinking=False, if it knows that
    temperature: Positive[float] = 1.0  # of sampling, and of the log-probabilities in the losses

    # loss
    clip_eps: Positive[float] = 0.2  # PPO clips the probability ratio to 1 - eps .. 1 + eps; 1e9 is no clip
    clip_eps_high: NotNegative[float] = 0.0  # the upper bound's own eps; 0 is clip_eps
    ratio: Literal["token", "response"] = "token"  # of a token, or (GSPO) of a response; responses then weigh alike
    constant_normaliser: bool = False  # pg_loss is divided by the most tokens there could be, not by those there are
    kl_coef: NotNegative[float] = 0.0  # weight of kl_loss
    entropy_coef: NotNegative[float] = 0.001  # weight of the entropy bonus
    old_logprobs: Literal["actor", "engine"] = "actor"  # of the sampling policy: recomputed, or what the engine said
    max_engine_ratio: Positive[float] = 2.0  # engine's: importance weights are truncated here, per token

    # optimiser
    lr: Positive[float] = 1e-6  # learning rate of AdamW, constant
    beta1: BelowOne = 0.9  # AdamW
    beta2: BelowOne = 0.999  # AdamW
    weight_decay: NotNegative[float] = 0.01  # AdamW
    max_grad_norm: Positive[float] = 1.0  # gradients are scaled down to this norm
    lora_rank: NotNegative[int] = 0  # LoRA: adapters of this rank learn, beside frozen weights; 0: all weights learn
    lora_alpha: Positive[float] = 32.0  # adapters count lora_alpha / lora_rank times
    lora_targets: str = "all-linear"  # layers with adapters: all but the head, or ends of names (q_proj,v_proj)

    # memory
    max_tokens_per_micro_batch: Positive[int] = 16384  # tokens of one forward pass on one process, padding included
    share_prefix: bool = True  # training computes a group's prompt once; with --no_share_prefix once per response
    zero_stage: Literal[0, 1, 2, 3] = 3  # what DeepSpeed shards: 1 optimiser, 2 + gradients, 3 + weights
    offload: bool = False  # optimiser states (and weights at stage 3) wait in CPU memory
    gradient_checkpointing: bool = False  # recompute activations in the backward pass
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # of weights; auto: bfloat16 on GPU, float32 on CPU
    matmul_precision: Literal["highest", "high", "medium"] = "highest"  # of products in float32, as PyTorch calls them

    # engine
    engine: Literal["auto", "torch", "vllm", "deepspeed"] = "auto"  # what generates; auto: vllm with CUDA, else torch
    kv_cache_gb: Positive[float] = 8.0  # keys and values while generating, GiB per process (vllm: on a CPU only)
    free_replica: bool = False  # torch, zero_stage 3: the gathered weights are dropped while the actor learns
    engine_memory_fraction: Fraction = 0.3  # vllm: share of the GPU's memory that it takes, its weights included
    sleep_level: Literal[0, 1, 2] = 0  # vllm: gives back while the actor learns: 1 its cache, 2 its weights too
    tp_size: Positive[int] = 1  # vllm: processes that share an engine (tensor parallel)

    # guards and what is shown
    max_logprob_mismatch: Positive[float] = 0.1  # the run stops where engine and actor differ by more, mean nats
    max_skipped_updates: Positive[int] = 3  # skipped in a row (loss or gradient not finite), after which the run stops
    timeout_minutes: Minutes[float] = 30.0  # without progress of a process, or its waiting for others, the run ends
    probe_memory: Literal["auto", "always", "never"] = "auto"  # run the largest micro-batch first; auto: with CUDA
    tracker: tuple[Literal["none", "tensorboard", "wandb", "trackio"], ...] = ("none",)  # show the metrics; never fatal
    verbosity: Literal["quiet", "normal", "verbose"] = "normal"  # quiet: warnings, evaluations and the end only
    profile_steps: str = ""  # A:B, steps that torch's profiler traces; FLOP/s by phase, in output_dir/profile
    dump_batch: bool = False  # print the first group with the loss that each of its tokens gets
    check: bool = False  # check everything that needs no model, print the plan, and stop


def main(args: Args) -> None:
    # Whatever can be wrong without a model is found here; --check prints the plan and stops.
    longest = LongestGroup(args.max_prompt_length, args.group_size, args.max_response_length, args.share_prefix)
    plan = make_plan(args, longest, needs=["hint"], temperature=args.temperature, has_reference=True)
    largest = 1 + (args.clip_eps_high or args.clip_eps)
    require(args.old_logprobs == "actor" or args.max_engine_ratio >= largest, "--max_engine_ratio",
            args.max_engine_ratio, f"must be at least the clip's {largest:g}: a token beyond it has no gradient")
    if args.check:
        return plan.print(Path(__file__).stem)

    device = processes.start(args.output_dir, args.timeout_minutes, args.matmul_precision)
    actor = Actor(
        load_model(args.model, resolve_dtype(args.dtype, device), plan.prompts.end_ids, plan.lora),
        betas=(args.beta1, args.beta2), weight_decay=args.weight_decay, max_grad_norm=args.max_grad_norm,
        temperature=args.temperature, zero_stage=args.zero_stage, offload=args.offload,
        gradient_checkpointing=args.gradient_checkpointing,
    )
    teacher = load_reference(args.model, actor)
    reference = teacher if args.kl_coef > 0 else None
    engine = build_engine(
        plan.engine, actor, plan.tokenizer, max_length=args.max_prompt_length + args.max_response_length,
        kv_cache_gb=args.kv_cache_gb, free_replica=args.free_replica, tp_size=args.tp_size,
        memory_fraction=args.engine_memory_fraction, sleep_level=args.sleep_level,
    )
    plan.restore(actor)
    logger = plan.open_logger()
    probe_memory(actor, engine, plan, logger)
    sampling = Sampling(args.group_size, args.max_response_length, args.temperature, args.seed)
    max_ratio = args.max_engine_ratio if args.old_logprobs == "engine" else math.inf
    guard = UpdateGuard(args.output_dir, args.max_skipped_updates)
    saver = plan.saver(actor, logger)  # heeds signals: after the libraries that set handlers of their own
    for num_done in plan.steps():  # updates done so far; `step` is the one now taken
        is_end = num_done == args.total_steps

        # 0. evaluate and save
        if (num_done % args.eval_every == 0 or is_end) and num_done != logger.evaluated:
            engine.sync()
            responses = evaluate(engine, plan.test_problems, plan.prompts, plan.greedy)
            logger.log_evaluation(num_done, {f"eval/{name}": value for name, value in summary(responses).items()})
            logger.log_samples(num_done, some_texts(responses, num_done), kind="evaluation")
        if num_done > plan.start and (num_done % args.save_every == 0 or is_end or saver.is_due()):
            saver.save(num_done)
        if is_end:
            break
        step, watch = num_done + 1, Stopwatch(num_done + 1)

        # 1. problems
        problems = distributed.share(problems_of_step(plan.problems, step, args.prompts_per_step, args.seed))
        prompts = [plan.prompts.build(problem) for problem in problems]

        # 2. rollout
        watch.begin("sync")
        engine.sync()
        watch.begin("rollout")
        groups = engine.generate(prompts, sampling, step)
        engine.sleep()

        # 3. reward
        watch.begin("reward")
        scores = score_rollouts(groups, plan.tokenizer)

        # 4. batch
        watch.begin("logprobs")
        mismatch = engine_mismatch(groups, actor, device, args.max_logprob_mismatch, args.max_tokens_per_micro_batch)
        old = "engine" if args.old_logprobs == "engine" else actor
        taught = behind_solutions(groups, plan.prompts)
        teachers = response_logprobs(teacher, taught, args.max_tokens_per_micro_batch, device, args.share_prefix)
        mini_batches = [
            [against_teacher(with_logprobs(micro_batch, old, reference)) for micro_batch in mini_batch]
            for mini_batch in pack_mini_batches(groups, teachers, plan.num_updates,
                                                args.max_tokens_per_micro_batch, device, args.share_prefix)
        ]
        if args.dump_batch and num_done == plan.start:
            logger.print(describe_group(mini_batches[0], plan.tokenizer))

        # 5. update
        watch.begin("update")
        losses = LossSums()
        for mini_batch in mini_batches:
            mini_batch = by_response(mini_batch) if args.ratio == "response" else mini_batch
            num_response_tokens = count_tokens([micro_batch.response_mask for micro_batch in mini_batch])
            num_pg_tokens = plan.most_response_tokens if args.constant_normaliser else num_response_tokens
            for number, micro_batch in enumerate(mini_batch, start=1):
                logprobs, entropies = actor(micro_batch)  # (N,), (N,)
                old_logprobs = logprobs.detach() if micro_batch.old_logprobs is None else micro_batch.old_logprobs
                ref_logprobs = logprobs.detach() if reference is None else micro_batch.ref_logprobs
                surrogate = clipped_surrogate(logprobs, old_logprobs, micro_batch.advantages, args.clip_eps, max_ratio,
                                              args.clip_eps_high, micro_batch.owners)
                divergence = k3_divergence(logprobs, ref_logprobs)
                pg_loss = masked_mean(surrogate, micro_batch.response_mask, num_pg_tokens)
                kl_loss = masked_mean(divergence, micro_batch.response_mask, num_response_tokens)
                entropy = masked_mean(entropies, micro_batch.response_mask, num_response_tokens)
                loss = pg_loss + args.kl_coef * kl_loss - args.entropy_coef * entropy
                actor.backward(loss, is_last=number == len(mini_batch))
                losses.add(loss=loss, pg_loss=pg_loss, kl_loss=kl_loss, entropy=entropy)
                losses.add(teacher_advantage=masked_mean(micro_batch.advantages, micro_batch.response_mask,
                                                         num_response_tokens))
                if args.old_logprobs == "engine":
                    losses.add_ratios(logprobs, old_logprobs, micro_batch.response_mask, num_response_tokens, max_ratio)
            grad_norm = actor.step(args.lr)
            guard.check(step, grad_norm, losses, mini_batch)
        watch.end()

        metrics = rollout_metrics(groups, scores, watch.seconds) | mismatch | losses.means(mini_batches)
        metrics |= share_shown(taught)
        logger.log_training(step, metrics | guard.metrics() | actor.gradients.norms() | {"lr": args.lr})
        if step % args.eval_every == 0:
            logger.log_samples(step, group_texts(groups[0], scores[0], plan.tokenizer), kind="training")

    logger.close()
    close_run(args.output_dir, plan.test_problems)
    processes.end()


if __name__ == "__main__":
    run_script(main, Args)
