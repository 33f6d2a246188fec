"""Runs of an experiment as files, written by hand."""

import json


def write_run(folder, model, accuracies, seed=0, every=10, n=100, data="words", **tokens):
    """A run in `folder` from `model`, evaluated at every `every` steps; a training line of `tokens`, a number each,
    stands for the steps between two evaluations."""
    folder.mkdir(parents=True)
    args = {"model": str(model), "data": str(data), "seed": seed, "eval_problems": 0,
            "total_steps": every * (len(accuracies) - 1)}
    (folder / "args.json").write_text(json.dumps(args))
    lines = []
    for number, accuracy in enumerate(accuracies):
        if number:
            named = {name if "/" in name else f"tokens/{name}": value for name, value in tokens.items()}
            lines.append({"step": number * every, "loss": 0.0} | named)
        lines.append({"step": number * every, "eval/n": n, "eval/accuracy": accuracy, "eval/format": 1.0,
                      "eval/response_tokens": 9.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
