"""Pictures made on the spot: folders of them, and a data set that tensorflow-datasets prepares."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def picture(label: int, number: int, side: int = 24) -> Image.Image:
    """A noisy picture whose colour tells the label."""
    rng = np.random.default_rng((label, number))
    colour = np.random.default_rng(label).integers(0, 200, 3)
    return Image.fromarray(
        (colour + rng.integers(0, 50, (side, side + number % 5, 3))).astype("u1")
    )


def folder(root: Path, counts: Mapping[str, int], ending: str = "png", side: int = 24) -> Path:
    """Files ``root/<key>/<number>.<ending>`` for ``{key: count}``; the last part is the class."""
    names = sorted({key.split("/")[-1] for key in counts})
    for key, count in counts.items():
        (root / key).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            image = picture(names.index(key.split("/")[-1]), k + len(key), side)
            image.save(root / key / f"{k}.{ending}")
    return root


def break_file(path: Path) -> None:
    """Cut the file's end off."""
    path.write_bytes(path.read_bytes()[:-40])


def prepare(
    data_dir: Path,
    name: str,
    classes: Sequence[str] | int,
    splits: Mapping[str, int],
    config: str = "",
    side: int = 24,
    text: Callable[[int, int], str] | None = None,
    used: int | None = None,
) -> None:
    """Let tensorflow-datasets prepare a data set, `splits` pictures a split, in array_record.

    It needs no TensorFlow for pictures that are encoded already.  The first `used` labels take
    turns; `text` makes a feature "file_name" of (label, number).
    """
    import tensorflow_datasets as tfds

    names = {"num_classes": classes} if isinstance(classes, int) else {"names": list(classes)}
    total = used or (classes if isinstance(classes, int) else len(classes))
    kinds = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(**names)}
    if text is not None:
        kinds["file_name"] = tfds.features.Text()
    features = tfds.features.FeaturesDict(kinds)

    def encoded(label, number):
        file = io.BytesIO()
        picture(label, number, side).save(file, "PNG")
        file.seek(0)
        return file

    def examples(split, count):
        shift = 1000 * list(splits).index(split)
        for k in range(count):
            example = {"image": encoded(k % total, shift + k), "label": k % total}
            yield k, example if text is None else {**example, "file_name": text(k % total, k)}

    members = {
        "name": name,
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": lambda self: tfds.core.DatasetInfo(builder=self, features=features),
        "_split_generators": lambda self, _: {s: examples(s, n) for s, n in splits.items()},
        "_generate_examples": lambda self: None,
    }
    if config:
        members["BUILDER_CONFIGS"] = [tfds.core.BuilderConfig(name=config)]
    with tfds.core.registered.skip_registration():
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), members)
    tfds.disable_progress_bar()
    builder(data_dir=str(data_dir), file_format="array_record").download_and_prepare()


def clip_folder(folder: Path, side: int = 16) -> Path:
    """A tiny CLIP with random weights, its tokenizer, in Hugging Face's layout."""
    import jax

    from jaxmerge.data.glyphs.vocabulary import CONTEXT, build_tokenizer, write_tokenizer
    from jaxmerge.models import clip

    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    size = build_tokenizer().get_vocab_size()
    shape = {"width": 16, "layers": 1, "heads": 2, "hidden": 32}
    text = clip.Text(vocab=size, context=CONTEXT, bos=size - 2, eos=size - 1, pad=0, **shape)
    config = clip.Config(clip.Vision(image=side, patch=8, **shape), text, projection_dim=8)
    clip.save((config, clip.init(config, jax.random.key(0))), folder)
    return folder
