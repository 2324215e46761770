"""Walks the whole path of a model that CompVis released, with random weights of the same names, shapes and file size.

``python -m benchmarks.compvis --model imagenet --folder /tmp/imagenet`` writes such a checkpoint and a database of a
million random unit vectors in CompVis' form, checks the one and imports the other, loads both, searches, and samples.
It prints one line of JSON for each phase, which runs in a process of its own. Peaks are of the resident memory
(Linux only), and include the pages of the checkpoint that are mapped while it is loaded. Seconds are those of the
wall, ``cpu`` those of the processor. The folder is removed at the end unless ``--keep`` is given.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.networks import status
from ldm.checkpoint import write_training_state, write_weights
from ldm.config import read_config, write_config
from ldm.files import located, write_json
from ldm.util import instantiate_from_config

PROMPT = "a happy bear reading a newspaper, oil on canvas"
# The settings of CompVis' scripts.
RDM: dict[str, Any] = {"scale": 2.0}
RARM: dict[str, Any] = {"scale": 1.0, "top_k": 256}
LARGE: dict[str, Any] = {"scale": 5.0, "k": 10, "tokens": "both", "tile": 256}
# Of each model: the folder of its config, its CLIP, whether its file has the states of AdamW, and how it is sampled.
MODELS: dict[str, tuple[str, str, bool, dict[str, Any]]] = {
    "imagenet": ("models/rdm/imagenet", "ViT-B-32-quickgelu", True, RDM),
    "ffhq": ("models/rdm/ffhq", "ViT-B-32-quickgelu", True, RDM),
    "768x768": ("models/rdm/768x768", "ViT-L-14-quickgelu", False, LARGE),
    "rarm": ("models/rarm/dogs", "ViT-B-32-quickgelu", True, RARM),
}
BLOCK = 100_000  # rows that are made at a time


def computed(place: str) -> dict[str, Any]:
    """Returns what follows from the architecture: parameters, memory of the weights, and operations.

    A network is evaluated for one image, without guidance: the U-Net once, the transformer for all codes of an image.
    An operation is a multiplication or an addition.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from ldm.run import described_model

    config = read_config([located(place) / "config.yaml"])["model"]
    params = config["params"]
    model: Any = described_model(config).eval()
    stage = model.first_stage_model
    if "unet_config" in params:
        unet, net = params["unet_config"]["params"], model.model.diffusion_model
        given = [torch.empty(1, unet["in_channels"], *[unet["image_size"]] * 2), torch.zeros(1, dtype=torch.long)]
        width, latent = unet["context_dim"], torch.empty(1, stage.post_quant_conv.in_channels, *given[0].shape[2:])
    else:
        sizes, net = params["transformer_config"]["params"], model.transformer
        given = [torch.zeros(1, sizes["sequence_length"], dtype=torch.long)]
        width, side = sizes["context_dim"], round(sizes["sequence_length"] ** 0.5)
        latent = torch.empty(1, stage.post_quant_conv.in_channels, side, side)
    calls = {
        "evaluation_tflop": lambda: net(*(each.to("meta") for each in given), torch.empty(1, 4, width, device="meta")),
        "decode_tflop": lambda: stage.decoder(stage.post_quant_conv(latent.to("meta"))),
    }
    found = {}
    for name, call in calls.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()
        found[name] = round(counter.get_total_flops() / 1e12, 3)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "weights_gb": round(parameters * 4 / 1e9, 2), **found}


def write_model(folder: Path, place: str, optimiser: bool) -> dict[str, Any]:
    """Writes ``model.ckpt`` and ``config.yaml``, whose embedder is the CLIP in ``folder/clip``."""
    config = read_config([located(place) / "config.yaml"])
    config["data"]["params"]["embedder"]["params"] = {"model": str(folder / "clip"), "preprocessing": "compvis"}
    write_config(folder / "config.yaml", config)
    torch.manual_seed(0)
    params = config["model"]["params"]
    params["first_stage_config"]["params"].pop("ckpt_path", None)
    model = instantiate_from_config(config["model"])
    state = model.state_dict()
    for tensor in state.values():  # what starts at zero would hide the rest of the network
        if tensor.is_floating_point() and tensor.ndim > 1 and not tensor.any():
            tensor.normal_(0, 0.02)
    content: dict[str, Any] = {"epoch": 0, "global_step": 1, "state_dict": state}
    if optimiser:
        trained = model.transformer if hasattr(model, "transformer") else model.model
        sizes = [parameter.shape for parameter in trained.parameters()]
        moments = {n: {"exp_avg": torch.zeros(s), "exp_avg_sq": torch.zeros(s)} for n, s in enumerate(sizes)}
        content["optimizer_states"] = [{"state": moments}]
    write_training_state(folder / "model.ckpt", content)
    return {"file_gb": round((folder / "model.ckpt").stat().st_size / 1e9, 3)}


def write_clip(folder: Path, clip: str) -> None:
    """Writes a CLIP of an architecture of open_clip with random weights, or a copy of one in a folder."""
    if located(clip).is_dir():
        shutil.copytree(located(clip), folder / "clip", dirs_exist_ok=True)
        return
    import open_clip

    torch.manual_seed(0)
    write_weights(folder / "clip/open_clip_model.safetensors", open_clip.create_model(clip).state_dict())
    preprocessing = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    known = {"model_cfg": open_clip.get_model_config(clip), "preprocess_cfg": preprocessing}
    write_json(folder / "clip/open_clip_config.json", known)


def write_database(folder: Path, rows: int) -> dict[str, Any]:
    """Writes a part of random unit vectors as CompVis does, imports it, and builds its index."""
    from rdm.retrieval.config import load_embedder
    from rdm.retrieval.index.faiss_index import NeighbourIndex
    from rdm.retrieval.upkeep.imports import import_database

    config = read_config([folder / "config.yaml"])
    embedder = load_embedder(config["data"]["params"]["embedder"])
    rng, vectors = np.random.default_rng(0), np.empty((rows, embedder.dim), np.float16)
    for start in range(0, rows, BLOCK):
        block = rng.standard_normal((min(BLOCK, rows - start), embedder.dim), dtype=np.float32)
        vectors[start : start + BLOCK] = block / np.linalg.norm(block, axis=1, keepdims=True)
    part = folder / f"{rows}x{embedder.dim}-part_1.npz"
    np.savez(part, embedding=vectors, img_id=np.arange(rows), patch_coords=np.zeros((rows, 4), np.int64))
    del vectors
    imported = timed(lambda: import_database([part], folder / "database", embedder, progress=False))
    size = sum(file.stat().st_size for file in (folder / "database").rglob("*") if file.is_file())
    part.unlink()
    indexed = timed(lambda: NeighbourIndex.open(imported["result"]))
    return {
        "rows": rows,
        "part_gb": round(vectors_gb(rows, embedder.dim), 2),
        "import_s": imported["s"],
        "import_peak_gb": imported["peak_gb"],
        "database_gb": round(size / 1e9, 2),
        "index": indexed["result"].card["factory"],
        "index_s": indexed["s"],
        "index_cpu_s": indexed["cpu_s"],
        "index_peak_gb": indexed["peak_gb"],
    }


def vectors_gb(rows: int, dim: int) -> float:
    """Returns the size of vectors in float16 in GB."""
    return rows * dim * 2 / 1e9


def check(folder: Path) -> dict[str, Any]:
    """Checks the checkpoint without reading its numbers, as ``scripts/check_checkpoint.py`` does."""
    from rdm.convert.released import report

    done = timed(lambda: list(report(folder / "model.ckpt", folder / "config.yaml")))
    return {"says": done["result"], **{name: done[name] for name in ("s", "peak_gb")}}


def draw(folder: Path, precision: str, steps: int, options: dict[str, Any]) -> dict[str, Any]:
    """Loads the model, searches for a text, and samples an image."""
    import rdm
    from rdm.sampling.samples import sample
    from rdm.sampling.settings import Settings
    from rdm.sampling.ways import texts

    loaded = timed(lambda: rdm.load(str(folder / "model.ckpt"), database=str(folder / "database")))
    pipeline, options = loaded["result"], dict(options)
    held, given = status("RssAnon"), {name: options.pop(name) for name in ("k", "tokens") if name in options}
    first = timed(lambda: texts(pipeline, PROMPT, **given))
    again = timed(lambda: texts(pipeline, PROMPT + ", again", **given))
    search = timed(lambda: pipeline.retriever(again["result"].queries, k=given.get("k", pipeline.k)))
    if pipeline.model.kind == "diffusion":
        options |= {"sampler": "ddim", "steps": steps}
    settings = Settings.of(precision=precision, copy_threshold=None, batch_size=1, **options)
    wall, cpu = [time.perf_counter()], [time.process_time()]

    def watch(done: int, total: int, preview: Callable[[], Any]) -> None:
        del done, total, preview
        wall.append(time.perf_counter())
        cpu.append(time.process_time())

    drawn = timed(lambda: sample(pipeline, again["result"], settings, watch=watch))
    end = time.perf_counter(), time.process_time()
    image = drawn["result"].images
    if not bool(image.isfinite().all()):
        raise ValueError(f"the image has values that are not finite in precision {precision}")
    return {
        "precision": precision,
        "load_s": loaded["s"],
        "load_peak_gb": loaded["peak_gb"],
        "held_gb": round(held, 2),
        "clip_index_and_search_s": first["s"],
        "embed_and_search_s": again["s"],
        "search_ms": round(1000 * search["s"], 2),
        "size": list(image.shape[2:]),
        "steps": len(wall) - 1,
        "step_s": round(statistics.median(np.diff(wall)), 3),
        "step_cpu_s": round(statistics.median(np.diff(cpu)), 3),
        "decode_s": round(end[0] - wall[-1], 2),
        "decode_cpu_s": round(end[1] - cpu[-1], 2),
        "image_s": drawn["s"],
        "draw_peak_gb": drawn["peak_gb"],
    }


def timed(call: Callable[[], Any]) -> dict[str, Any]:
    """Returns the result of a call, the seconds it took, and the peak of the memory meanwhile in GB."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the memory in use
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    seconds = {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return {
        "result": result,
        **{name: round(value, 4) for name, value in seconds.items()},
        "peak_gb": round(status("VmHWM"), 2),
    }


def in_children(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the figures of each phase, which is run in a process of its own."""
    phases: list[tuple[str, ...]] = [("compute",), ("write",), ("check",), *([("database",)] if args.rows else [])]
    phases += [("draw", "--precisions", precision) for precision in args.precisions]
    words = ["--model", args.model, "--folder", str(args.folder), "--rows", str(args.rows), "--steps", str(args.steps)]
    words += ["--threads", str(args.threads)]
    words += [word for name in ("place", "clip") if getattr(args, name) for word in (f"--{name}", getattr(args, name))]
    for phase, *more in phases:
        command = [sys.executable, "-m", "benchmarks.compvis", *words, "--child", phase, *more]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 (ourselves)
        yield {"model": args.model, "phase": phase, "threads": args.threads, **json.loads(done.stdout.splitlines()[-1])}


def phase(args: argparse.Namespace) -> dict[str, Any]:
    """Runs one phase and returns its figures."""
    place, clip, optimiser, options = MODELS[args.model]
    if args.child == "compute":
        return computed(args.place or place)
    if args.child == "write":
        write_clip(args.folder, args.clip or clip)
        return write_model(args.folder, args.place or place, optimiser)
    if args.child == "database":
        return write_database(args.folder, args.rows)
    return check(args.folder) if args.child == "check" else draw(args.folder, args.precisions[0], args.steps, options)


def main() -> None:
    """Measures the model of the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", choices=MODELS, default="imagenet", help="the model whose path is walked")
    p.add_argument("--folder", type=Path, required=True, help="folder for 4 to 16 GB of files, which must not exist")
    p.add_argument("--rows", type=int, default=1_000_000, help="rows of the database; 0: it is in the folder already")
    p.add_argument("--steps", type=int, default=10, help="DDIM steps that are measured")
    p.add_argument("--precisions", nargs="+", default=["32", "bf16"], help="precisions of the networks")
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of CPU threads")
    p.add_argument("--place", help="folder with the config of another model of the same kind")
    p.add_argument("--clip", help="another CLIP: an architecture of open_clip, or a folder")
    p.add_argument("--keep", action="store_true", help="keep the folder")
    p.add_argument("--child", choices=("compute", "write", "check", "database", "draw"), help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        print(json.dumps(phase(args)))
        return
    if args.rows and args.folder.exists():
        p.error(f"--folder: {args.folder} exists; name a folder that does not, as it is removed at the end")
    try:
        for figures in in_children(args):
            print(json.dumps(figures), flush=True)
    finally:
        if not args.keep:
            shutil.rmtree(args.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
